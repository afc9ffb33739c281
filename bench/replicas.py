"""Replicas: simulated servers, each with slots, a queue and cached prefixes, in simulated time.

Used by `fleet.py`. A replica follows the schedule of `jaxllama/engine/engine.py`, with durations in
place of a model: prompts go in chunks between decode steps, all rows step together, and a freed
slot keeps its prefix. As without `pack_prompts`, each chunk has one prompt. Knows no router.
"""

import bisect
import heapq
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from traffic import SimulatedRequest

Curve = Sequence[tuple[float, float]]  # sizes in rising order, and the seconds that each takes
Holders = defaultdict[int, set[int]]  # group: the replicas that have its prefix


@dataclass(frozen=True)
class Durations:
    """Durations of the work of a replica: straight lines between the points of two curves."""

    steps: Curve  # by rows
    prompts: Curve  # by tokens of a prompt, from the first one on
    overhead: float = 0.0  # seconds of a request outside the engine

    def step(self, rows: int) -> float:
        """Return the seconds of one decode step of `rows` rows."""
        return between(self.steps, rows)

    def chunk(self, start: int, stop: int) -> float:
        """Return the seconds to compute the tokens of a prompt from `start` to `stop`."""
        return between(self.prompts, stop) - between(self.prompts, start)


def between(curve: Curve, size: float) -> float:
    """Return the seconds of `size` on the line through the points of a curve beside it.

    The first and the last line go on beyond their points; a curve of one point is constant.
    """
    if len(curve) == 1:
        return curve[0][1]
    right = min(max(bisect.bisect_left(curve, (size,)), 1), len(curve) - 1)
    (one, first), (other, second) = curve[right - 1], curve[right]
    return first + (second - first) * (size - one) / (other - one)


@dataclass(frozen=True)
class ReplicaShape:
    """The sizes of a replica, and its settings."""

    durations: Durations
    slots: int = 16
    chunk: int = 128  # most tokens of a prompt between two decode steps
    steps_per_sync: int = 4  # most decode steps of one call
    sync_seconds: float = 0.05  # about the longest call
    queue: int = 512  # requests that may wait; more are refused
    patience: float = 300.0  # seconds that a client waits for a slot
    stored: int = 0  # prefixes that the prompt cache keeps when no slot has them any more

    @cached_property
    def steps(self) -> tuple[float, ...]:
        """The seconds of a decode step, by rows."""
        return tuple(self.durations.step(rows) for rows in range(self.slots + 1))

    @cached_property
    def calls(self) -> tuple[int, ...]:
        """The decode steps of one call, by rows."""
        most = (int(self.sync_seconds / step) if step > 0 else 1 for step in self.steps)
        return tuple(min(self.steps_per_sync, max(1, steps)) for steps in most)


class PrefixSlots:
    """The free slots of a replica, and the groups whose prefixes it has."""

    def __init__(self, index: int, shape: ReplicaShape, holders: Holders) -> None:
        """Make `shape.slots` empty slots; they add the replica `index` to `holders`."""
        self._index, self._holders, self._most_stored = index, holders, shape.stored
        self.free = deque([-1] * shape.slots)  # the group of each free slot, longest free first
        self._slots: Counter[int] = Counter()  # how many slots have the prefix of a group
        self._stored: OrderedDict[int, None] = OrderedDict()  # longest unused first

    def claim(self, group: int) -> bool:
        """Take the slot that is free longest for a group; say whether its prefix was there."""
        was_there = self._index in self._holders[group] if group >= 0 else False
        dropped = self.free.popleft()
        self._slots[group] += 1
        if group >= 0:
            self._holders[group].add(self._index)
            self._stored.pop(group, None)
        if dropped >= 0:
            self._drop(dropped)
        return was_there

    def release(self, group: int) -> None:
        """Free a slot, which keeps the prefix of a group."""
        self.free.append(group)

    def _drop(self, group: int) -> None:
        self._slots[group] -= 1
        if self._slots[group]:
            return
        del self._slots[group]
        self._stored[group] = None
        if len(self._stored) > self._most_stored:
            lost, _ = self._stored.popitem(last=False)
            self._holders[lost].discard(self._index)


