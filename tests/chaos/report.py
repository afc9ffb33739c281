"""The report of an attack: a line of JSON for each figure, and whether all promises hold."""

import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

import click


class Report:
    """Prints figures as lines of JSON and collects the broken promises."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def figure(self, name: str, **values: Any) -> None:
        """Print one line of figures."""
        click.echo(json.dumps({"name": name, **values}))

    def promise(self, name: str, promises: dict[str, bool], **values: Any) -> None:
        """Print one line of figures with the broken promises, and collect these."""
        broken = [each for each, holds in promises.items() if not holds]
        self.broken += [f"{name}: {each}" for each in broken]
        self.figure(name, **values, broken=broken)


def within(seconds: float, count: int) -> Iterator[int]:
    """Yield the numbers from 0 to `count` - 1; end early after `seconds` seconds."""
    until = time.monotonic() + seconds
    for number in range(count):
        if time.monotonic() > until:
            return
        yield number


def spread(seconds: Iterable[float]) -> dict[str, float | int]:
    """Return the median, 99th percentile, maximum and number of some times."""
    found = sorted(seconds)
    if not found:
        return {"count": 0}
    late = found[max(0, math.ceil(0.99 * len(found)) - 1)]
    return {
        "median": round(statistics.median(found), 4),
        "p99": round(late, 4),
        "max": round(found[-1], 4),
        "count": len(found),
    }
