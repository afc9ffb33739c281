"""The tables of docs/scaling.md: costs from data sheets, and simulations of replicas.

Measures nothing. Writes the tables between the marks of the page; the words around them are the
author's. The measured figures come from `scaling.jsonl`.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import click
from environment import ROOT
from fleet import ROUTERS, FleetRun, run_fleet
from harness import Record, number
from load import LoadShape, arrivals
from measured import RECORDS, durations_of, records_of
from replicas import ReplicaShape
from simulate import CHIP_CHUNK, CHIP_STEPS, durations_of_chip
from traffic import Lengths, SimulatedRequest, Traffic

from costs import MODELS, Costs
from jaxllama.chips import CHIPS

PAGE = ROOT / "docs/scaling.md"
MARKED = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
CONTEXT, DEPTH = 4096, 1024  # tokens of a slot; tokens of a row in the middle of its answer
ROWS = 16
WORDS = 64  # tokens of prompts and answers of `serve.py`
OWN = Lengths(WORDS, 0.5)
FLEET, PREFIX = 20, 512  # replicas, and tokens of a prefix, where prefixes are shared
SERVED_SECONDS = {2.0: 15.0, 20.0: 6.0}  # of its open loads in `scaling.jsonl`, by their rate
SHOWN_CHIPS = ("l4", "a100", "h100", "h200", "v5e", "v6e")
SPLITS = (  # model, form, chip, parts
    *(("Llama-3.2-1B", "bf16", "v5e", parts) for parts in (1, 4)),
    *(("Llama-3.1-8B", "bf16", "h100", parts) for parts in (1, 2, 4, 8)),
    *(("Llama-3.1-8B", "bf16", "v5e", parts) for parts in (1, 2, 4, 8)),
    ("Llama-3.1-8B", "int4", "v5e", 1),
    *(("Llama-3.1-8B", "bf16", "l4", parts) for parts in (1, 4)),
    *(("Llama-3.1-70B", "bf16", "h100", parts) for parts in (1, 2, 4, 8)),
    *(("Llama-3.1-70B", "int4", "h100", parts) for parts in (1, 2, 4)),
)
CHIPS_OF_HOST, SLOTS = 8, 64  # slots: at most so many for each chip
LOAD = 0.7  # of what the replicas can do
MOST = 6000.0  # seconds of all simulated replicas together


@click.command()
def main() -> None:
    """Write the tables of docs/scaling.md again."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    click.echo(f"wrote {PAGE}")


