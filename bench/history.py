"""The history: figures of every commit that was measured, and the page that shows them.

`bench/history.jsonl` has the records, in the order in which they were appended;
`docs/benchmarks.md` and its plots are made of it and of nothing else.
"""

import ast
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Sequence

import click
from environment import ROOT, Environment
from harness import Record, number
from plot import PlotLine, lines
from report import curves, draw_curve, draw_ratios, read, table

HISTORY = ROOT / "bench/history.jsonl"
PAGE = ROOT / "docs/benchmarks.md"
PICTURES = ROOT / "docs/images/benchmarks"
COMMIT = re.compile(r"[0-9a-f]{12}")
MOST_LINES = 6  # of one plot
COLUMNS = ("case", "value", "unit", "peer", "peer value", "ratio", "load", "commit", "jax")
INTRODUCTION = """\
# Benchmarks

Figures of jaxllama, written by `python bench/history.py` from `bench/history.jsonl`: of every case
on a machine the newest one, with its commit and the version of JAX. How each is measured, and how
to repeat it, is in [bench/README.md](../bench/README.md). A peer called *published* was not
measured here: its figure is the one that its authors give for the hardware in brackets, so the
ratio compares the hardware, too.

The load is the number of programs that wanted a core in the minute before. With more than a few, a
figure by itself says little; peers are measured in turn with jaxllama, which disturbs ratios less.
The first figures (commit bdb3b5052a4b) have no load: other programs used both cores all the time.
"""


@click.command()
@click.argument("files", nargs=-1, type=click.File(encoding="utf-8"))
def main(files: Sequence[Iterable[str]]) -> None:
    """Append the records in FILES, as --json prints them, to the history; write the page anew.

    Without FILES, only write the page. A record of a tree with changes belongs to no commit and is
    refused.
    """
    new = [record for each in files for record in read(each)]
    for record in new:
        if not COMMIT.fullmatch(record.environment.commit):
            raise click.UsageError(
                f"{record.bench}: {record.case} was measured at {record.environment.commit!r}, "
                f"which is no commit; commit the changes and measure again"
            )
    with HISTORY.open("a", encoding="utf-8") as history:
        history.writelines(f"{json.dumps(record.fields())}\n" for record in new)
    page, pictures = page_of(records())
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("*.svg"):
        old.unlink()
    for name, drawn in pictures.items():
        (PICTURES / name).write_text(drawn, encoding="utf-8")
    PAGE.write_text(page, encoding="utf-8")
    click.echo(f"{len(new)} figures appended; wrote {PAGE} and {len(pictures)} plots")


def records() -> list[Record]:
    """Read the history."""
    if not HISTORY.exists():
        return []
    return read(HISTORY.read_text(encoding="utf-8").splitlines())


def page_of(history: Sequence[Record]) -> tuple[str, dict[str, str]]:
    """Return the page in Markdown and its plots, by file name."""
    parts, pictures = [INTRODUCTION], dict[str, str]()
    for machine, of_machine in grouped(history, lambda record: machine_of(record.environment)):
        parts.append(f"\n## {machine}\n")
        for bench, of_bench in grouped(of_machine, lambda record: record.bench):
            newest = list({timeless(each): each for each in of_bench}.values())
            parts.append(f"\n### {bench}\n\n{summary_of(bench)}\n\n{figures(newest)}")
            for name, drawn in plots(of_bench, newest).items():
                file = f"{slug(machine)}-{slug(bench)}-{name}.svg"
                pictures[file] = drawn
                parts.append(f"\n![{bench}: {name}](images/{PICTURES.name}/{file})\n")
    return "".join(parts), pictures


def grouped(
    history: Iterable[Record], key: Callable[[Record], str]
) -> list[tuple[str, list[Record]]]:
    """Group records by a key, in the order of their first one."""
    found: dict[str, list[Record]] = {}
    for record in history:
        found.setdefault(key(record), []).append(record)
    return list(found.items())


def machine_of(environment: Environment) -> str:
    """Return the name of the machine of a record."""
    several = f", {environment.devices} devices" if environment.devices > 1 else ""
    return f"{environment.device}{several}, {environment.threads} threads"


def timeless(record: Record) -> tuple[str, str, str, Environment]:
    """Return what records of a case have in common at all commits, with all versions of JAX."""
    settings = dataclasses.replace(record.environment, commit="", jax="", jaxlib="")
    return record.bench, record.case, record.peer_label, settings


def summary_of(bench: str) -> str:
    """Return the first line of the docstring of a script."""
    source = (ROOT / f"bench/{bench}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].replace("\n", " ")


def figures(newest: Sequence[Record]) -> str:
    """Return the table of records."""
    rows = [
        (
            *(record.case, number(record.value), record.unit),
            *(record.peer_label, number(record.peer_value)),
            "" if record.ratio is None else f"{record.ratio:.2f}x",
            "" if record.load is None else f"{record.load:.1f}",
            *(record.environment.commit, record.environment.jax),
        )
        for record in newest
    ]
    return table(COLUMNS, rows)


def plots(history: Sequence[Record], newest: Sequence[Record]) -> dict[str, str]:
    """Draw the plots of one script on one machine: peers, curves by slots or streams, history."""
    found: dict[str, str] = {}
    compared = [record for record in newest if record.ratio is not None]
    if compared:
        found["ratios"] = draw_ratios(compared)
    for index, (name, curve) in enumerate(curves(newest).items()):
        found[f"{name[1]}-{index}"] = draw_curve(name, curve)
    for unit, of_unit in grouped(history, lambda record: record.unit):
        drawn = draw_history(unit, of_unit)
        if drawn is not None:
            found[f"history-{slug(unit)}"] = drawn
    return found


def draw_history(unit: str, history: Sequence[Record]) -> str | None:
    """Draw the figures of cases by commit; None unless a case has figures of two commits."""
    commits = list(dict.fromkeys(record.environment.commit for record in history))
    cases: dict[tuple[str, str, str, Environment], dict[str, float]] = {}
    for record in history:
        cases.setdefault(timeless(record), {})[record.environment.commit] = record.value
    drawn = [
        PlotLine(case, [values.get(commit) for commit in commits])
        for (_, case, _, _), values in cases.items()
        if len(values) > 1
    ]
    if not drawn:
        return None
    return lines(f"by commit, {unit}", unit, [each[:7] for each in commits], drawn[:MOST_LINES])


def slug(words: str) -> str:
    """Return words as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


if __name__ == "__main__":
    main()
