"""Parcels: a request on its way from the gateway to a replica, and the parts of the answer.

Pickled by Ray. Knows no Ray and no HTTP library.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Parcel:
    """One request, as the client sent it, with what the router reads."""

    method: str
    target: str  # path and query
    headers: Headers
    body: bytes = field(repr=False)
    blocks: tuple[int, ...] = ()  # of its prompt: see prefixes.py
    avoid: frozenset[str] = frozenset()  # replicas to ask only if there is no other


@dataclass(frozen=True)
class Accepted:
    """The first part of an answer: a replica has the request."""

    replica: str


@dataclass(frozen=True)
class Head:
    """Status and headers of a response; its body follows as bytes."""

    status: int
    headers: Headers
    last_words: bytes = b""  # of a stream: what the client is to be told if the rest is lost

    @property
    def is_stream(self) -> bool:
        """Say whether the body is a stream, to be sent to the client as it comes."""
        return bool(self.last_words)


Part = Accepted | Head | bytes
Carry = Callable[[Parcel], AsyncIterator[Part]]  # raises ReplicaLost, QueueFull
