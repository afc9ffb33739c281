"""Replicas behind a router, simulated: time to the first token, tokens/s, occupancy, lost requests.

Measures nothing. Durations come from records of this machine, from other records, or from the data
sheet of a chip.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from fleet import ROUTERS, FleetRun, run_fleet
from harness import number
from measured import OVERHEAD, RECORDS, durations_of, records_of
from replicas import Durations, ReplicaShape
from rich.console import Console
from rich.table import Table
from traffic import Lengths, Traffic

from costs import FORMS, MODELS, Costs
from jaxllama.chips import chip_named
from jaxllama.errors import ConfigError

COLUMNS = {
    "replicas": "replicas",
    "router": "router",
    "requests": "requests",
    "lost": "lost",
    "first_p50_ms": "p50 ms",
    "first_p99_ms": "p99 ms",
    "tokens_per_s": "tokens/s",
    "occupancy": "busy",
    "reused": "reused",
}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROMPTS = (0, 128, 512, 2048, 8192, 32768)
SHARE = 0.6  # of a data sheet's rates that programs reach: an assumption
CHIP_STEPS, CHIP_CHUNK = 8, 512  # per call and prompt chunk on accelerators, as their bodies choose


def duration_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how long a replica's work takes; the function gets `durations`."""

    @click.option(
        "--records",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help=f"Rates that decode.py and prefill.py printed with --json [default: {RECORDS.name}].",
    )
    @click.option("--chip", metavar="PLATFORM:NAME", help="Compute durations for a chip instead.")
    @click.option(
        "--shape",
        "model",
        type=click.Choice(list(MODELS)),
        default="Llama-3.1-8B",
        help="Of the model on that chip.",
    )
    @click.option("--form", type=click.Choice(list(FORMS)), default="bf16", help="Of the weights.")
    @click.option("--parts", type=click.IntRange(min=1), default=1, help="Chips of one replica.")
    @click.option("--depth", type=click.IntRange(min=1), default=1024, help="Tokens of a row.")
    @click.option("--share", type=click.FloatRange(0.01, 1), default=SHARE, help="Of data sheets.")
    @click.option("--overhead-ms", type=click.FloatRange(min=0), default=1000 * OVERHEAD)
    @functools.wraps(function)
    def run(*, records: Path | None, chip: str | None, overhead_ms: float, **given: Any) -> None:
        names = ("model", "form", "parts", "depth", "share")
        sizes = {name: given.pop(name) for name in names}
        if chip is None:
            found = durations_of(records_of(records or RECORDS))
        else:
            found = durations_of_chip(chip, **sizes)
        found = dataclasses.replace(found, overhead=overhead_ms / 1000)
        function(durations=found, is_chip=chip is not None, **given)

    return run


def durations_of_chip(
    chip: str, model: str, form: str = "bf16", parts: int = 1, *, depth: float, share: float = SHARE
) -> Durations:
    """Return the durations of a model on `parts` chips that reach a share of their data sheet.

    Rows have `depth` tokens in the cache. Raises UsageError if the chip is unknown, or the model
    does not fit.
    """
    try:
        costs = Costs(MODELS[model], chip_named(chip), parts, form)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    if not costs.can_split or costs.slots(1) < 1:
        raise click.UsageError(f"{model} in {form} does not run on {parts} x {chip}")
    return Durations(
        [(rows, costs.step(rows, depth) / share) for rows in ROWS],
        [(tokens, costs.prompt(tokens) / share if tokens else 0.0) for tokens in PROMPTS],
        OVERHEAD,
    )


