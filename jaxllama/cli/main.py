"""The `jaxllama` program: its list of commands, and the handling of their errors.

The console script. The module of a command is imported when the command is used, so that
`jaxllama --help` does not wait for JAX. Knows the commands by name only.
"""

import importlib
import os
import sys
import threading
from typing import Any, NoReturn

import click

from jaxllama.cli.garbage import collect_rarely
from jaxllama.errors import JaxLlamaError
from jaxllama.mistakes import hiding

COMMANDS = {
    "serve": "Serve a model over HTTP.",
    "deploy": "Serve a model with several replicas, on Ray.",
    "chat": "Chat with a model in the terminal.",
    "generate": "Continue a prompt.",
    "explain": "Show what each sampler did to each token.",
    "batch": "Answer a file of prompts; continue where a run stopped.",
    "classify": "Choose an answer to each question for each text of a file.",
    "perplexity": "Measure the perplexity of a model on a text.",
    "pull": "Download a model and print its path.",
    "list": "List the models in the store.",
    "remove": "Delete a model from the store.",
    "convert": "Write a model as a checkpoint of our own, quantised if asked.",
    "export": "Write a model as a GGUF file or a Hugging Face folder.",
    "inspect": "Show what a model is and how much memory it needs.",
    "plugins": "List samplers, presets, prompt formats and weight readers.",
    "compat": "Run a command line of rllama, Rama, ExLlama or others.",
    "new": "Write a plugin package to start from.",
    "check": "Check that a sampler or prompt format keeps its contract.",
    "version": "Print the versions of jaxllama, JAX and Python.",
}
INTERRUPTED = 130  # what shells expect after Ctrl-C
COMPILER = "compiler"  # name of the thread that compiles programs


class Program(click.Group):
    """The group of all commands; an expected error ends the program with a line and exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of their table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return the command; None if the name is unknown."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"jaxllama.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands for --help, without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and exit the process with the command's exit code.

        The arguments are those of click's `main`. An expected error is printed in one line; any
        other error is raised.
        """
        extra["standalone_mode"] = False
        collect_rarely()
        try:
            result = super().main(*args, **extra)
        except KeyboardInterrupt:
            leave(INTERRUPTED)
        except Exception as error:
            leave(explain(error))
        sys.exit(result if isinstance(result, int) else 0)


def leave(code: int) -> NoReturn:
    """Exit the process with this code.

    If `code` is the one for Ctrl-C, do not wait for a compilation in a background thread.
    """
    if code == INTERRUPTED and any(each.name == COMPILER for each in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)  # a normal exit waits for the thread
    sys.exit(code)


def explain(error: Exception) -> int:
    """Print an expected error in one line and return the exit code; raise any other error again."""
    if was_interrupted(error):
        return INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.ClickException):
        return fail(usage_message(error), error.exit_code)
    if isinstance(error, JaxLlamaError):
        return fail(str(error), error.exit_code)
    hidden = hiding(error)
    if hidden is not None:
        return fail(str(hidden), hidden.exit_code)
    raise error


def was_interrupted(error: BaseException | None) -> bool:
    """Say whether an error is, or was caused by, an interrupt with Ctrl-C."""
    while error is not None and not isinstance(error, KeyboardInterrupt | click.Abort):
        error = error.__cause__ or error.__context__
    return error is not None


def fail(message: str, code: int) -> int:
    """Print `message` as one red line on standard error; return `code` unchanged."""
    click.secho(f"error: {' '.join(message.split())}", err=True, fg="red")
    return code


def usage_message(error: click.ClickException) -> str:
    """Return the message of click's error, with a pointer to --help."""
    where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
    return error.format_message() + (f" (see {where} --help)" if where else "")


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jaxllama")
def main() -> None:
    """Run Llama models on this machine, for one prompt or thousands."""
