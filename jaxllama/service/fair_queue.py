"""The fair queue: who waits for the engine, and who is next.

Used by the service, in front of the engine's own queue. Each client has a line of its own; next is
the head of the line of whoever has been given the least, counted in tokens. A client may fill at
most as much of the queue as it leaves free, so one that floods it always leaves room for others.
Plain Python: no clock, no tasks, no requests.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

from jaxllama.errors import QueueFull

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of clients, each with what it costs and how much room it takes, both in tokens."""

    def __init__(self, items: int, tokens: int) -> None:
        self.items, self.tokens = 0, 0  # that wait
        self._most_items, self._most_tokens = items, tokens
        self._lines: dict[str, OrderedDict[T, tuple[int, int]]] = {}  # item -> cost, size
        self._given: dict[str, float] = {}  # to each client that waits or is being served
        self._served: dict[str, int] = {}  # items that were handed out and not ended
        self._floor = 0.0  # what newcomers are taken to have had

    def __len__(self) -> int:
        return self.items

    def check(self, client: str, items: int, tokens: int = 0) -> None:
        """Refuse what does not fit; whoever has nothing waiting needs only any room at all."""
        line = self._lines.get(client)
        mine = sum(size for _, size in line.values()) if line else 0
        count = len(line) if line else 0
        free, room = self._most_items - self.items, self._most_tokens - self.tokens
        if count == 0 and free > 0 and room > 0:
            return
        if count + items > free:
            raise QueueFull(
                f"{self.items} requests wait already, {count} of them yours; the limit is "
                f"{self._most_items}, and nobody may take more than is left free; try again later"
            )
        if mine + tokens > room:
            raise QueueFull(
                f"prompts of {self.tokens} tokens wait already, {mine} of them yours; the limit "
                f"is {self._most_tokens}, and nobody may take more than is left free; try again "
                f"later"
            )

    def push(self, client: str, item: T, *, cost: int, size: int) -> None:
        """Put an item at the end of its client's line."""
        if client not in self._given:
            self._given[client] = self._floor
        self._lines.setdefault(client, OrderedDict())[item] = (cost, size)
        self.items += 1
        self.tokens += size

    def pop(self) -> T | None:
        """Hand out the next item, if one waits; call `ended` when it is over."""
        if not self._lines:
            return None
        client = min(self._lines, key=self._given.__getitem__)
        item = next(iter(self._lines[client]))
        cost = self._take(client, item)
        self._floor = max(self._floor, self._given[client])
        self._given[client] += cost
        self._served[client] = self._served.get(client, 0) + 1
        return item

    def remove(self, client: str, item: T) -> bool:
        """Take an item out of its line; False if it does not wait."""
        if item not in self._lines.get(client, ()):
            return False
        self._take(client, item)
        self._forget(client)
        return True

    def ended(self, client: str, unused: int) -> None:
        """An item that was handed out is over and cost less than was counted."""
        self._given[client] -= unused
        self._served[client] -= 1
        if not self._served[client]:
            del self._served[client]
        self._forget(client)

    def _take(self, client: str, item: T) -> int:
        cost, size = self._lines[client].pop(item)
        if not self._lines[client]:
            del self._lines[client]
        self.items -= 1
        self.tokens -= size
        return cost

    def _forget(self, client: str) -> None:
        """Keep nothing of a client that neither waits nor is served."""
        if client not in self._lines and client not in self._served:
            del self._given[client]
