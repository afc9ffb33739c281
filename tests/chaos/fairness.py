"""Fairness: the effect of one key's load on another key's client, a line of JSON per scenario.

Each scenario measures a light client alone, then beside one heavy client. It gives figures, not
promises: they depend on the machine, so compare two versions on the same one.
"""

import asyncio
import contextlib
import json
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.chaos.asking import PATIENCE, Client, Waits, client, statuses, words
from tests.chaos.light import light_process
from tests.chaos.report import Report
from tests.chaos.target import ATTACKER, NEIGHBOUR, Target

LONG = 1_900_000  # bytes of a body just below the limit
CAP_SECONDS = 180.0  # longest time of one scenario
HEAD_START = 0.3  # seconds by which the heavy requests come first
HEALTH_SECONDS = 5.0  # time limit of /health


@dataclass(frozen=True)
class Sizes:
    """The size of each scenario."""

    scores: int = 300
    embeddings: int = 24
    regexes: int = 60
    tokenizations: int = 12
    completions: int = 1000
    idle: int = 1200
    frozen_seconds: float = 30.0
    samples: int = 60
    cap_seconds: float = CAP_SECONDS


QUICK = Sizes(
    scores=40,
    embeddings=6,
    regexes=12,
    tokenizations=4,
    completions=100,
    idle=300,
    frozen_seconds=5.0,
    samples=3,
    cap_seconds=8.0,
)


@dataclass(frozen=True)
class Stage:
    """A server with a heavy client and a light one."""

    server: Target
    heavy: Client
    light: Client
    report: Report
    sizes: Sizes


@contextlib.asynccontextmanager
async def stage(server: Target, report: Report, sizes: Sizes) -> AsyncIterator[Stage]:
    """Yield a heavy client and a light client of a server."""
    async with client(server, ATTACKER) as heavy, client(server, NEIGHBOUR) as light:
        yield Stage(server, heavy, light, report, sizes)


async def beside(
    at: Stage, name: str, heavy: Awaitable[Counter[int]], *, pause: float = 0.1
) -> None:
    """Report the light client's seconds to the first token, alone and beside the heavy requests."""
    alone, crowded = Waits(), Waits()
    with light_process(at.server.url, NEIGHBOUR) as light:
        for _ in range(at.sizes.samples // 3):
            await light.first_token(alone)
        started = time.perf_counter()
        task = asyncio.ensure_future(heavy)
        await asyncio.sleep(HEAD_START)
        await light.first_token(crowded)
        while not task.done() and len(crowded) < at.sizes.samples:
            if time.perf_counter() - started > at.sizes.cap_seconds:
                break
            await asyncio.sleep(pause)
            await light.first_token(crowded)
    at.report.figure(
        name,
        unit="s to the first token",
        alone=alone.figures,
        beside=crowded.figures,
        heavy=await ended(task),
    )


async def ended(task: "asyncio.Future[Counter[int]]") -> dict[str, int] | str:
    """Return the counts of the heavy requests' statuses; cancel the requests if they still run."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        return "still running; given up"
    return {str(status): count for status, count in sorted(task.result().items())}


# Scenarios.


async def twelve_scores(at: Stage) -> None:
    """Send twelve scores of one key."""
    await beside(at, "twelve scores", statuses(score(at.heavy, number) for number in range(12)))


async def many_scores(at: Stage) -> None:
    """Send hundreds of scores of one key."""
    count = at.sizes.scores
    heavy = statuses(score(at.heavy, 100 + number) for number in range(count))
    await beside(at, f"{count} scores", heavy)


def score(heavy: Client, number: int) -> Awaitable[tuple[int, bytes]]:
    """Send one score of 16 continuations of a long prompt."""
    continuations = [f" {words(6, each)}" for each in range(16)]
    return heavy.ask("/score", {"prompt": words(400, number), "continuations": continuations})


async def embeddings(at: Stage) -> None:
    """Send embeddings of eight long texts each."""

    def one(number: int) -> Awaitable[tuple[int, bytes]]:
        texts = [words(200, f"{number}, {each}") for each in range(8)]
        return at.heavy.ask("/v1/embeddings", {"input": texts})

    count = at.sizes.embeddings
    await beside(at, f"{count} embeddings", statuses(one(number) for number in range(count)))


async def regexes(at: Stage) -> None:
    """Send regular expressions that are expensive to compile."""

    def one(number: int) -> Awaitable[tuple[int, bytes]]:
        asked = {"prompt": "a", "max_tokens": 4, "regex": f"(a{{1000}}){{1000}}b{number}"}
        return at.heavy.ask("/v1/completions", asked)

    count = at.sizes.regexes
    await beside(at, f"{count} regexes", statuses(one(number) for number in range(count)))


async def tokenizations(at: Stage) -> None:
    """Tokenize texts as long as a body may be."""
    count = at.sizes.tokenizations
    heavy = statuses(at.heavy.ask("/tokenize", long_text(each)) for each in range(count))
    await beside(at, f"{count} tokenizations of 1.9 MB", heavy)


def long_text(number: int) -> bytes:
    """Return the body of a long tokenization."""
    piece = words(1000, number)
    return json.dumps({"text": (f"{piece} " * (LONG // len(piece) + 1))[:LONG]}).encode()


async def completions(at: Stage) -> None:
    """Send a flood of completions of one key; the light client sends one request a second."""

    def one(number: int) -> Awaitable[tuple[int, bytes]]:
        asked = {"prompt": words(20, f"flood {number}"), "max_tokens": 64, "ignore_eos": True}
        return at.heavy.ask("/v1/completions", asked)

    count = at.sizes.completions
    heavy = statuses(one(number) for number in range(count))
    await beside(at, f"{count} completions", heavy, pause=1.0)


async def ambiguous_grammar(at: Stage) -> None:
    """Send a grammar whose number of parses grows; measure another client's stream."""
    alone, slow = Waits(), Waits()
    await at.light.between_tokens(64, alone)
    asked = {"prompt": "Hello", "max_tokens": 200, "grammar": "root ::= root root | [a-z ]"}
    tasks = [asyncio.ensure_future(at.heavy.ask("/v1/completions", asked)) for _ in range(2)]
    await asyncio.sleep(1.0)
    await at.light.between_tokens(64, slow)
    done, late = await asyncio.wait(tasks, timeout=at.sizes.cap_seconds)
    for task in late:
        task.cancel()
    answers = [task.result() for task in done]
    at.report.figure(
        "ambiguous grammar",
        unit="s between tokens",
        alone=alone.figures,
        beside=slow.figures,
        alone_seconds=round(sum(alone.seconds), 2),
        beside_seconds=round(sum(slow.seconds), 2),
        heavy=[f"{status}: {reason_of(answer)}" for status, answer in answers],
        heavy_given_up=len(late),
    )


def reason_of(answer: bytes) -> str:
    """Return the finish reason of a completion, or the reason why it was refused."""
    with contextlib.suppress(ValueError, LookupError):
        whole: dict[str, Any] = json.loads(answer)
        if "choices" in whole:
            return str(whole["choices"][0]["finish_reason"])
        return str(whole["error"]["message"])[:120]
    return repr(answer[:120])


async def idle_connections(at: Stage) -> None:
    """Open connections that send nothing; measure whether /health still answers."""
    alone = await healths(at.server, 1.0)
    count = at.sizes.idle
    allow_files(count + 500)
    writers = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", at.server.port)
            writers.append(writer)
    crowded = await healths(at.server, 12.0 if at.sizes.idle > 1000 else 3.0)
    for writer in writers:
        writer.close()
    at.report.figure(
        f"{count} idle connections",
        unit="s of /health",
        alone=alone.figures,
        beside=crowded.figures,
    )


async def healths(server: Target, seconds: float) -> Waits:
    """Measure repeatedly how long /health takes without a key, and count its failures."""
    waits = Waits()
    limit = aiohttp.ClientTimeout(total=HEALTH_SECONDS)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as http,
                http.get(f"{server.url}/health") as response,
            ):
                await response.read()
            if response.status == 200:
                waits.seconds.append(time.perf_counter() - started)
            else:
                waits.failures[f"status {response.status}"] += 1
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            waits.failures[type(error).__name__] += 1
        await asyncio.sleep(0.1)
    return waits


