"""`jaxllama compat`: run a command line of another system with our commands.

Prints the command of ours that it runs, so that a user learns it. The flags are tables in
`jaxllama/cli/origins`; what comes after `--` goes to our command as it is.
"""

import shlex
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from jaxllama.cli.origins import ORIGINS
from jaxllama.cli.origins.flags import Origin, TheirFlag, TheirValues
from jaxllama.cli.terminal import note

PRINT = "jaxllama.compat.print"  # in the data of a click context
MORE = "more"
QUIET = ("-q", "--quiet")


class CompatGroup(click.Group):
    """The group of the other systems, each with its flags."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the subcommands: names of other programs whose flags are understood."""
        del ctx
        return list(ORIGINS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the subcommand for another program, such as llama2c; None if it is unknown."""
        del ctx
        return OriginCommand(ORIGINS[cmd_name]) if cmd_name in ORIGINS else None


EXAMPLE = """\b
Example:
  jaxllama compat llama2c stories15M.bin -t 0.8 -n 200 -i 'Once upon a time'
"""


@click.group("compat", cls=CompatGroup, epilog=EXAMPLE)
@click.option("--print", "only_print", is_flag=True, help="Print our command line; run nothing.")
@click.pass_context
def command(context: click.Context, *, only_print: bool) -> None:
    """Run a command line of another system: its flags, our commands.

    Everything after -- is for our command: -- --slots 4. With --print the command of ours is only
    printed. docs/moving-here.md has all flags.
    """
    context.meta[PRINT] = only_print


class OriginCommand(click.Command):
    """The command line of another system, which runs the equivalent command of ours."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        params: list[click.Parameter] = [their_option(each) for each in origin.flags]
        if origin.argument is not None:
            params.append(click.Argument([origin.argument]))
        params.append(click.Argument([MORE], nargs=-1, type=click.UNPROCESSED))
        super().__init__(
            origin.name,
            params=params,
            help=origin.summary,
            options_metavar="[THEIR FLAGS]",
            context_settings={"help_option_names": ["--help"]},
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Translate the other program's flags to a jaxllama command, print it, and run it.

        With --print the command is only printed.
        """
        words = [*self.words(ctx), *ctx.params[MORE]]
        if ctx.meta.get(PRINT):
            click.echo(shlex.join(["jaxllama", *words]))
            return None
        if not any(each in words for each in QUIET):
            note(shlex.join(["jaxllama", *words]))
        root = ctx.find_root()
        assert isinstance(root.command, click.Group)
        name, *arguments = words
        ours = root.command.get_command(root, name)
        assert ours is not None
        with ours.make_context(name, arguments, parent=root) as inner:
            return ours.invoke(inner)

    def words(self, ctx: click.Context) -> list[str]:
        """Return the jaxllama command and its arguments for the other program's flags.

        Raises UsageError for a flag that cannot be translated or would have no effect.
        """
        given = given_flags(ctx, self.origin.flags)
        for flag in self.origin.flags:
            if flag.instead is not None and flag.key in given:
                raise click.UsageError(f"{given[flag.key]} has no place here: {flag.instead}", ctx)
        values = TheirValues(ctx.params, given)
        words = self.origin.translate(values)
        values.check_all_read(f"with the others, which make this jaxllama {words[0]}")
        return words


def their_option(flag: TheirFlag) -> click.Option:
    """Build the click option for a flag of another program."""
    words = [flag.ours.replace("`", "")] if flag.instead is None else [f"Refused: {flag.instead}"]
    if flag.instead is None and flag.difference:
        words.append(flag.difference)
    names = [*flag.names, flag.key]
    if flag.kind is bool:
        return click.Option(names, is_flag=True, default=False, help="; ".join(words))
    is_shown = flag.instead is None and flag.default not in (None, "")
    default: dict[str, Any] = {} if flag.default is None else {"default": flag.default}
    return click.Option(
        names,
        type=flag.kind,
        **default,
        multiple=flag.many,
        required=flag.required,
        show_default=is_shown,
        help="; ".join(words),
    )


def given_flags(ctx: click.Context, flags: tuple[TheirFlag, ...]) -> Mapping[str, str]:
    """Return the flags of another program that the user gave on the command line.

    `flags` are all flags of that program. In the result the key is the name of the flag's parameter
    in `ctx.params`, and the value is the long name, such as --top-p.
    """
    return {
        each.key: each.names[-1]
        for each in flags
        if ctx.get_parameter_source(each.key) is ParameterSource.COMMANDLINE
    }
