"""The fair queue: requests and probes that wait for a slot of the engine, ordered fairly.

Filled by the dispatch on the event loop, emptied by the engine's thread; a lock makes both safe.
Each client has an account of the tokens that the engine computed for it, and the client with the
fewest tokens is next (a virtual token counter). A client may fill at most as much of the queue as
it leaves free, so a client that floods the queue leaves room for others. Knows no engine and no
event loop.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from jaxllama.errors import QueueFull
from jaxllama.service.slot_shares import SlotShares, divide_slots

SECONDS_REMEMBERED = 60.0  # after its last request a client still counts as active


class Work(Protocol):
    """A request or a probe of one client."""

    @property
    def client(self) -> str:
        """Name of the client that sent the work, whose account of computed tokens is charged."""

    @property
    def size(self) -> int:
        """Number of tokens by which the work counts towards the limit of waiting tokens."""

    @property
    def slots(self) -> int:
        """Number of slots that the work needs at the same time; 0 for an encoder's work."""

    @property
    def is_probe(self) -> bool:
        """Whether the work is a probe, which computes logits, say, and generates no tokens."""


T = TypeVar("T", bound=Work)


@dataclass
class Account(Generic[T]):
    """Waiting work, held slots and computed tokens of one client."""

    given: int  # tokens computed for it; a new client begins with the lowest of all accounts
    requests: OrderedDict[T, int] = field(default_factory=OrderedDict)  # waiting -> arrival
    probes: OrderedDict[T, int] = field(default_factory=OrderedDict)
    tokens: int = 0  # tokens of waiting work
    running: int = 0  # requests and probes that were handed out and have not ended
    running_probes: int = 0
    held: int = 0  # slots of running work

    @property
    def waiting(self) -> int:
        """Number of requests and probes that wait.

        A probe reads given tokens and generates none.
        """
        return len(self.requests) + len(self.probes)

    def line(self, work: T) -> OrderedDict[T, int]:
        """Return the client's waiting work of the same kind as `work`, as a dict in waiting order.

        Its values are arrival numbers. The kinds are requests, which generate tokens, and probes,
        which generate none.
        """
        return self.probes if work.is_probe else self.requests


@dataclass(frozen=True)
class ClientLoad:
    """The numbers of one client's requests, tokens and slots in the queue and in the engine."""

    client: str
    waiting: int  # requests and probes
    running: int
    slots: int
    tokens: int  # of waiting work


