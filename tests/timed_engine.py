"""An engine in simulated time: the real engine over programs that take stated durations.

For the comparison of `bench/replicas.py` with the engine. The clock stands still while the host
works, and moves when it waits for the device.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllama.config import EngineConfig
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.engine import Engine
from jaxllama.engine.steps import StepOutput
from jaxllama.request import Finished, GenerationRequest, Token
from jaxllama.testing.models import TINY
from jaxllama.testing.scripted import ScriptedPrograms


@dataclass
class DeviceTime:
    """The time of the host, and when the device has done all that it was sent."""

    now: float = 0.0
    free: float = 0.0

    def send(self, seconds: float) -> float:
        """Add work to the device; return when it will be done."""
        self.free = max(self.free, self.now) + seconds
        return self.free


@dataclass(frozen=True)
class LateArray:
    """A result of the device: the host that reads it waits until it is there."""

    values: np.ndarray
    ready: float
    time: DeviceTime

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        self.time.now = max(self.time.now, self.ready)
        return self.values


class TimedPrograms(ScriptedPrograms):
    """Programs that draw token 1 for ever, and take the durations of `bench/replicas.py`."""

    def __init__(self, config: EngineConfig, durations: Any, time: DeviceTime) -> None:
        bank = SamplerBank(
            {},
            vocab=TINY.vocab_size,
            candidates=config.candidates,
            top_logprobs=config.max_top_logprobs,
        )
        super().__init__(lambda _: [1] * config.context, config, bank)
        self.durations, self.time = durations, time

    def prefill(
        self, state: Any, slot: Any, ids: Any, start: Any, count: Any, adapter: Any = None
    ) -> Any:
        self.time.send(self.durations.chunk(int(start), int(start) + int(count)))
        return super().prefill(state, slot, ids, start, count, adapter)

    def decode(self, state: Any, steps: Any, *given: Any, **named: Any) -> tuple[Any, StepOutput]:
        state, output = super().decode(state, steps, *given, **named)
        rows = (np.asarray(output.token) >= 0).sum(axis=1).tolist()
        ready = self.time.send(sum(self.durations.step(each) for each in rows if each))
        return state, output._replace(token=LateArray(output.token, ready, self.time))


def run_in_simulated_time(requests: Iterable[Any], shape: Any) -> dict[int, tuple[float, float]]:
    """Answer requests of `bench/traffic.py`; return the times of first and last token by number.

    Prompts share no prefix, and are so short that token ids can name them.
    """
    config = EngineConfig(
        slots=shape.slots,
        context=1024,
        prefill_chunk=shape.chunk,
        steps_per_sync=shape.steps_per_sync,
        sync_ms=1000 * shape.sync_seconds,
        candidates=TINY.vocab_size,
    )
    time = DeviceTime()
    engine = Engine(TimedPrograms(config, shape.durations, time), clock=lambda: time.now)
    coming, numbers = list(requests)[::-1], {}
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    while coming or not engine.idle:
        if engine.idle and coming:
            time.now = max(time.now, coming[-1].arrived)
        while coming and coming[-1].arrived <= time.now:
            each = coming.pop()
            # One token more: the engine leaves the last one of a prompt to the first step.
            own = np.random.default_rng(each.number).integers(0, TINY.vocab_size, each.prompt + 1)
            asked = GenerationRequest(tuple(own.tolist()), each.answer, temperature=0.0)
            numbers[engine.submit(asked).id] = each.number
        for event in engine.step():
            number = numbers[event.id]
            if isinstance(event, Token):
                first.setdefault(number, time.now)
                last[number] = time.now
            else:
                assert isinstance(event, Finished) and event.error is None
    return {number: (first[number], last[number]) for number in first}
