"""Decode calls: the ones that were sent to the device and not read yet, and how long steps take.

Used by the engine. A call is kept with the generations that owned its rows when it was sent.
Knows no queue and emits nothing.
"""

from collections import deque
from collections.abc import Callable, Sequence

from jaxllama.engine.batch import Batch
from jaxllama.engine.generation import Generation
from jaxllama.engine.guides import Masks
from jaxllama.engine.reading import Reading, Sent


class DecodeCalls:
    """The decode calls of one engine that were sent and not yet read, oldest first."""

    def __init__(self, batch: Batch, clock: Callable[[], float]) -> None:
        self._batch = batch
        self._clock = clock
        self._most_steps = batch.programs.engine.steps_per_sync
        self._sent: deque[Sent] = deque()
        self._last_read = 0.0
        self.step_seconds = 0.0  # duration of one decode step, as last measured

    def __len__(self) -> int:
        return len(self._sent)

    def send(
        self,
        steps: int,
        owners: Sequence[Generation | None],
        masks: Masks | None = None,
    ) -> None:
        """Send a decode call of up to `steps` steps to the device, without waiting for it.

        `owners` lists the generation of each row; the tokens of a row with None are ignored.
        `masks` says what rows with a constraint may draw, None if there are none.
        """
        lean = all(owner is None or owner.is_common for owner in owners)
        adapted = any(owner is not None and owner.request.adapter for owner in owners)
        allowed, forced = masks or (None, None)
        output = self._batch.decode(steps, allowed, forced, lean=lean, adapted=adapted)
        places = len(output.token) // self._most_steps
        self._sent.append(Sent(output, steps, places, list(owners), masks is not None))

    def read(self) -> Reading:
        """Wait for the oldest unread decode call; return its tokens and update `step_seconds`."""
        reading = Reading(self._sent.popleft())
        now = self._clock()
        if reading.steps_taken and self._last_read and not reading.is_masked:
            self.step_seconds = (now - self._last_read) / reading.steps_taken
        self._last_read = now if self._sent else 0.0
        return reading

    @property
    def seconds_left(self) -> float:
        """Estimate how many seconds the only unread decode call still runs on the device.

        0 if there is not exactly one, or if its duration is not known.
        """
        if len(self._sent) != 1 or not self._last_read or self._sent[0].is_masked:
            return 0.0
        end = self._last_read + self._sent[0].steps * self.step_seconds
        return max(0.0, end - self._clock())

    def clear(self) -> None:
        """Forget all unread decode calls without reading their tokens."""
        self._sent.clear()
        self._last_read = 0.0

    def steps_in(self, seconds: float) -> int:
        """Return about how many decode steps fit into `seconds`; 1 before the first measurement."""
        return round(seconds / self.step_seconds) if self.step_seconds else 1

    def steps_sent(self, generation: Generation) -> int:
        """Count the decode steps of unread calls that include this generation's row."""
        return sum(sent.steps for sent in self._sent if sent.owners[generation.slot] is generation)