class SimulatedReplica:
    """One simulated server. `wakes` is when its current work ends, infinite if it has none."""

    def __init__(self, index: int, shape: ReplicaShape, holders: Holders) -> None:
        """Make an idle replica; `holders` is shared by all replicas."""
        self.shape = shape
        self.slots = PrefixSlots(index, shape, holders)
        self.wakes = math.inf
        self.busy = 0.0  # seconds of all slots together
        self._waiting: deque[SimulatedRequest] = deque()
        self._filling: deque[SimulatedRequest] = deque()
        self._running: list[tuple[int, int, SimulatedRequest]] = []  # heap by the last step of each
        self._step = 0  # decode steps so far
        self._began = 0.0  # when the current work began
        self._steps = 0  # decode steps of the current work
        self._chunk: SimulatedRequest | None = None  # whose prompt is part of the current work
        self._decodes = False  # the current work is decode calls, until a request ends or comes

    @property
    def waiting(self) -> int:
        """The number of requests that have no token yet."""
        return len(self._waiting) + len(self._filling) + (self._chunk is not None)

    @property
    def open(self) -> int:
        """The number of requests that have not ended."""
        return self.waiting + len(self._running)

    def accept(self, request: SimulatedRequest, now: float) -> None:
        """Take a request, or refuse it if too many wait already."""
        if not self.slots.free and len(self._waiting) >= self.shape.queue:
            request.is_lost = True
            return
        self._waiting.append(request)
        if self.wakes == math.inf:
            self._begin(now)
        elif self._decodes and self.slots.free:
            self._stop_after_call(now)

    def work(self, now: float) -> None:
        """End the current work and the requests that are complete, and begin the next."""
        self._step += self._steps
        if self._chunk is not None:
            self._end_chunk(self._chunk, now)
        while self._running and self._running[0][0] <= self._step:
            request = heapq.heappop(self._running)[2]
            request.ended = now + self.shape.durations.overhead
            self.busy += now - request.begun
            self.slots.release(request.group)
        self._begin(now)

    def _begin(self, now: float) -> None:
        """Give free slots to waiting requests, and begin the next work."""
        self._admit(now)
        rows = len(self._running)
        # The host sends a call before it reads the one before: a prompt comes after both.
        is_late = self._decodes and rows > 0
        self._decodes = rows > 0 and not self._filling
        if self._filling and not is_late:
            self._begin_chunk(self._filling.popleft(), now)
        elif rows:
            left = self._running[0][0] - self._step
            steps = left if self._decodes else min(left, self.shape.calls[rows])
            self._start(now, steps, steps * self.shape.steps[rows])
        else:
            self.wakes = math.inf

    def _start(self, now: float, steps: int, seconds: float) -> None:
        self._began, self._steps, self.wakes = now, steps, now + seconds

    def _admit(self, now: float) -> None:
        """Give free slots to waiting requests; those whose clients have given up are lost."""
        while self._waiting and self.slots.free:
            request = self._waiting.popleft()
            if now - request.arrived > self.shape.patience:
                request.is_lost = True
                continue
            request.begun = now
            if self.slots.claim(request.group):
                request.reused = request.filled = min(request.prefix, request.prompt - 1)
            self._filling.append(request)

    def _begin_chunk(self, request: SimulatedRequest, now: float) -> None:
        """Compute a chunk of a request's prompt and one decode step of all rows."""
        stop = min(request.prompt, request.filled + self.shape.chunk)
        rows = len(self._running) + (stop == request.prompt)
        seconds = self.shape.durations.chunk(request.filled, stop)
        request.filled, self._chunk = stop, request
        self._start(now, int(rows > 0), seconds + (self.shape.steps[rows] if rows else 0.0))

    def _end_chunk(self, request: SimulatedRequest, now: float) -> None:
        """Let a request decode if its prompt is complete; else its next chunk comes in its turn."""
        self._chunk = None
        if request.filled < request.prompt:
            self._filling.append(request)
            return
        request.first = now + self.shape.durations.overhead
        heapq.heappush(self._running, (self._step + request.answer - 1, request.number, request))

    def _stop_after_call(self, now: float) -> None:
        """End the current work with the call that runs at `now`: a request has come."""
        rows = len(self._running)
        steps = self.shape.calls[rows]
        call = steps * self.shape.steps[rows]
        calls = math.floor((now - self._began) / call) + 1
        self._steps = min(self._steps, calls * steps)
        self.wakes = self._began + self._steps * self.shape.steps[rows]