class FairQueue(Generic[T]):
    """Work of all clients that waits for one engine."""

    def __init__(
        self, items: int, tokens: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.items, self.tokens = 0, 0  # waiting work, and its tokens
        self.running = 0  # requests and probes that were handed out and have not ended
        self.shares: SlotShares = divide_slots(1)
        self._most_items, self._most_tokens = items, tokens
        self._clock = clock
        self._lock = threading.RLock()
        self._accounts: dict[str, Account[T]] = {}  # accounts of clients that wait or hold slots
        self._arrivals = 0
        self._running_probes = 0
        self._newest_client = ""
        self._shared_until = 0.0

    def __len__(self) -> int:
        return self.items

    @property
    def is_shared(self) -> bool:
        """Whether several clients use the server, or used it within the last minute."""
        return len(self._accounts) > 1 or self._clock() < self._shared_until

    # On the event loop.

    def check(self, client: str, items: int, tokens: int = 0) -> None:
        """Raise QueueFull unless the client may add `items` requests with `tokens` prompt tokens.

        The new requests and the client's waiting ones together may be at most as many as the queue
        has free places; likewise for their tokens. A client without waiting requests may add any
        number as long as there is any room.
        """
        with self._lock:
            account = self._accounts.get(client)
            count, mine = (account.waiting, account.tokens) if account else (0, 0)
            free, room = self._most_items - self.items, self._most_tokens - self.tokens
        if count == 0 and free > 0 and room > 0:
            return
        if count + items > free:
            raise QueueFull(
                f"{self.items} requests wait already, {count} of them yours; the limit is "
                f"{self._most_items}, and no client may take more than it leaves free; try again "
                f"later"
            )
        if mine + tokens > room:
            raise QueueFull(
                f"prompts of {self.tokens} tokens wait already, {mine} of them yours; the limit "
                f"is {self._most_tokens}, and no client may take more than it leaves free; try "
                f"again later"
            )

    def push(self, work: T) -> None:
        """Put a request or probe at the end of its client's line; checks no limit."""
        with self._lock:
            account = self._accounts.get(work.client)
            if account is None:
                lowest = min((one.given for one in self._accounts.values()), default=0)
                account = self._accounts[work.client] = Account(lowest)
            self._note_client(work.client)
            self._arrivals += 1
            account.line(work)[work] = self._arrivals
            account.tokens += work.size
            self.items += 1
            self.tokens += work.size

    def remove(self, work: T) -> bool:
        """Remove a request or probe from its line; return False if it does not wait there."""
        with self._lock:
            account = self._accounts.get(work.client)
            if account is None or work not in account.line(work):
                return False
            self._take(account, work)
            self._forget_if_done(work.client)
            return True

    def clients(self) -> list[ClientLoad]:
        """Return the numbers of waiting and running requests, slots and tokens of each client."""
        with self._lock:
            return [
                ClientLoad(name, one.waiting, one.running, one.held, one.tokens)
                for name, one in self._accounts.items()
            ]

    # On the engine's thread.

    def pop(self, free: int) -> T | None:
        """Remove and return the next request or probe that fits into `free` slots; None if none.

        A probe reads known tokens and generates none. The caller has to call `ended` when the
        request or probe has ended.
        """
        with self._lock:
            work = self._next(free)
            if work is None:
                return None
            account = self._accounts[work.client]
            self._take(account, work)
            account.running += 1
            account.running_probes += work.is_probe
            account.held += work.slots
            self.running += 1
            self._running_probes += work.is_probe
            return work

    def charge(self, work: T, tokens: int) -> None:
        """Add `tokens`, computed for a running request or probe (`work`), to its client's account.

        A probe reads known tokens and generates none. Clients with fewer tokens in their accounts
        are served first.
        """
        with self._lock:
            self._accounts[work.client].given += tokens

    def ended(self, work: T) -> None:
        """Note that a running request or probe has ended and holds no slot any more."""
        with self._lock:
            account = self._accounts[work.client]
            account.running -= 1
            account.running_probes -= work.is_probe
            account.held -= work.slots
            self.running -= 1
            self._running_probes -= work.is_probe
            self._forget_if_done(work.client)

    def drain(self) -> list[T]:
        """Remove and return all requests and probes that wait."""
        with self._lock:
            found = [
                work
                for account in self._accounts.values()
                for work in (*account.requests, *account.probes)
            ]
            for work in found:
                self.remove(work)
            return found

    # Called under the lock.

    def _next(self, free: int) -> T | None:
        """Return the next request or probe, or None if it does not fit into `free` slots.

        Clients with the fewest computed tokens come first. A client that holds many slots may not
        use the reserved slots. Later work does not overtake work that does not fit: it waits for
        enough slots. Work that needs no slot waits for none.
        """
        reserved = self.shares.reserved if self.is_shared else 0
        heavy_waits = is_full = False
        for account, work in self._candidates():
            needed = min(work.slots, self.shares.slots)
            if not needed:
                return work
            kept = 0 if self.shares.is_light(account.held, needed) else reserved
            if is_full or (kept and heavy_waits):
                continue
            if needed <= free - kept:
                return work
            is_full = not kept
            heavy_waits = heavy_waits or kept > 0
        return None

    def _candidates(self) -> Iterator[tuple[Account[T], T]]:
        """Yield (account, work) for the oldest request of each client, and for its oldest probe.

        `account` is the client's record. A probe generates no tokens; it is left out while its
        client runs one or too many run. The client with the fewest computed tokens comes first;
        among equals, the one that holds the fewest slots, then the oldest work.
        """
        may_probe = self._running_probes < self.shares.probes
        found = []
        for account in self._accounts.values():
            lines = [account.requests]
            if may_probe and not account.running_probes:
                lines.append(account.probes)
            for work, arrival in (next(iter(line.items())) for line in lines if line):
                found.append((account.given, account.held, arrival, account, work))
        return (each[3:] for each in sorted(found, key=lambda each: each[:3]))

    def _take(self, account: Account[T], work: T) -> None:
        del account.line(work)[work]
        account.tokens -= work.size
        self.items -= 1
        self.tokens -= work.size

    def _forget_if_done(self, client: str) -> None:
        """Delete the account of a client that neither waits nor holds a slot."""
        account = self._accounts[client]
        if not account.waiting and not account.running:
            del self._accounts[client]

    def _note_client(self, client: str) -> None:
        """Mark the server as shared for the next minute if other clients have used it, too.

        `client` is the client whose request or probe was added.
        """
        if not client:  # the server itself
            return
        if len(self._accounts) > 1 or self._newest_client not in ("", client):
            self._shared_until = self._clock() + SECONDS_REMEMBERED
        self._newest_client = client