def allow_files(count: int) -> None:
    """Raise this process's limit of open files to `count`, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def frozen(at: Stage) -> None:
    """Stop the server's process for a while; report how twelve running requests end."""
    started = [asyncio.Event() for _ in range(12)]

    async def one(number: int) -> str:
        asked = {"prompt": words(8, f"frozen {number}"), "max_tokens": 100, "ignore_eos": True}
        reason = "cut off"
        try:
            async for event in at.heavy.stream(asked):
                started[number].set()
                if "error" in event:
                    return f"error: {event['error'].get('message')}"[:120]
                reasons = [choice.get("finish_reason") for choice in event.get("choices", [])]
                reason = next(filter(None, reasons), reason)
        except aiohttp.ClientError as error:
            return type(error).__name__
        finally:
            started[number].set()
        return reason

    tasks = [asyncio.ensure_future(one(number)) for number in range(12)]
    await asyncio.gather(*(event.wait() for event in started))
    at.server.freeze()
    await asyncio.sleep(at.sizes.frozen_seconds)
    at.server.thaw()
    done, late = await asyncio.wait(tasks, timeout=PATIENCE)
    for task in late:
        task.cancel()
    outcomes = Counter(task.result() for task in done)
    outcomes["still running"] += len(late)
    seconds = at.sizes.frozen_seconds
    at.report.figure(f"stopped for {seconds:g} s", unit="requests of 12", ended=dict(+outcomes))


async def memory(at: Stage) -> None:
    """Measure the memory before, during and after six long tokenizations."""
    before = at.server.resources()
    task = asyncio.ensure_future(
        statuses(at.heavy.ask("/tokenize", long_text(each)) for each in range(6))
    )
    peak = before.memory
    while not task.done():
        peak = max(peak, at.server.resources().memory)
        await asyncio.sleep(0.05)
    await asyncio.sleep(5.0)
    after = at.server.resources()
    at.report.figure(
        "six tokenizations of 1.9 MB",
        unit="MiB",
        before=before.memory,
        peak=peak,
        after=after.memory,
        heavy=await ended(task),
    )


SCENARIOS: tuple[Callable[[Stage], Awaitable[None]], ...] = (
    twelve_scores,
    many_scores,
    embeddings,
    regexes,
    ambiguous_grammar,
    completions,
    idle_connections,
    frozen,
    tokenizations,
    memory,
)
