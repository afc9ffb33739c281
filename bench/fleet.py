"""A fleet: simulated replicas behind a router, and what its clients see.

Used by `simulate.py` and `scaling.py`. The router knows how many requests each replica has, and
which prefixes, without delay.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from replicas import Holders, ReplicaShape, SimulatedReplica
from traffic import SimulatedRequest

MUCH = 1 << 20  # more than the requests of any replica


@dataclass
class RouterView:
    """The view of a router: the requests of each replica, and who has each prefix."""

    slots: int  # of one replica
    open: list[int]  # requests without their last token
    waiting: list[int]  # the same, and MUCH for each of them without its first token
    holders: Holders

    def note(self, index: int, replica: SimulatedReplica) -> None:
        """Take down the requests of one replica."""
        self.open[index] = replica.open
        self.waiting[index] = replica.open + MUCH * replica.waiting


class RoundRobin:
    """Sends each request to the next replica."""

    def __init__(self, view: RouterView) -> None:
        """Begin with the first of the replicas."""
        self._count, self._next = len(view.open), 0

    def choose(self, request: SimulatedRequest) -> int:
        """Return the index of the replica that gets a request."""
        del request
        chosen = self._next
        self._next = (chosen + 1) % self._count
        return chosen


class Least:
    """Sends each request to a replica whose number is the least; to these in turn."""

    def __init__(self, numbers: Sequence[int]) -> None:
        """Read the number of each replica from `numbers`, which change."""
        self._numbers, self._next = numbers, 0

    def choose(self, request: SimulatedRequest) -> int:
        """Return the index of the replica that gets a request."""
        del request
        least = min(self._numbers)
        try:
            chosen = self._numbers.index(least, self._next)
        except ValueError:
            chosen = self._numbers.index(least)
        self._next = (chosen + 1) % len(self._numbers)
        return chosen


class PrefixAware:
    """Sends a request to a replica that has its prefix, unless that one is much busier.

    Much busier: it has more than half its slots more requests than the replica with the fewest.
    """

    def __init__(self, view: RouterView) -> None:
        """Read from `view` who has what."""
        self._view = view
        self._otherwise = Least(view.waiting)

    def choose(self, request: SimulatedRequest) -> int:
        """Return the index of the replica that gets a request."""
        view = self._view
        having = view.holders[request.group] if request.group >= 0 else ()
        if having:
            best = min(having, key=lambda index: (view.waiting[index], index))
            if view.open[best] <= min(view.open) + view.slots // 2:
                return best
        return self._otherwise.choose(request)


Router = RoundRobin | Least | PrefixAware
ROUTERS: dict[str, Callable[[RouterView], Router]] = {
    "round-robin": RoundRobin,
    "least-open": lambda view: Least(view.open),
    "least-waiting": lambda view: Least(view.waiting),
    "prefix-aware": PrefixAware,
}


@dataclass(frozen=True)
class FleetRun:
    """The requests of one simulation, all ended or lost, and the work of the replicas."""

    requests: Sequence[SimulatedRequest]
    replicas: int
    slots: int  # of one replica
    busy: float  # seconds of all slots together

    @property
    def whole(self) -> list[SimulatedRequest]:
        """The requests that have their answers."""
        return [each for each in self.requests if not each.is_lost]

    @property
    def lost(self) -> int:
        """The number of requests that were refused or given up."""
        return sum(each.is_lost for each in self.requests)

    @property
    def seconds(self) -> float:
        """The time from the first arrival to the last answer; 0 without answers."""
        ends = [each.ended for each in self.whole if each.ended is not None]
        return max(ends) - self.requests[0].arrived if ends else 0.0

    @property
    def tokens_per_second(self) -> float:
        """The tokens of all answers by this time."""
        return sum(each.answer for each in self.whole) / self.seconds if self.seconds else 0.0

    @property
    def occupancy(self) -> float:
        """The share of this time in which a slot holds a request."""
        all_ = self.replicas * self.slots * self.seconds
        return self.busy / all_ if all_ else 0.0

    @property
    def reused(self) -> float:
        """The share of the prompts' tokens that were cached."""
        tokens = sum(each.prompt for each in self.whole)
        return sum(each.reused for each in self.whole) / tokens if tokens else 0.0

    def first(self, percent: float) -> float:
        """Return a percentile of the seconds to the first token; NaN without answers."""
        return percentile(
            percent, (each.first - each.arrived for each in self.whole if each.first is not None)
        )

    def between(self, percent: float) -> float:
        """Return a percentile of the mean seconds between the tokens of an answer; NaN if none."""
        return percentile(
            percent,
            (
                (each.ended - each.first) / (each.answer - 1)
                for each in self.whole
                if each.first is not None and each.ended is not None and each.answer > 1
            ),
        )


def percentile(percent: float, values: Iterable[float]) -> float:
    """Return the smallest value that is at least as large as `percent` of all; NaN of none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def run_fleet(
    coming: Iterable[SimulatedRequest], shape: ReplicaShape, replicas: int, router: str
) -> FleetRun:
    """Simulate requests, which come by time of arrival, until each has ended or is lost."""
    view = RouterView(shape.slots, [0] * replicas, [0] * replicas, defaultdict(set))
    fleet = [SimulatedReplica(index, shape, view.holders) for index in range(replicas)]
    choose = ROUTERS[router](view).choose
    agenda: list[tuple[float, int]] = []  # when replicas wake; entries stay in it when that changes

    def work_until(moment: float) -> None:
        while agenda and agenda[0][0] <= moment:
            now, index = heapq.heappop(agenda)
            replica = fleet[index]
            if replica.wakes == now:
                replica.work(now)
                view.note(index, replica)
                if replica.wakes < math.inf:
                    heapq.heappush(agenda, (replica.wakes, index))

    requests = []
    for request in coming:
        work_until(request.arrived)
        requests.append(request)
        index = choose(request)
        replica = fleet[index]
        before = replica.wakes
        replica.accept(request, request.arrived)
        view.note(index, replica)
        if replica.wakes != before:
            heapq.heappush(agenda, (replica.wakes, index))
    work_until(math.inf)
    return FleetRun(requests, replicas, shape.slots, sum(each.busy for each in fleet))
