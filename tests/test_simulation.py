"""The simulation of replicas: it loses nothing, repeats itself, and agrees with queueing theory."""

import dataclasses
import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.timed_engine import run_in_simulated_time

BENCH = Path(__file__).parents[1] / "bench"
STEP = 0.001  # seconds


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def traffic(**changes: Any) -> Any:
    lengths = module("traffic").Lengths
    given = {"rate": 8.0, "seconds": 30.0, "prompt": lengths(64, 0.5), "answer": lengths(64, 1.0)}
    return module("traffic").Traffic(**given | changes)


def shape(**changes: Any) -> Any:
    """A replica whose step takes as long for any number of rows, and whose prompts take no time."""
    replicas = module("replicas")
    durations = replicas.Durations(((1.0, STEP),), ((0.0, 0.0),))
    given = {"durations": durations, "steps_per_sync": 1, "slots": 4}
    return replicas.ReplicaShape(**given | changes)


def slow(**changes: Any) -> Any:
    """A replica like a small machine, which the default traffic keeps busy."""
    replicas = module("replicas")
    durations = replicas.Durations(((1.0, 0.01), (16.0, 0.03)), ((0.0, 0.0), (512.0, 0.3)), 0.002)
    return replicas.ReplicaShape(**{"durations": durations, "slots": 8} | changes)


def run(traffic_: Any, shape_: Any, replicas: int = 1, router: str = "least-waiting") -> Any:
    return module("fleet").run_fleet(traffic_, shape_, replicas, router)


def mean_wait(found: Any) -> float:
    """The mean time until a request has a slot."""
    return sum(each.begun - each.arrived for each in found.requests) / len(found.requests)


# Conservation.


@pytest.mark.parametrize("router", ["round-robin", "least-open", "least-waiting", "prefix-aware"])
@pytest.mark.parametrize("burst", [1.0, 20.0])
@pytest.mark.parametrize("queue", [4, 512])
def test_every_request_ends_once(router: str, burst: float, queue: int) -> None:
    asked = traffic(rate=40.0, burst=burst, groups=20, prefix=100)
    found = run(asked, slow(queue=queue, patience=5.0, stored=2), 3, router)
    assert len(found.requests) == len({each.number for each in found.requests}) > 500
    for each in found.requests:
        if each.is_lost:
            assert each.first is None and each.ended is None
        else:
            assert each.arrived <= each.begun < each.first <= each.ended
            assert each.filled == each.prompt > each.reused
    assert (found.lost > 0) == any(each.is_lost for each in found.requests)
    assert 0 < found.occupancy <= 1
    held = sum(each.ended - 0.002 - each.begun for each in found.whole)
    assert found.busy == pytest.approx(held)


def test_a_seed_gives_one_result_and_another_seed_another() -> None:
    def ends(seed: int) -> list[float | None]:
        found = run(traffic(seed=seed, burst=3.0, groups=9, prefix=64), slow(), 2, "prefix-aware")
        return [each.ended for each in found.requests]

    assert ends(1) == ends(1)
    assert ends(1) != ends(2)


def test_a_full_queue_refuses_and_a_long_wait_loses() -> None:
    crowd = traffic(rate=200.0, seconds=2.0)
    assert run(crowd, slow(queue=10)).lost > 100
    assert run(crowd, slow(patience=0.5)).lost > 100
    assert run(crowd, slow()).lost == 0


# Theory.


@pytest.mark.parametrize(("slots", "load"), [(1, 0.6), (4, 0.8), (8, 0.7)])
def test_exponential_answers_wait_as_in_a_queue_with_several_servers(
    slots: int, load: float
) -> None:
    """M/M/c, by Erlang's formula: the rows of a step do not slow each other down here."""
    lengths = module("traffic").Lengths
    answer = 1000
    rate = load * slots / (answer * STEP)
    asked = traffic(
        rate=rate, seconds=60_000 / rate, prompt=lengths(1), answer=lengths(answer, 1.0)
    )
    found = run(asked, shape(slots=slots, queue=10**9, patience=math.inf))
    busy = load * slots
    tail = busy**slots / math.factorial(slots) / (1 - load)
    waits = tail / (sum(busy**k / math.factorial(k) for k in range(slots)) + tail)
    expected = waits * answer * STEP / (slots * (1 - load))
    assert mean_wait(found) == pytest.approx(expected, rel=0.1)
    assert found.occupancy == pytest.approx(load, rel=0.05)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_equal_answers_wait_as_in_a_queue_of_equal_jobs(load: float) -> None:
    """M/D/1, by the formula of Pollaczek and Khinchine."""
    lengths = module("traffic").Lengths
    answer = 200
    rate = load / (answer * STEP)
    asked = traffic(rate=rate, seconds=60_000 / rate, prompt=lengths(1), answer=lengths(answer))
    found = run(asked, shape(slots=1, queue=10**9, patience=math.inf))
    expected = load / (2 * (1 - load)) * answer * STEP
    assert mean_wait(found) == pytest.approx(expected, rel=0.1)


