"""The report: records of any number of runs as a Markdown table and as plots."""

import importlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from environment import NAMES, Environment
from harness import Record, number

MANY = re.compile(r"(?P<rest>.*?)\b(?P<count>\d+) (?P<what>slot|stream)s?\b(?P<tail>.*)")
COLUMNS = ("bench", "case", "value", "unit", "peer", "peer value", "ratio", "environment")
FIGURES = ("value", "peer value", "ratio", "environment")
OURS, PEER = "#2a6f97", "#c9a227"
PARITY = 1.0  # as fast as the peer

Name = tuple[str, str, str]  # of a curve: its title, "slots" or "streams", the unit
Curve = dict[int, tuple[float, float | None]]  # number of slots: jaxllama's figure, the peer's


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.File(encoding="utf-8"))
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bench-report"),
    show_default=True,
    help="Folder for report.md and the plots.",
)
def main(files: Sequence[Iterable[str]], out: Path) -> None:
    """Turn FILES of JSON lines, as --json prints them, into a markdown table and plots.

    A case that was measured again in the same environment replaces the one before.
    """
    records = newest(record for lines in files for record in read(lines))
    if not records:
        raise click.UsageError("the files hold no records; expected lines that --json printed.")
    out.mkdir(parents=True, exist_ok=True)
    plots = draw(records, out)
    pictures = "".join(f"\n![{plot.stem}]({plot.name})\n" for plot in plots)
    text = f"# Benchmarks\n\n{markdown(records)}{pictures}"
    (out / "report.md").write_text(text, encoding="utf-8")
    for path in (out / "report.md", *plots):
        click.echo(path)


def read(lines: Iterable[str]) -> list[Record]:
    """Parse the records among lines of JSON; skip blank lines.

    Raises UsageError for a line that is no record.
    """
    records = []
    for place, line in enumerate(lines, start=1):
        if line.strip():
            try:
                records.append(Record.of(json.loads(line)))
            except (ValueError, TypeError, AttributeError) as error:
                raise click.UsageError(
                    f"line {place} is no record: {line.strip()[:60]!r}; expected a line that "
                    f"--json printed."
                ) from error
    return records


def newest(records: Iterable[Record]) -> list[Record]:
    """Return the last record of each case, peer and environment, in order of first appearance."""
    last = {(each.bench, each.case, each.peer, each.environment): each for each in records}
    return list(last.values())


def numbers(records: Iterable[Record]) -> dict[Environment, int]:
    """Number the environments of records from 1, in the order of their first record."""
    found = dict.fromkeys(record.environment for record in records)
    return {environment: number for number, environment in enumerate(found, start=1)}


def markdown(records: Sequence[Record]) -> str:
    """Return a table of all records and a table of their environments, in Markdown."""
    named = numbers(records)
    places = [[str(place), *environment_cells(each)] for each, place in named.items()]
    return (
        table(COLUMNS, [cells(record, named[record.environment]) for record in records])
        + "\n"
        + table(["environment", *(name.replace("_", " ") for name in NAMES)], places)
    )


def table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns of figures are aligned to the right."""
    ruler = ["---:" if name in FIGURES else "---" for name in columns]
    texts = [[text.replace("|", "\\|") for text in line] for line in (columns, ruler, *lines)]
    return "".join(f"| {' | '.join(line)} |\n" for line in texts)


def cells(record: Record, place: int) -> list[str]:
    """Return one line of the table of records; `place` is the number of its environment."""
    ratio = "" if record.ratio is None else f"{record.ratio:.2f}x"
    figures = (number(record.value), record.unit, record.peer_label, number(record.peer_value))
    return [record.bench, record.case, *figures, ratio, str(place)]


def environment_cells(environment: Environment) -> list[str]:
    """Return one line of the table of environments, without its number."""
    return [str(environment.fields().get(name, "")) for name in NAMES]


def draw(records: Sequence[Record], out: Path) -> list[Path]:
    """Draw the plots for these records; return their paths."""
    plots = []
    compared = [record for record in records if record.ratio is not None]
    if compared:
        plots.append(draw_ratios(compared, out / "ratios.svg"))
    for index, (name, curve) in enumerate(curves(records).items()):
        plots.append(draw_curve(name, curve, out / f"{name[1]}-{index}.svg"))
    return plots


def draw_ratios(records: Sequence[Record], path: Path) -> Path:
    """Draw a bar for each case: how many times as fast as the peer."""
    figure, axes = new_figure(height=1.2 + 0.35 * len(records))
    named = numbers(records)
    names = [
        f"{record.bench}: {record.case}\nvs {record.peer_label}, "
        f"environment {named[record.environment]}"
        for record in records
    ]
    ratios = [record.ratio or 0.0 for record in records]
    bars = axes.barh(names, ratios, color=OURS)
    axes.bar_label(bars, [f"{ratio:.2f}x" for ratio in ratios], padding=3)
    axes.axvline(PARITY, color=PEER)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("times as fast as the peer")
    return save(figure, path)


def curves(records: Iterable[Record]) -> dict[Name, Curve]:
    """Group the cases that differ only in their number of slots or streams, if it varies."""
    found: dict[Name, Curve] = {}
    named = numbers(records := list(records))
    for record in records:
        match = MANY.fullmatch(record.case)
        if match:
            growing = f"{match['what']}s"
            title = f"{record.bench}: {match['rest']}by {growing}{match['tail']}"
            title += f", {record.peer_label}" if record.peer else ""
            title += f", environment {named[record.environment]}" if len(named) > 1 else ""
            curve = found.setdefault((title, growing, record.unit), {})
            curve[int(match["count"])] = (record.value, record.peer_value)
    return {name: curve for name, curve in found.items() if len(curve) > 1}


def draw_curve(name: Name, curve: Curve, path: Path) -> Path:
    """Draw a figure by the number of slots or streams."""
    title, growing, unit = name
    figure, axes = new_figure(height=4.0)
    counts = sorted(curve)
    axes.plot(counts, [curve[count][0] for count in counts], "o-", color=OURS, label="jaxllama")
    theirs = [(count, curve[count][1]) for count in counts if curve[count][1] is not None]
    if theirs:
        axes.plot(*zip(*theirs, strict=True), "s--", color=PEER, label="peer")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(growing)
    axes.set_ylabel(unit)
    axes.legend()
    return save(figure, path)


def new_figure(height: float) -> tuple[Any, Any]:
    """Return an empty figure and its axes; raise UsageError without matplotlib."""
    try:
        plotting = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise click.UsageError(
            'the plots need matplotlib; install the extra: pip install "jaxllama[bench]"'
        ) from error
    figure = plotting.Figure(figsize=(8.0, height), layout="constrained")
    return figure, figure.subplots()


def save(figure: Any, path: Path) -> Path:
    """Write a figure without its date, so that the same records give the same bytes."""
    figure.savefig(path, metadata={"Date": None})
    return path


if __name__ == "__main__":
    main()
