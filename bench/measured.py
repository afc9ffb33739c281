"""Measured durations: those of a replica, from the records of `decode.py` and `prefill.py`.

Used by `simulate.py` and `scaling.py`. `scaling.jsonl` has the records that are used by default.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import click
from harness import Record
from replicas import Curve, Durations
from report import read

RECORDS = Path(__file__).parent / "scaling.jsonl"
DECODING = re.compile(r".*, (\d+) slots?, depth \d+")
PREFILL = re.compile(r".*, (\d+) tokens")
OVERHEAD = 0.004  # seconds of a request outside the engine: HTTP, and tokens of the prompt


def records_of(path: Path) -> list[Record]:
    """Read the records of a file."""
    with path.open(encoding="utf-8") as lines:
        return read(lines)


def durations_of(records: Sequence[Record], overhead: float = OVERHEAD) -> Durations:
    """Return the durations of a replica that decodes and reads prompts at the recorded rates.

    Of several records of a case the last one counts. Raises UsageError if decoding or prefill is
    missing.
    """
    rows, prompts = points(records, "decode", DECODING), points(records, "prefill", PREFILL)
    if not rows or not prompts:
        missing = "decode.py" if not rows else "prefill.py"
        raise click.UsageError(
            f"the records have no rate of {missing}; expected what bench/{missing} --json prints"
        )
    steps = rising({count: count / rate for count, rate in rows.items()})
    first = steps[0][1]  # the time of a prompt is that to its first token, with one step
    reading = {0: 0.0} | {count: count / rate - first for count, rate in prompts.items()}
    return Durations(steps, rising(reading), overhead)


def points(records: Sequence[Record], bench: str, case: re.Pattern[str]) -> dict[int, float]:
    """Return the tokens per second of a script's cases, by the number in their names."""
    found = ((case.fullmatch(each.case), each) for each in records if each.bench == bench)
    return {int(match[1]): each.value for match, each in found if match and each.unit == "tokens/s"}


def rising(seconds: dict[int, float]) -> Curve:
    """Return a curve through points by size; more work never takes less time than less of it."""
    curve: list[tuple[float, float]] = []
    for size, each in sorted(seconds.items()):
        curve.append((float(size), max(each, curve[-1][1]) if curve else each))
    return curve
