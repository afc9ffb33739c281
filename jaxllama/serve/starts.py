"""The starts of requests: a few in each turn of the event loop, in turn among the clients.

Used by the application before each handler. If one client sends a thousand requests at a time, the
event loop would otherwise run all their handlers before it reads another client's request, because
it works in order of arrival. Knows clients by name, no HTTP.
"""

import asyncio
from collections import OrderedDict, deque

STARTS = 4  # requests that start in one turn of the event loop; a start takes about a millisecond


class RequestStarts:
    """Delays the handlers of requests while many requests arrive at the same time."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # by client
        self._started = 0  # in this turn of the event loop

    async def wait(self, client: str) -> None:
        """Return when a request of this client may start: at once, unless too many start now."""
        if not self._started:
            asyncio.get_running_loop().call_soon(self._begin_turn)
        if self._started < STARTS:
            self._started += 1
            return
        start = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(start)
        await start

    def _begin_turn(self) -> None:
        """Start the requests that waited longest, one of each client after the other."""
        self._started = 0
        while self._waiting and self._started < STARTS:
            client, starts = self._waiting.popitem(last=False)
            start = starts.popleft()
            if starts:
                self._waiting[client] = starts  # behind all other clients
            if not start.done():  # done: the request was cancelled
                start.set_result(None)
                self._started += 1
        if self._started:
            asyncio.get_running_loop().call_soon(self._begin_turn)
