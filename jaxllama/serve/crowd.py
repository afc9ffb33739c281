"""The crowd: a server's open connections, and the choice of one to close when there are too many.

Each connection registers itself. A connection is idle while it has no request: nothing was sent
yet, only part of a head came, or it is kept open after an answer. Knows addresses, no HTTP.

At the limit of an address or of the whole server, the longest idle connection is closed for the new
one: of the same address, or of the address with most connections. If none is idle, the new
connection takes a place in a small reserve, which serves only routes for operators. So `/health` is
answered however many connections there are.
"""

import ipaddress
from collections.abc import Iterable
from typing import Protocol

RESERVE = 32  # connections beyond the bounds, for /health, /ready and /metrics
SITE = 64  # leading bits of an IPv6 address that name one client's network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class CrowdMember(Protocol):
    """The part of a connection that the crowd uses."""

    address: str

    def evict(self) -> None:
        """Close this idle connection to make room for another."""


class Crowd:
    """The open connections of one server."""

    def __init__(self, most: int, most_per_address: int, trusted: Iterable[str] = ()) -> None:
        """Make an empty set of connections, with limits for all and for those from one address.

        At most `most` connections may be open, and `most_per_address` from one address. 0 means no
        limit for an address; addresses in the networks `trusted` have no such limit either.
        """
        self._most, self._most_per_address = most, most_per_address
        self._trusted = [ipaddress.ip_network(each) for each in trusted]
        self._members: dict[CrowdMember, str] = {}  # member -> group of its address
        self._counts: dict[str, int] = {}  # members of each group
        # Idle members of each group, longest idle first.
        self._idle: dict[str, dict[CrowdMember, None]] = {}
        self._spares: set[CrowdMember] = set()  # members in reserve

    def __len__(self) -> int:
        return len(self._members)

    def admit(self, member: CrowdMember) -> bool:
        """Add a new connection as idle; return False if there is no room for it.

        An idle connection is closed if that makes room. If none is idle, up to RESERVE
        connections are admitted beyond the limits (`is_spare`), for health checks.
        """
        group = group_of(member.address)
        crowded = self._find_full_group(member, group)
        is_spare = False
        if crowded is not None:
            oldest = next(iter(self._idle.get(crowded, ())), None)
            if oldest is None and len(self._spares) >= RESERVE:
                return False
            is_spare = oldest is None or oldest in self._spares
            if oldest is not None:
                self.remove(oldest)
                oldest.evict()
        self._members[member] = group
        self._counts[group] = self._counts.get(group, 0) + 1
        if is_spare:
            self._spares.add(member)
        self.set_idle(member)
        return True

    def remove(self, member: CrowdMember) -> None:
        """Remove a closed connection; does nothing if it was removed already."""
        if member not in self._members:
            return
        self.set_busy(member)
        self._spares.discard(member)
        group = self._members.pop(member)
        self._counts[group] -= 1
        if not self._counts[group]:
            del self._counts[group]

    def set_idle(self, member: CrowdMember) -> None:
        """Mark a connection as waiting for a request."""
        if member in self._members:
            self._idle.setdefault(self._members[member], {})[member] = None

    def set_busy(self, member: CrowdMember) -> None:
        """Mark a connection as having a request."""
        group = self._members.get(member, "")
        idle = self._idle.get(group, {})
        idle.pop(member, None)
        if not idle:
            self._idle.pop(group, None)

    def is_spare(self, member: CrowdMember) -> bool:
        """Say whether a connection was admitted beyond the limits and still exceeds them.

        Such a connection is served only health checks and metrics.
        """
        if member not in self._spares:
            return False
        others = self._counts[self._members[member]] - 1
        if self._is_full() or self._is_full_of(member, others):
            return True
        self._spares.discard(member)
        return False

    def is_trusted(self, address: str) -> bool:
        """Say whether an address has no limit: it is local, or trusted by the operator."""
        found = parse_address(address)
        if found is None or found.is_loopback:
            return True
        return any(found in network for network in self._trusted)

    def _find_full_group(self, member: CrowdMember, group: str) -> str | None:
        """Return the address group that must lose a connection before `member` can be admitted.

        None if there is room; "" if the server is full and no connection is idle. `member` is the
        new connection; `group` is its address or, for IPv6, its network (`group_of`).
        """
        if self._is_full_of(member, self._counts.get(group, 0)):
            return group
        if not self._is_full():
            return None
        return max(self._idle, key=self._counts.__getitem__, default="")

    def _is_full(self) -> bool:
        """Say whether the server has as many connections as it may have."""
        return len(self._members) - len(self._spares) >= self._most

    def _is_full_of(self, member: CrowdMember, others: int) -> bool:
        """Say whether the connection `member` would be one more than its address may have.

        The address has `others` connections beside it. False for an address without a limit.
        """
        return 0 < self._most_per_address <= others and not self.is_trusted(member.address)


def group_of(address: str) -> str:
    """Return the group of an address: itself for IPv4, its 64-bit network for IPv6."""
    found = parse_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, SITE), strict=False))
    return str(found)


def parse_address(text: str) -> Address | None:
    """Parse an IP address, ignoring its zone; IPv4-mapped becomes IPv4; None if invalid."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped) or found