def filled(page: str) -> str:
    """Return the page with new tables; raise KeyError for a table that has no function."""
    return MARKED.sub(lambda mark: mark[1] + TABLES[mark["name"]](), page)


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns but the first are aligned to the right."""
    ruler = ["---", *(["---:"] * (len(columns) - 1))]
    return "".join(f"| {' | '.join(row)} |\n" for row in (columns, ruler, *rows))


# Costs.


def models() -> str:
    """Return the sizes of the models."""
    rows = []
    for name in MODELS:
        dense, packed = (Costs(MODELS[name], CHIPS["h100"], form=each) for each in ("bf16", "int4"))
        sizes = (dense.weight_bytes / 1e9, packed.weight_bytes / 1e9)
        cache = (dense.token_bytes / 1e3, CONTEXT * dense.token_bytes / 1e6)
        rows.append([name, *(f"{each:.2f}" for each in sizes), *(f"{each:.0f}" for each in cache)])
    return grid(
        ("model", "bf16, GB", "int4, GB", "cache of a token, kB", "slot of 4,096 tokens, MB"), rows
    )


def chips() -> str:
    """Return what data sheets say of some chips."""
    rows = []
    for name in SHOWN_CHIPS:
        chip = CHIPS[name]
        figures = (chip.memory / 1e9, chip.bandwidth / 1e9, chip.flops / 1e12, chip.link / 1e9)
        rows.append([name, *(number(each) for each in (*figures, chip.flops / chip.bandwidth))])
    return grid(
        ("chip", "memory, GB", "bandwidth, GB/s", "bf16 TFLOP/s", "link, GB/s", "rows"), rows
    )


def steps() -> str:
    """Return the floors of a step for models, chips and splits."""
    rows = []
    for model, form, chip, parts in SPLITS:
        costs = Costs(MODELS[model], CHIPS[chip], parts, form)
        slots, name = costs.slots(CONTEXT), f"{model} {form}, {parts} x {chip}"
        if slots < 1:
            rows.append([name, "none", "", "", "", ""])
            continue
        alone, full = costs.step(1, DEPTH), costs.step(ROWS, DEPTH)
        times = (f"{1000 * alone:.2f}", f"{1000 * full:.2f}")
        sent = f"{100 * costs.sending(ROWS) / full:.0f}"
        rows.append([name, f"{slots:,}", *times, sent, f"{ROWS / full / parts:,.0f}"])
    return grid(
        ("", "slots", "1 row, ms", f"{ROWS} rows, ms", "sending, %", "tokens/s of a chip"), rows
    )


# Simulations.


def split() -> str:
    """Return simulations of the chips of one host, split in every way."""
    rows = []
    for model, rates in (("Llama-3.1-8B", (8, 100)), ("Llama-3.1-70B", (2, 8))):
        for rate in rates:
            for parts in (1, 2, 4, 8):
                name = f"{model}, {rate}/s, {CHIPS_OF_HOST // parts} replicas x {parts} chips"
                slots = min(
                    SLOTS * parts, Costs(MODELS[model], CHIPS["h100"], parts).slots(CONTEXT)
                )
                if slots >= 1:
                    rows.append([name, str(slots), *seen(on_h100(model, parts, rate, slots))])
    return grid(("", "slots of each", *SEEN), rows)


def on_h100(model: str, parts: int, rate: float, slots: int) -> FleetRun:
    """Simulate one host of H100s that runs a model in replicas of `parts` chips."""
    durations = durations_of_chip("gpu:h100", model, parts=parts, depth=DEPTH)
    shape = ReplicaShape(durations, slots, CHIP_CHUNK, CHIP_STEPS)
    asked = Traffic(rate, 60.0, Lengths(1024, 1.0), Lengths(256, 1.0))
    return run_fleet(asked, shape, CHIPS_OF_HOST // parts, "least-waiting")


def replicas() -> str:
    """Return simulations of 1 to 1,000 replicas of the measured server."""
    rows = []
    for count, burst in ((1, 1.0), (10, 1.0), (100, 1.0), (1000, 1.0), (100, 50.0)):
        for router in ("round-robin", "least-open", "least-waiting"):
            seconds = min(60.0, MOST / count)
            asked = Traffic(LOAD * count * capacity(WORDS), seconds, OWN, OWN, burst)
            run = run_fleet(asked, measured(), count, router)
            bursts = f", bursts of {burst:.0f}" if burst > 1 else ""
            name = f"{count:,}{bursts}, {router}"
            rows.append([name, f"{len(run.requests):,}", *seen(run), percent(run.occupancy)])
    return grid(("replicas", "requests", *SEEN, "occupancy, %"), rows)


def prefixes() -> str:
    """Return simulations of requests that share prefixes, for every router."""
    rows = []
    rate = LOAD * FLEET * capacity(PREFIX + WORDS)
    for groups in (50, 400, 4000):
        for router in ROUTERS:
            asked = Traffic(rate, 120.0, OWN, OWN, groups=groups, prefix=PREFIX)
            run = run_fleet(asked, measured(), FLEET, router)
            rows.append([f"{groups:,}, {router}", *seen(run), percent(run.reused)])
    return grid(("prefixes", *SEEN, "reused, %"), rows)


SEEN = ("lost", "first token p50, ms", "p99, ms", "between tokens p50, ms", "tokens/s")


def seen(run: FleetRun) -> list[str]:
    """Return what clients see of a simulation."""
    times = (run.first(50), run.first(99), run.between(50))
    return [
        f"{run.lost:,}",
        *(number(float(f"{1000 * each:.3g}")) for each in times),
        number(float(f"{run.tokens_per_second:.3g}")),
    ]


def percent(share: float) -> str:
    """Return a share as a whole percentage."""
    return f"{100 * share:.0f}"


# The measured server.


@cache
def records() -> list[Record]:
    """Read the measured figures."""
    return records_of(RECORDS)


@cache
def measured() -> ReplicaShape:
    """Return a replica with the measured durations."""
    return ReplicaShape(durations_of(records()))


@cache
def capacity(prompt: int) -> float:
    """Return the answers per second of a replica that always has requests waiting.

    Prompts have `prompt` tokens, answers have WORDS.
    """
    asked = [SimulatedRequest(number, 0.0, prompt, WORDS) for number in range(1000)]
    shape = ReplicaShape(measured().durations, queue=len(asked), patience=math.inf)
    return run_fleet(asked, shape, 1, "round-robin").tokens_per_second / WORDS


def durations() -> str:
    """Return the measured durations."""
    rows = [
        [record.case, number(record.value), record.unit, number(record.load)]
        for record in records()
        if record.bench != "serve"
    ]
    return grid(("measured", "value", "unit", "load"), rows)


OPEN_LOAD = re.compile(r".*, (?P<rate>[\d.]+) requests/s come, 64\+64 tokens(?P<figure>.*)")
COMPARED: dict[str, Callable[[FleetRun], float]] = {
    "": lambda run: run.tokens_per_second,
    ", first token, p50": lambda run: 1000 * run.first(50),
    ", first token, p99": lambda run: 1000 * run.first(99),
    ", between tokens, p50": lambda run: 1000 * run.between(50),
}


def reality() -> str:
    """Return the figures of a real server beside those of its simulation."""
    rows = []
    for record in records():
        found = OPEN_LOAD.fullmatch(record.case) if record.bench == "serve" else None
        if found is None or found["figure"] not in COMPARED:
            continue
        run = as_served(float(found["rate"]))
        value, told = COMPARED[found["figure"]](run), found["figure"].strip(", ") or "answers"
        name = f"{found['rate']} requests/s, {told}"
        ratio = f"{value / record.value:.2f}"
        rows.append([name, number(record.value), number(value), ratio, record.unit])
    return grid(("", "server", "simulated", "ratio", "unit"), rows)


@cache
def as_served(rate: float) -> FleetRun:
    """Simulate an open load of `serve.py`, with its requests at its times."""
    times = arrivals(rate, SERVED_SECONDS[rate], LoadShape.seed)
    coming = [SimulatedRequest(number, each, WORDS, WORDS) for number, each in enumerate(times)]
    return run_fleet(coming, measured(), 1, "round-robin")


TABLES: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (chips, models, steps, durations, reality, replicas, prefixes, split)
}

if __name__ == "__main__":
    main()
