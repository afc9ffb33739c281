"""An attack beside canaries: what every long attack measures and promises.

Used by the attacks themselves. Knows no request of theirs.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NamedTuple, TypeVar

from tests.chaos.asking import client
from tests.chaos.canary import Canaries
from tests.chaos.steadiness import Steadiness
from tests.chaos.target import NEIGHBOUR, Target

Result = TypeVar("Result")


class Beside(NamedTuple, Generic[Result]):
    """The result of an attack, with the promises and figures of canaries and resources."""

    result: Result
    promises: dict[str, bool]
    figures: dict[str, Any]


async def attack_beside_canaries(
    server: Target, warm_up: Callable[[], Awaitable[Any]], attack: Callable[[], Awaitable[Result]]
) -> Beside[Result]:
    """Run an attack while canaries sing; `warm_up` first allocates what is used once."""
    async with client(server, NEIGHBOUR) as neighbour:
        canaries = Canaries(neighbour)
        await canaries.learn()
        await warm_up()
        steadiness = await Steadiness.begin(server)
        started = time.monotonic()
        async with canaries.singing():
            result = await attack()
            seconds = time.monotonic() - started
        figures, promises = await steadiness.end()
    figures = {"seconds": round(seconds, 1), **canaries.figures, **figures}
    return Beside(result, canaries.hold | promises, figures)
