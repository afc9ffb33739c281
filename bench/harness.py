"""Parts that all benchmarks share: options, the record of a case, and fair timing.

Imported by every script of this folder. Knows nothing of the measurements.
"""

import dataclasses
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from environment import NAMES, Environment
from rich.console import Console
from rich.table import Table

REPETITIONS = 5
SHORT_REPETITIONS = 2

Measure = Callable[[], float]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Record:
    """The figure of one case and, where there is one, the peer's figure in the same run."""

    bench: str
    case: str
    value: float
    unit: str
    environment: Environment
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None  # how many times better than the peer: above 1 is faster
    peer_setting: str | None = None  # the setting with which the peer was fastest, if it has any
    load: float | None = None  # programs that ran or waited for a core before the measurement

    @property
    def peer_label(self) -> str:
        """The peer and its setting; empty if there is no peer."""
        setting = f" ({self.peer_setting})" if self.peer_setting else ""
        return f"{self.peer}{setting}" if self.peer else ""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Record":
        """Make a record from the dictionary that `fields` returns; raise TypeError for others."""
        environment = {name: value for name, value in fields.items() if name in NAMES}
        rest = {name: value for name, value in fields.items() if name not in NAMES}
        return cls(environment=Environment(**environment), **rest)

    def fields(self) -> dict[str, Any]:
        """Return the fields that are set, by their names in the JSON output."""
        own = {name: value for name, value in vars(self).items() if name != "environment"}
        return {
            name: rounded(value) if isinstance(value, float) else value
            for name, value in own.items()
            if value is not None
        } | self.environment.fields()


@dataclasses.dataclass(frozen=True)
class Peer:
    """The engine or server that is compared with: its name and its setting in this run."""

    name: str
    setting: str | None = None


class Board:
    """Collects the records of a script: prints each as a line of JSON, or a table at the end."""

    def __init__(self, bench: str, *, as_json: bool, short: bool) -> None:
        self.bench, self.as_json, self.short = bench, as_json, short
        self.records: list[Record] = []
        self._load = load_of_machine()
        self._environment: Environment | None = None

    @property
    def environment(self) -> Environment:
        """The environment of the next records; raises RuntimeError if it is not set yet."""
        if self._environment is None:
            raise RuntimeError(f"{self.bench} records a figure before it says where it measures")
        return self._environment

    @environment.setter
    def environment(self, environment: Environment) -> None:
        self._environment = environment

    def add(
        self,
        case: str,
        unit: str,
        ours: Sequence[float],
        theirs: Sequence[float] = (),
        peer: Peer | None = None,
    ) -> None:
        """Record a case: the medians of both sides' values, and their ratio."""
        value = statistics.median(ours)
        record = Record(self.bench, case, value, unit, self.environment, load=self._load)
        if peer is not None and theirs:
            other = statistics.median(theirs)
            record = dataclasses.replace(
                record,
                peer=peer.name,
                peer_value=other,
                ratio=value / other if unit.endswith("/s") else other / value,
                peer_setting=peer.setting,
            )
        self.records.append(record)
        if self.as_json:
            click.echo(json.dumps(record.fields()))

    def show(self) -> None:
        """Print the table, unless the records were printed as JSON."""
        if not self.as_json and self.records:
            Console().print(table(self.records))

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Within the context, show on standard error which case is being measured."""
        with Console(stderr=True).status(f"{self.bench}: {what}"):
            yield


def load_of_machine() -> float | None:
    """Return the mean number of programs that ran or waited for a core in the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def script(bench: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of every script; the function gets a `board`, which is shown at the end."""

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        @click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per case.")
        @click.option("--short", is_flag=True, help="Fewer cases, less often.")
        @functools.wraps(function)
        def run(*, as_json: bool, short: bool, **given: Any) -> None:
            board = Board(bench, as_json=as_json, short=short)
            function(board=board, **given)
            board.show()

        return run

    return wrap


def repeated(function: Callable[..., None]) -> Callable[..., None]:
    """Add the option --repetitions."""
    words = f"Times each case is measured [default: {REPETITIONS}; short: {SHORT_REPETITIONS}]."
    return click.option("--repetitions", type=click.IntRange(min=1), help=words)(function)


def how_often(board: Board, repetitions: int | None) -> int:
    """Return the requested number of repetitions, or the default."""
    return repetitions or (SHORT_REPETITIONS if board.short else REPETITIONS)


def in_turn(times: int, *measures: Callable[[], T] | None) -> list[list[T]]:
    """Run the measures in turn, A B A B, and return a list of results for each.

    So a disturbance of the machine affects all of them. A measure that is None gives an empty list.
    The first round is not counted: it touches memory, fills caches and wakes threads.
    """
    rounds = [[measure() for measure in measures if measure] for _ in range(times + 1)][1:]
    found = iter(zip(*rounds, strict=True))
    return [list(next(found)) if measure else [] for measure in measures]


def seconds(action: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def rounded(value: float) -> float:
    """Round to four significant digits; the rest is noise."""
    return float(f"{value:.4g}")


def table(records: Sequence[Record]) -> Table:
    """Return a table of records."""
    shown = Table(title=records[0].bench, title_justify="left", caption_justify="left")
    shown.caption = "\n".join(dict.fromkeys(str(record.environment) for record in records))
    for name in ("case", "value", "unit"):
        shown.add_column(name, justify="right" if name == "value" else "left")
    peers = sorted({record.peer_label for record in records if record.peer})
    for name in (*peers, *(["ratio"] if peers else [])):
        shown.add_column(name, justify="right")
    for record in records:
        row = [record.case, number(record.value), record.unit]
        row += [number(record.peer_value) if record.peer_label == peer else "" for peer in peers]
        row += [f"{record.ratio:.2f}x" if record.ratio else ""] if peers else []
        shown.add_row(*row)
    return shown


def number(value: float | None) -> str:
    """Format a figure for the table; None gives an empty text."""
    return "" if value is None else f"{rounded(value):,g}"
