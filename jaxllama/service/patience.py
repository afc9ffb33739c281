"""Patience: queueing that waits for room, for the later parts of a request that has begun."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jaxllama.errors import QueueFull

T = TypeVar("T")

SECONDS_PER_TRY = 0.1  # until a part tries again to get into a full queue


async def until_room(queue: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `queue()`; while it raises QueueFull, wait and call it again."""
    while True:
        try:
            return await queue()
        except QueueFull:
            await asyncio.sleep(SECONDS_PER_TRY)
