"""The `jaxllama` program: its list of commands, and how failures end it.

The console script. A command's module is imported when that command is asked for, so that
`jaxllama --help` does not wait for JAX. Knows no command but by name.
"""

import importlib
import sys
from typing import Any

import click

from jaxllama.errors import JaxLlamaError
from jaxllama.mistakes import hiding

COMMANDS = {
    "serve": "Serve a model over HTTP.",
    "chat": "Chat with a model in the terminal.",
    "generate": "Continue a prompt.",
    "explain": "Show what each sampler did to each token.",
    "batch": "Answer a file of prompts; continue where a run stopped.",
    "perplexity": "Measure the perplexity of a model on a text.",
    "pull": "Download a model and print its path.",
    "inspect": "Show what a model is and how much memory it needs.",
    "plugins": "List samplers, presets, prompt formats and weight readers.",
    "new": "Write a package with a sampler or prompt format to start from.",
    "check": "Check that a sampler or prompt format keeps its contract.",
    "version": "Print the versions of jaxllama, JAX and Python.",
}
INTERRUPTED = 130  # what shells expect after Ctrl-C


class Program(click.Group):
    """The group of all commands; errors raised on purpose become one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of their table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"jaxllama.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, and exit with the code that says how it went."""
        extra["standalone_mode"] = False
        try:
            result = super().main(*args, **extra)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except Exception as error:
            sys.exit(explain(error))
        sys.exit(result if isinstance(result, int) else 0)


def explain(error: Exception) -> int:
    """Say in one line what went wrong, and return the exit code; a bug keeps its traceback."""
    if was_interrupted(error):
        return INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.ClickException):
        return fail(worded(error), error.exit_code)
    if isinstance(error, JaxLlamaError):
        return fail(str(error), error.exit_code)
    hidden = hiding(error)
    if hidden is not None:
        return fail(str(hidden), hidden.exit_code)
    raise error


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what began it: it leaves programs half done, which then fail to end."""
    while error is not None and not isinstance(error, KeyboardInterrupt | click.Abort):
        error = error.__cause__ or error.__context__
    return error is not None


def fail(message: str, code: int) -> int:
    """Print the one line; returns the exit code."""
    click.secho(f"error: {' '.join(message.split())}", err=True, fg="red")
    return code


def worded(error: click.ClickException) -> str:
    """What click objects to, and where to read on."""
    where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
    return error.format_message() + (f" (see {where} --help)" if where else "")


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jaxllama")
def main() -> None:
    """Run Llama models on this machine, for one prompt or thousands."""
