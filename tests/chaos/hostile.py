"""Thousands of hostile requests, beside canaries that must not be affected."""

import asyncio
import contextlib
import re
from collections import Counter

from tests.chaos.beside import attack_beside_canaries
from tests.chaos.hostile_requests import Shot, hostile
from tests.chaos.report import Report, within
from tests.chaos.target import Target

AT_ONCE = 16
WHOLE_SECONDS = 60.0  # to wait for the answer to a complete request
PART_SECONDS = 1.0  # to wait for the answer to an incomplete request
MOST_SECONDS = 3600.0  # for all requests together
MOST_BYTES = 1 << 20  # largest part of an answer that is read
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
PROVISIONAL = re.compile(rb"\AHTTP/1\.[01] 1\d\d.*?\r\n\r\n", re.DOTALL)
KEPT_EXAMPLES = 5


class Outcomes:
    """The server's statuses by kind of request."""

    def __init__(self) -> None:
        self.by_kind: dict[str, Counter[str]] = {}
        self.errors: list[str] = []  # requests with a status of 500
        self.unanswered: list[str] = []  # complete requests without an answer

    @property
    def total(self) -> int:
        """The number of requests."""
        return sum(found.total() for found in self.by_kind.values())

    def add(self, kind: str, number: int, shot: Shot, status: str) -> None:
        """Count one request."""
        self.by_kind.setdefault(kind, Counter())[status] += 1
        told = f"{kind} {number}, {status}: {shot.raw[:3000]!r}"
        if status == "500":
            self.errors.append(told)
        if status in ("closed", "silent") and shot.is_whole:
            self.unanswered.append(told)


async def attack(server: Target, report: Report, *, count: int, seed: int) -> None:
    """Send `count` hostile requests; report the canaries and the server's resources."""
    outcomes, promises, figures = await attack_beside_canaries(
        server,
        lambda: fire(server, max(300, count // 20), seed + 1),
        lambda: fire(server, count, seed),
    )
    report.promise(
        "hostile requests",
        promises
        | {"no answer is a 500": not outcomes.errors, "all are sent": outcomes.total == count},
        requests=outcomes.total,
        statuses={kind: dict(found) for kind, found in sorted(outcomes.by_kind.items())},
        answered_500=len(outcomes.errors),
        examples_500=[each[:600] for each in outcomes.errors[:KEPT_EXAMPLES]],
        whole_but_unanswered=len(outcomes.unanswered),
        examples_unanswered=[each[:300] for each in outcomes.unanswered[:KEPT_EXAMPLES]],
        **figures,
    )


async def fire(server: Target, count: int, seed: int) -> Outcomes:
    """Send `count` hostile requests, several at once, and return the outcomes."""
    outcomes, numbers = Outcomes(), within(MOST_SECONDS, count)

    async def send() -> None:
        for number in numbers:
            kind, shot = hostile(seed, number)
            outcomes.add(kind, number, shot, await status_of(server.port, shot))

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    return outcomes


async def status_of(port: int, shot: Shot) -> str:
    """Send one request; return the status of the answer, or the kind of failure."""
    answer, how = b"", "closed"
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return "no connection"
    with contextlib.suppress(OSError):
        try:
            async with asyncio.timeout(WHOLE_SECONDS if shot.is_whole else PART_SECONDS):
                writer.write(shot.raw)
                with contextlib.suppress(OSError):  # the server may answer before it has read all
                    await writer.drain()
                while len(answer) < MOST_BYTES and (more := await reader.read(1 << 16)):
                    answer += more
        except TimeoutError:
            how = "silent"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    found = STATUS.match(PROVISIONAL.sub(b"", answer))
    return found[1].decode() if found else how
