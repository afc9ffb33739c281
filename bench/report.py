"""The report: records of any number of runs as a Markdown table and as plots."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from environment import NAMES, Environment
from harness import Record, number
from plot import PlotLine, bars, lines

MANY = re.compile(r"(?P<rest>.*?)\b(?P<count>\d+) (?P<what>slot|stream)s?\b(?P<tail>.*)")
COLUMNS = ("bench", "case", "value", "unit", "peer", "peer value", "ratio", "environment")
FIGURES = ("value", "peer value", "ratio", "load", "environment")
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
    records = newest(record for each in files for record in read(each))
    if not records:
        raise click.UsageError("the files hold no records; expected lines that --json printed.")
    out.mkdir(parents=True, exist_ok=True)
    plots = draw(records, out)
    pictures = "".join(f"\n![{plot.stem}]({plot.name})\n" for plot in plots)
    text = f"# Benchmarks\n\n{markdown(records)}{pictures}"
    (out / "report.md").write_text(text, encoding="utf-8")
    for path in (out / "report.md", *plots):
        click.echo(path)


def read(file: Iterable[str]) -> list[Record]:
    """Parse the records among the lines of JSON of a file; skip blank lines.

    Raises UsageError for a line that is no record.
    """
    records = []
    for place, line in enumerate(file, start=1):
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


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns of figures are aligned to the right."""
    ruler = ["---:" if name in FIGURES else "---" for name in columns]
    texts = [[text.replace("|", "\\|") for text in row] for row in (columns, ruler, *rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in texts)


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
        plots.append(save(draw_ratios(compared), out / "ratios.svg"))
    for index, (name, curve) in enumerate(curves(records).items()):
        plots.append(save(draw_curve(name, curve), out / f"{name[1]}-{index}.svg"))
    return plots


def draw_ratios(records: Sequence[Record]) -> str:
    """Draw a bar for each case: how many times as fast as the peer."""
    named = numbers(records)
    labels = [
        f"{record.bench}: {record.case}"
        + ("" if (record.peer_setting or "\n") in record.case else f", vs {record.peer_label}")
        + (f", environment {named[record.environment]}" if len(named) > 1 else "")
        for record in records
    ]
    ratios = [record.ratio or 0.0 for record in records]
    return bars("times as fast as the peer", labels, ratios, mark=PARITY)


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


def draw_curve(name: Name, curve: Curve) -> str:
    """Draw a figure by the number of slots or streams."""
    title, growing, unit = name
    counts = sorted(curve)
    drawn = [PlotLine("jaxllama", [curve[count][0] for count in counts])]
    if any(curve[count][1] is not None for count in counts):
        drawn.append(PlotLine("peer", [curve[count][1] for count in counts]))
    what = growing.removesuffix("s")
    places = [f"{count} {what}{'s' * (count > 1)}" for count in counts]
    return lines(title, unit, places, drawn)


def save(drawn: str, path: Path) -> Path:
    """Write a plot and return its path."""
    path.write_text(drawn, encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
