"""Terminations: SIGTERM at any moment under load; no answer ends without a word.

Every time a new server is started, several clients ask it all the time, and it is stopped after a
random time. Some servers have no time to finish their answers and must tell their clients. While
one server is under load or ends, another one starts.
"""

import asyncio
import random
import signal
from collections import Counter

from tests.chaos.asking import session
from tests.chaos.endings import ending, question
from tests.chaos.report import Report, within
from tests.chaos.target import ATTACKER, Target, target

SERVERS = 2  # at the same time
CLIENTS = 8  # of each
LONGEST = 2.0  # seconds of load before the signal
DRAINS = (0.2, 1.0, 30.0)  # seconds that a server has to finish its answers
SPARE_SECONDS = 15.0  # for the end of the process, after that
MOST_SECONDS = 3600.0  # for all terminations together
BEFORE = ("whole", "told")  # fair endings of requests that were sent before the signal
AFTER = (*BEFORE, "refused", "unanswered")  # and after it


async def attack(python: str, report: Report, *, count: int, seed: int) -> None:
    """Stop `count` servers under load; report how the answers ended."""
    endings: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    tracebacks = 0
    numbers = within(MOST_SECONDS, count)

    async def stop_servers() -> None:
        nonlocal tracebacks
        for number in numbers:
            chance = random.Random(f"{seed}, {number}")
            drain = chance.choice(DRAINS)
            async with target(python, (f"--drain-timeout={drain}",)) as server:
                endings.update(await terminate(server, chance))
                codes[await exit_code(server, drain)] += 1
                tracebacks += server.tracebacks()

    async with asyncio.TaskGroup() as group:
        for _ in range(SERVERS):
            group.create_task(stop_servers())
    report.promise(
        "terminations",
        {
            "all servers end with 0": set(codes) == {"0"},
            "no answer ends without a word": not any(is_unfair(each) for each in endings),
            "some answers are whole": endings["before: whole"] > 0,
            "no traceback": not tracebacks,
        },
        terminations=codes.total(),
        exit_codes=dict(codes),
        endings=dict(sorted(endings.items())),
        tracebacks=tracebacks,
    )


async def terminate(server: Target, chance: random.Random) -> Counter[str]:
    """Load a server, send it SIGTERM, and count the endings of all answers."""
    endings: Counter[str] = Counter()
    signalled = asyncio.Event()

    async def keep_asking(number: int) -> None:
        own = random.Random(f"{chance.random()}, {number}")
        told = 0
        while told < 3:
            when = "after" if signalled.is_set() else "before"
            found = await ending(http, server.url, question(own))
            endings[f"{when}: {found}"] += 1
            if signalled.is_set() and found != "whole":
                told += 1
                await asyncio.sleep(own.uniform(0, 0.1))

    async with session(ATTACKER) as http, asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(keep_asking(number))
        await asyncio.sleep(chance.uniform(0, LONGEST))
        server.process.send_signal(signal.SIGTERM)
        signalled.set()
    return endings


async def exit_code(server: Target, drain: float) -> str:
    """Wait for the end of a server's process; return its exit code, or "alive"."""
    try:
        async with asyncio.timeout(drain + SPARE_SECONDS):
            while server.is_alive:
                await asyncio.sleep(0.05)
    except TimeoutError:
        return "alive"
    return str(server.process.returncode)


def is_unfair(counted: str) -> bool:
    """Say whether a counted ending, such as "before: cut", breaks the promise."""
    when, _, found = counted.partition(": ")
    return found not in (BEFORE if when == "before" else AFTER)