def test_an_unloaded_replica_answers_after_prompt_and_step() -> None:
    lengths = module("traffic").Lengths
    asked = traffic(rate=0.001, seconds=5000.0, prompt=lengths(256), answer=lengths(11))
    found = run(asked, slow())
    # Two chunks of 128 tokens, and the first of eleven steps.
    assert found.first(50) == pytest.approx(0.15 + 0.01 + 0.002)
    one = found.requests[0]
    assert one.ended - one.first == pytest.approx(10 * 0.01)


def test_bursts_have_the_rate_and_wait_longer() -> None:
    calm, bursty = (run(traffic(burst=each, seconds=300.0), slow(), 4) for each in (1.0, 10.0))
    assert len(bursty.requests) == pytest.approx(len(calm.requests), rel=0.15)
    assert bursty.first(99) > 2 * calm.first(99)


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 2.0])
def test_lengths_have_their_mean_and_spread(spread: float) -> None:
    chance = importlib.import_module("random").Random(0)
    lengths = module("traffic").Lengths(400, spread)
    drawn = [lengths.draw(chance) for _ in range(20_000)]
    mean = sum(drawn) / len(drawn)
    assert mean == pytest.approx(400, rel=0.05)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in drawn) / len(drawn))
    assert deviation / mean == pytest.approx(spread, rel=0.05, abs=1e-9)
    assert min(drawn) >= 1


# Routers and prefixes.


def view(open_: list[int], waiting: list[int], holders: Any = None) -> Any:
    return module("fleet").RouterView(4, open_, waiting, holders or {})


def test_routers_take_turns_or_find_the_least() -> None:
    routers = module("fleet").ROUTERS
    known = view([3, 1, 1, 2], [3, 1, 1, 0])
    chosen = {name: routers[name](known) for name in ("round-robin", "least-open", "least-waiting")}
    assert {name: [each.choose(None) for _ in range(5)] for name, each in chosen.items()} == {
        "round-robin": [0, 1, 2, 3, 0],
        "least-open": [1, 2, 1, 2, 1],
        "least-waiting": [3, 3, 3, 3, 3],
    }


def test_a_prefix_is_followed_until_its_replica_is_busier() -> None:
    request = module("traffic").SimulatedRequest(0, 0.0, 10, 10, group=7)
    known = view([2, 0, 0], [2, 0, 0], {7: {0}})
    router = module("fleet").PrefixAware(known)
    assert router.choose(request) == 0
    known.open[0] = 3
    assert router.choose(request) != 0


def test_a_router_that_knows_prefixes_computes_fewer_tokens() -> None:
    asked = traffic(rate=24.0, seconds=60.0, groups=40, prefix=512)
    blind, aware = (run(asked, slow(), 8, each) for each in ("least-waiting", "prefix-aware"))
    assert aware.reused > blind.reused + 0.1
    assert aware.first(50) < blind.first(50)


def test_a_slot_keeps_its_prefix_until_it_is_taken_and_the_store_keeps_it_longer() -> None:
    replicas = module("replicas")
    for stored, expected in ((0, False), (1, True)):
        holders: Any = importlib.import_module("collections").defaultdict(set)
        slots = replicas.PrefixSlots(0, shape(slots=1, stored=stored), holders)
        assert not slots.claim(5)
        slots.release(5)
        assert slots.claim(5)
        slots.release(5)
        assert not slots.claim(6)
        slots.release(6)
        assert slots.claim(5) == expected