def traffic_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of the requests; the function gets `traffic`."""

    @click.option("--rate", type=click.FloatRange(min=0.001), required=True, help="Requests/s.")
    @click.option("--seconds", type=click.FloatRange(min=0.1), default=60.0, show_default=True)
    @click.option("--prompt", type=click.FloatRange(min=1), default=64.0, help="Mean tokens.")
    @click.option("--prompt-spread", type=click.FloatRange(min=0), default=0.0, help="Over mean.")
    @click.option("--answer", type=click.FloatRange(min=1), default=64.0, help="Mean tokens.")
    @click.option("--answer-spread", type=click.FloatRange(min=0), default=0.0, help="Over mean.")
    @click.option("--burst", type=click.FloatRange(min=1), default=1.0, help="Come at once, mean.")
    @click.option("--groups", type=click.IntRange(min=0), default=0, help="Shared prefixes.")
    @click.option("--prefix", type=click.IntRange(min=0), default=0, help="Tokens of a prefix.")
    @click.option("--seed", type=int, default=0)
    @functools.wraps(function)
    def run(
        *,
        prompt: float,
        prompt_spread: float,
        answer: float,
        answer_spread: float,
        **given: Any,
    ) -> None:
        names = ("rate", "seconds", "burst", "groups", "prefix", "seed")
        rest = {name: given.pop(name) for name in names}
        lengths = Lengths(prompt, prompt_spread), Lengths(answer, answer_spread)
        function(traffic=Traffic(prompt=lengths[0], answer=lengths[1], **rest), **given)

    return run


def replica_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a replica; the function gets `shape`."""

    @duration_options
    @click.option("--slots", type=click.IntRange(min=1), default=16, show_default=True)
    @click.option("--queue", type=click.IntRange(min=0), default=512, help="Most that wait.")
    @click.option("--patience", type=click.FloatRange(min=0), default=300.0, help="Seconds.")
    @click.option("--stored", type=click.IntRange(min=0), default=0, help="Prefixes kept.")
    @functools.wraps(function)
    def run(
        *,
        durations: Durations,
        is_chip: bool,
        **given: Any,
    ) -> None:
        sizes = {name: given.pop(name) for name in ("slots", "queue", "patience", "stored")}
        shape = ReplicaShape(durations, **sizes)
        if is_chip:
            shape = dataclasses.replace(shape, steps_per_sync=CHIP_STEPS, chunk=CHIP_CHUNK)
        function(shape=shape, **given)

    return run


@click.command()
@traffic_options
@replica_options
@click.option("--replicas", multiple=True, type=click.IntRange(min=1), help="May be given again.")
@click.option("--router", multiple=True, type=click.Choice(list(ROUTERS)), help="Likewise.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per simulation.")
def main(
    *,
    traffic: Traffic,
    shape: ReplicaShape,
    replicas: tuple[int, ...],
    router: tuple[str, ...],
    as_json: bool,
) -> None:
    """Simulate requests at --rate, of all replicas together, that a router spreads."""
    rows = []
    for count in replicas or (1,):
        for name in router or ("least-waiting",):
            began = time.perf_counter()
            run = run_fleet(traffic, shape, count, name)
            took = time.perf_counter() - began
            rows.append({"replicas": count, "router": name, **figures(run), "simulated_in_s": took})
            if as_json:
                click.echo(json.dumps(rows[-1]))
    if not as_json:
        Console().print(table(rows))


def figures(run: FleetRun) -> dict[str, float | None]:
    """Return the figures of a simulation by name; None for times without any answer."""
    firsts = {f"first_p{percent}_ms": 1000 * run.first(percent) for percent in (50, 99)}
    return {
        "requests": len(run.requests),
        "lost": run.lost,
        **{name: None if value != value else value for name, value in firsts.items()},  # noqa: PLR0124
        "tokens_per_s": run.tokens_per_second,
        "occupancy": run.occupancy,
        "reused": run.reused,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the figures of simulations as a table, narrow enough for a terminal."""
    shown = Table(
        title="time to the first token, and more", title_justify="left", box=None, pad_edge=False
    )
    for title in COLUMNS.values():
        right = title != "router"
        shown.add_column(title, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        cells = (row[name] for name in COLUMNS)
        shown.add_row(*(each if isinstance(each, str) else number(each) for each in cells))
    return shown


if __name__ == "__main__":
    main()
