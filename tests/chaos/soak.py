"""A soak: traffic of all APIs for as long as you like, beside canaries, and what the server holds.

Traffic runs in rounds of a minute. After each round the server comes to rest and its resources are
read. Once the first quarter of the rounds is over, they must not grow any more.
"""

import asyncio
import contextlib
import dataclasses
import random
import statistics
import tempfile
import time
from collections import Counter
from typing import Any

import aiohttp

from tests.chaos.asking import client
from tests.chaos.canary import Canaries
from tests.chaos.report import Report
from tests.chaos.soak_traffic import Errand, errand
from tests.chaos.target import ATTACKER, NEIGHBOUR, Resources, Target, target

AT_ONCE = 12
ROUND_SECONDS = 60.0
SETTLE_SECONDS = 120.0
PATIENCE = 300.0  # seconds that an errand may take
MOST_GROWTH = 0.05  # of memory, after the first quarter
MOST_MORE = 2  # file descriptors, threads, tasks
OPTIONS = ("--prompt-cache-mib=48",)  # is full after some rounds


@dataclasses.dataclass(frozen=True)
class Held:
    """What the server holds at rest, after a round."""

    resources: Resources
    tasks: int
    programs_compiled: int
    recompilations: int

    @property
    def figures(self) -> dict[str, Any]:
        """All numbers in one object."""
        own = dataclasses.asdict(self)
        return own.pop("resources") | own


async def soak(python: str, report: Report, *, minutes: float, seed: int) -> None:
    """Run rounds for so many minutes; report each of them and the promises of all."""
    with tempfile.TemporaryDirectory() as sessions:
        options = (*OPTIONS, f"--dialect-option=exllama.sessions={sessions}")
        async with target(python, options) as server, client(server, NEIGHBOUR) as neighbour:
            canaries = Canaries(neighbour)
            await canaries.learn()
            await rounds(server, report, canaries, minutes=minutes, seed=seed)


async def rounds(
    server: Target, report: Report, canaries: Canaries, *, minutes: float, seed: int
) -> None:
    """Run one round after the other and judge what the server holds in the end."""
    held: list[Held] = []
    outcomes: Counter[str] = Counter()
    chance, until = random.Random(seed), time.monotonic() + 60 * minutes
    tracebacks = server.tracebacks()
    is_settled = True
    while time.monotonic() < until and server.is_alive and is_settled:
        seconds = min(ROUND_SECONDS, max(1.0, until - time.monotonic()))
        async with canaries.singing(streams=2):
            outcomes += await traffic(server, seconds, chance.getrandbits(32))
        is_settled = await server.settle(SETTLE_SECONDS)
        await asyncio.sleep(1.0)  # connections close a little after their requests
        held.append(await what_is_held(server))
        left = max(0.0, until - time.monotonic()) / 60
        report.figure(
            "soak round",
            number=len(held),
            minutes_left=round(left, 1),
            requests=outcomes.total(),
            canaries=canaries.outcomes.total(),
            changed=len(canaries.changed),
            **held[-1].figures,
        )
    bad = {name: count for name, count in outcomes.items() if is_bad(name)}
    report.promise(
        "soak",
        {
            "the server lives": server.is_alive,
            "no request stays open": is_settled,
            "no answer is wrong": not bad,
            "no traceback": server.tracebacks() == tracebacks,
            **canaries.hold,
            **flat(held),
        },
        minutes=minutes,
        requests=outcomes.total(),
        outcomes=dict(sorted(outcomes.items())),
        **canaries.figures,
    )


def is_bad(outcome: str) -> bool:
    """Say whether an outcome breaks a promise; a full queue's refusal and leaving do not."""
    return not outcome.endswith((" 200", " 201", " left", " 429", " 503"))


def flat(held: list[Held]) -> dict[str, bool]:
    """Return the promises about resources; those after the first quarter are compared."""
    later = held[len(held) // 4 :]
    if not later:
        return {"resources are read": False}
    third = max(1, len(later) // 3)
    first, last = later[:third], later[-third:]

    def median(of: list[Held], name: str) -> float:
        return statistics.median(each.figures[name] for each in of)

    memory = [statistics.median(each.resources.memory for each in of) for of in (first, last)]
    promises = {"memory is flat": memory[1] <= memory[0] * (1 + MOST_GROWTH)}
    for name in ("fds", "threads", "tasks"):
        more = median(last, name) - median(first, name)
        promises[f"{name} are flat"] = more <= MOST_MORE
    promises["no program is compiled late"] = (
        last[-1].programs_compiled == first[0].programs_compiled and last[-1].recompilations == 0
    )
    return promises


async def what_is_held(server: Target) -> Held:
    """Read the resources of the server's processes, and its metrics."""
    headers = {"Authorization": f"Bearer {NEIGHBOUR}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"{server.url}/metrics") as response,
    ):
        text = await response.text()
    metrics = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))

    def metric(name: str) -> int:
        return int(float(metrics[f"jaxllama_{name}"]))

    return Held(
        server.resources(),
        metric("tasks"),
        metric("programs_compiled_total"),
        metric("recompilations_total"),
    )


async def traffic(server: Target, seconds: float, seed: int) -> Counter[str]:
    """Run errands, several at a time, for so many seconds; count them by API and outcome."""
    outcomes: Counter[str] = Counter()
    until = time.monotonic() + seconds
    connector = aiohttp.TCPConnector(limit=0)
    limits = aiohttp.ClientTimeout(total=PATIENCE)

    async def keep_asking(number: int, http: aiohttp.ClientSession) -> None:
        chance = random.Random(f"{seed}, {number}")
        while time.monotonic() < until:
            chosen = errand(chance)
            outcomes[f"{chosen.name} {await run(http, server, chosen)}"] += 1

    async with aiohttp.ClientSession(connector=connector, timeout=limits) as http:
        await asyncio.gather(*(keep_asking(number, http) for number in range(AT_ONCE)))
    return outcomes


async def run(http: aiohttp.ClientSession, server: Target, chosen: Errand) -> str:
    """Run one errand; return the status of its answer, "left", or the kind of failure."""
    url, headers = f"{server.url}{chosen.path}", chosen.headers(ATTACKER)
    try:
        if chosen.is_socket:
            return await talk(http, url, headers, chosen)
        method = "GET" if chosen.body is None else "POST"
        async with http.request(method, url, json=chosen.body, headers=headers) as response:
            if chosen.stay is None:
                await response.read()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(chosen.stay):
                        await response.read()
                        return str(response.status)
                response.close()
                return "left"
            return str(response.status)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return type(error).__name__


async def talk(
    http: aiohttp.ClientSession, url: str, headers: dict[str, str], chosen: Errand
) -> str:
    """Send a message over a WebSocket; return 200 when it is answered, else what is wrong."""
    async with asyncio.timeout(PATIENCE), http.ws_connect(url, headers=headers) as socket:
        await socket.send_json(chosen.body)
        is_stopped = False
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT or '"error"' in message.data:
                return str(message.data)[:200]
            if chosen.ends in message.data:
                return "200"
            if not is_stopped:  # otherwise an answer may fill the context
                await socket.send_json({"type": "stop"})
                is_stopped = True
    return "closed"
