"""Output of the commands: progress of loading, text as it is generated, figures at the end.

Text and results go to standard output, everything else to standard error. Knows completions, no
engine.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

import jaxllama
from jaxllama import startup
from jaxllama.cli.garbage import collect_as_usual
from jaxllama.completion import Completion
from jaxllama.request import Usage

Report = Callable[[str, int, int], None]  # what, done, total
Draw = Callable[[str, str, int, int], None]  # bar, words beside it, done, total

QUIET = "jaxllama.quiet"  # in the data of a click context

# A model's answer must not send control sequences to the terminal that shows it.
CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def be_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    """Store in the click context whether --quiet was given, for `is_quiet` to read."""
    context.meta[QUIET] = value


quiet = click.option(
    *("-q", "--quiet"),
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=be_quiet,
    help="Print the text alone: no progress, no figures; errors are still printed.",
)


def is_quiet() -> bool:
    """Say whether the command that runs has the option --quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


@contextmanager
def progress_bars(*, keeps_programs: bool = True) -> Iterator[Report | None]:
    """Show progress bars on a terminal; yield the function that updates them, or None elsewhere.

    `keeps_programs`: compiled programs are kept on disk, and the bar says that only the first start
    compiles them.
    """
    with bars_on_terminal() as draw:
        if draw is None:
            yield None
            return

        def report(what: str, done: int, total: int) -> None:
            words = startup.describe(what, done, total, keeps_programs=keeps_programs)
            bar = "programs" if what.startswith(startup.COMPILING) else what
            draw(bar, words, done, total)

        yield report


@contextmanager
def bars_on_terminal() -> Iterator[Draw | None]:
    """Yield a function that draws a progress bar; None with --quiet or without a terminal."""
    if not sys.stderr.isatty() or is_quiet():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - heavy, and for terminals alone
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
    )
    tasks: dict[str, TaskID] = {}
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:

        def draw(bar: str, words: str, done: int, total: int) -> None:
            if bar not in tasks:
                tasks[bar] = bars.add_task(words)
            bars.update(tasks[bar], description=words, completed=done, total=total or None)

        yield draw


def load_llm(loading: Mapping[str, Any]) -> "jaxllama.LLM":
    """Load a model with these arguments of `LLM.load`, and show progress."""
    with startup_shown(keeps_programs=loading.get("compile_cache", True)) as report:
        llm = jaxllama.LLM.load(progress=report, **loading)
    collect_as_usual()
    return llm


@contextmanager
def startup_shown(*, keeps_programs: bool) -> Iterator[Report]:
    """Yield a progress function for `LLM.load` that draws bars on a terminal, else prints lines.

    `keeps_programs`: compiled programs are kept on disk for the next start.
    """
    with progress_bars(keeps_programs=keeps_programs) as bars:
        if bars is not None:
            yield bars
            return
        with startup.Startup(noting(), keeps_programs=keeps_programs) as lines:
            yield lines.report


@contextmanager
def open_llm(loading: Mapping[str, Any], *, is_short: bool = False) -> Iterator["jaxllama.LLM"]:
    """Load a model, show progress, and close the model at the end of the context.

    `loading` holds arguments of `LLM.load`. With `is_short` no program is compiled in the
    background: the command would end before all of them are ready.
    """
    llm = load_llm({**loading, "compile_behind": False} if is_short else loading)
    if is_short:
        tell = noting()
        llm.engine.programs.report = lambda what, done, total: tell(
            f"{startup.describe(what, done, total)}..."
        )
    try:
        yield llm
    finally:
        close_llm(llm)


def close_llm(llm: "jaxllama.LLM") -> None:
    """Close a model; first print which program is being compiled, as closing waits for it."""
    pending = llm.engine.programs.pending
    if pending:
        note(f"compiling {pending[0]} to its end, for the next start; Ctrl-C skips that")
    llm.close()


def show(text: str, colour: tuple[int, int, int] | None = None) -> None:
    """Print a piece of generated text, in this RGB colour if one is given, without a line break.

    On a terminal, control characters are shown as visible symbols.
    """
    if sys.stdout.isatty():
        text = text.translate(CONTROLS)
    click.echo(click.style(text, fg=colour) if colour and text else text, nl=False)


def note(line: str) -> None:
    """Print one dim line on standard error, unless the command is quiet."""
    noting()(line)


def noting() -> Callable[[str], None]:
    """Return a function that prints a line on standard error, and that any thread may call.

    It prints nothing if the command is quiet.
    """
    if is_quiet():
        return lambda _: None
    return lambda line: click.secho(line, err=True, dim=True)


def rates(usage: Usage) -> dict[str, float | None]:
    """Return the times of one answer in seconds, and its speeds in tokens per second.

    The keys are seconds, seconds_to_first (token), prompt_tokens_per_second and
    generated_tokens_per_second. A speed is None if it cannot be computed, such as that of an answer
    of one token.
    """
    computed = usage.prompt - usage.reused
    later, seconds = usage.generated - 1, usage.seconds - usage.seconds_to_first
    timed = later > 0 and seconds > 0
    return {
        "prompt_tokens_per_second": (
            computed / usage.seconds_to_first if usage.seconds_to_first > 0 else None
        ),
        "generated_tokens_per_second": later / seconds if timed else None,
        "seconds_to_first": usage.seconds_to_first,
        "seconds": usage.seconds,
    }


def as_json(value: object) -> str:
    """Return a value as one line of JSON; infinities and NaN, which JSON lacks, become null."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def completion_fields(completion: Completion) -> dict[str, Any]:
    """Return the fields of a completion by name, for JSON."""
    return dataclasses.asdict(completion)


def plain(value: Any) -> Any:
    """Return a copy of a value that JSON can hold.

    Keys become text, tuples lists, infinities and NaN None.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
