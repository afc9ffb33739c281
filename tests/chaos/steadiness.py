"""Steadiness: compare a server's resources before and after an attack."""

import asyncio
import dataclasses
from typing import Any

from tests.chaos.target import Resources, Target

MOST_GROWTH = 0.10  # allowed growth of memory
MOST_MORE = 2  # allowed growth of file descriptors or threads: the log, a thread of a pool
SETTLE_SECONDS = 120.0


@dataclasses.dataclass
class Steadiness:
    """The resources of a server before an attack."""

    server: Target
    before: Resources
    tracebacks: int

    @classmethod
    async def begin(cls, server: Target) -> "Steadiness":
        """Wait until the server has no open request and record its resources."""
        await server.settle()
        await asyncio.sleep(2.0)
        return cls(server, server.resources(), server.tracebacks())

    async def end(self) -> tuple[dict[str, Any], dict[str, bool]]:
        """Wait until the server has no open request; return figures and promises."""
        is_settled = await self.server.settle(SETTLE_SECONDS)
        before, after = self.before, self.server.resources()
        for _ in range(30):  # connections close a little after their requests
            if self._is_back(after):
                break
            await asyncio.sleep(1.0)
            after = self.server.resources()
        tracebacks = self.server.tracebacks() - self.tracebacks
        figures = {
            "tracebacks": tracebacks,
            "before": dataclasses.asdict(before),
            "after": dataclasses.asdict(after),
        }
        promises = {
            "the server lives": self.server.is_alive,
            "no request stays open": is_settled,
            "no traceback": not tracebacks,
            "memory is back": after.memory <= before.memory * (1 + MOST_GROWTH),
            "file descriptors are back": after.fds <= before.fds + MOST_MORE,
            "threads are back": after.threads <= before.threads + MOST_MORE,
        }
        return figures, promises

    def _is_back(self, after: Resources) -> bool:
        """Say whether memory, file descriptors and threads are back within their limits."""
        before = self.before
        return (
            after.memory <= before.memory * (1 + MOST_GROWTH)
            and after.fds <= before.fds + MOST_MORE
            and after.threads <= before.threads + MOST_MORE
        )