# Where durations come from.


def test_curves_pass_through_their_points_and_go_on() -> None:
    between = module("replicas").between
    curve = ((1.0, 2.0), (3.0, 4.0), (5.0, 8.0))
    assert [between(curve, each) for each in (1, 2, 3, 4, 5, 6)] == [2, 3, 4, 6, 8, 10]
    assert between(((1.0, 2.0),), 99) == 2.0


def test_durations_come_from_records_and_the_last_of_a_case_counts() -> None:
    record = json.loads((BENCH / "scaling.jsonl").read_text().splitlines()[0])
    harness, measured = module("harness"), module("measured")
    cases = [
        *(("decode", "m, 1 slot, depth 64", 50.0), ("decode", "m, 1 slot, depth 64", 100.0)),
        *(("decode", "m, 4 slots, depth 64", 200.0), ("prefill", "m, 100 tokens", 1000.0)),
    ]
    own = {"unit": "tokens/s", "peer": None}
    records = [
        harness.Record.of(record | own | {"bench": bench, "case": case, "value": value})
        for bench, case, value in cases
    ]
    found = measured.durations_of(records, 0.0)
    assert (found.step(1), found.step(4)) == (0.01, 0.02)
    assert found.chunk(0, 100) == pytest.approx(0.1 - 0.01)
    with pytest.raises(Exception, match=r"no rate of prefill\.py"):
        measured.durations_of(records[:3])


def test_the_script_prints_a_table_and_lines_of_json() -> None:
    script = module("simulate").main
    options = ["--rate", "2", "--seconds", "5", "--replicas", "1", "--replicas", "3"]
    shown = CliRunner().invoke(script, options)
    assert shown.exit_code == 0 and "least-waiting" in shown.output, shown.output
    lines = CliRunner().invoke(script, [*options, "--json", "--chip", "gpu:h100"]).output
    found = [json.loads(line) for line in lines.splitlines()]
    assert [each["replicas"] for each in found] == [1, 3]
    assert all(each["lost"] == 0 and each["first_p50_ms"] > 0 for each in found)
    wrong = CliRunner().invoke(script, [*options, "--chip", "gpu:h100", "--shape", "Llama-3.1-70B"])
    assert wrong.exit_code == 2 and "does not run" in wrong.output
    assert CliRunner().invoke(script, [*options, "--chip", "gpu:none"]).exit_code == 2


# The engine.


@pytest.mark.parametrize(("rate", "prompt", "spread"), [(1, 64, 0.0), (4, 64, 1.0), (6, 200, 0.5)])
def test_a_replica_keeps_the_times_of_the_engine(rate: float, prompt: int, spread: float) -> None:
    lengths = module("traffic").Lengths
    sizes = {"prompt": lengths(prompt, spread), "answer": lengths(40, spread)}
    asked = traffic(rate=rate, seconds=25.0, **sizes)
    bare = dataclasses.replace(slow().durations, overhead=0.0)
    one = slow(durations=bare, queue=10_000, patience=math.inf)
    real = run_in_simulated_time(asked, one)
    simulated = run(asked, one).requests
    assert real.keys() == {each.number for each in simulated}
    for percent in (50, 99):
        for of_engine, of_replica in (
            ({number: times[0] for number, times in real.items()}, "first"),
            ({number: times[1] for number, times in real.items()}, "ended"),
        ):
            theirs = [of_engine[each.number] - each.arrived for each in simulated]
            ours = [getattr(each, of_replica) - each.arrived for each in simulated]
            expected = pytest.approx(np.percentile(theirs, percent), rel=0.1)
            assert np.percentile(ours, percent) == expected


# The page.


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    scaling = module("scaling")
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert [each["name"] for each in scaling.MARKED.finditer(page)] == list(scaling.TABLES)
    assert scaling.filled(page) == page, "run: python bench/scaling.py"


def test_a_wrong_figure_on_the_page_is_noticed() -> None:
    scaling = module("scaling")
    page = f"Words 16.06 stay.\n<!-- table: models -->\n{scaling.models()}<!-- end -->\nMore.\n"
    assert scaling.filled(page) == page
    assert scaling.filled(page.replace("| 16.06", "| 16.07")) == page
