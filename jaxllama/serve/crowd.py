"""The crowd: a server's open connections, and which of them gives way when there are too many.

Asked by each connection when it is made. A connection is idle while it has no request: nothing sent
yet, half a head, or kept open after an answer. Knows addresses, no HTTP.

At the bound of one address or of the whole server, the connection that has been idle longest is
closed for the new one: of the same address, or of the address with most connections. Where none is
idle, the new one takes one of a few places in reserve, on which only routes for operators are
served. So no crowd keeps `/health` from its answer.
"""

import ipaddress
from collections.abc import Iterable
from typing import Protocol

RESERVE = 32  # connections beyond the bounds, for /health, /ready and /metrics
SITE = 64  # leading bits of an IPv6 address that name one client's network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class CrowdMember(Protocol):
    """What the crowd knows of a connection."""

    address: str

    def evict(self) -> None:
        """Close an idle connection."""


class Crowd:
    """The open connections of one server."""

    def __init__(self, most: int, most_per_address: int, trusted: Iterable[str] = ()) -> None:
        """`most_per_address` 0 is no bound; `trusted` addresses and networks have none either."""
        self._most, self._most_per_address = most, most_per_address
        self._trusted = [ipaddress.ip_network(each) for each in trusted]
        self._members: dict[CrowdMember, str] = {}  # each with the group of its address
        self._counts: dict[str, int] = {}  # members of each group
        self._idle: dict[str, dict[CrowdMember, None]] = {}  # of each group, longest idle first
        self._spares: set[CrowdMember] = set()  # members in reserve

    def __len__(self) -> int:
        return len(self._members)

    def admit(self, member: CrowdMember) -> bool:
        """Add a new connection, idle; False if it has to be closed."""
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
        """Forget a connection that is closed; nothing happens if it is forgotten already."""
        if member not in self._members:
            return
        self.set_busy(member)
        self._spares.discard(member)
        group = self._members.pop(member)
        self._counts[group] -= 1
        if not self._counts[group]:
            del self._counts[group]

    def set_idle(self, member: CrowdMember) -> None:
        """A connection waits for a request."""
        if member in self._members:
            self._idle.setdefault(self._members[member], {})[member] = None

    def set_busy(self, member: CrowdMember) -> None:
        """A connection has a request."""
        group = self._members.get(member, "")
        idle = self._idle.get(group, {})
        idle.pop(member, None)
        if not idle:
            self._idle.pop(group, None)

    def is_spare(self, member: CrowdMember) -> bool:
        """Whether a connection is in reserve; it leaves the reserve once there is room."""
        if member not in self._spares:
            return False
        others = self._counts[self._members[member]] - 1
        if self._is_full() or self._is_full_of(member, others):
            return True
        self._spares.discard(member)
        return False

    def is_trusted(self, address: str) -> bool:
        """Whether an address has no bound: this machine's own, or one the operator trusts."""
        found = parse_address(address)
        if found is None or found.is_loopback:
            return True
        return any(found in network for network in self._trusted)

    def _find_full_group(self, member: CrowdMember, group: str) -> str | None:
        """The group that has to give way to a new connection; None if there is room."""
        if self._is_full_of(member, self._counts.get(group, 0)):
            return group
        if not self._is_full():
            return None
        return max(self._idle, key=self._counts.__getitem__, default="")

    def _is_full(self) -> bool:
        """Whether the server's bound leaves no room."""
        return len(self._members) - len(self._spares) >= self._most

    def _is_full_of(self, member: CrowdMember, others: int) -> bool:
        """Whether the bound of a member's address leaves no room beside so many others."""
        return 0 < self._most_per_address <= others and not self.is_trusted(member.address)


def group_of(address: str) -> str:
    """The addresses that count as one client: an IPv4 address, or an IPv6 network of 64 bits."""
    found = parse_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, SITE), strict=False))
    return str(found)


def parse_address(text: str) -> Address | None:
    """An IP address without its zone, an IPv4-mapped one as IPv4; None for no IP."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped) or found
