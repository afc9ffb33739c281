"""Slot states: the request in each slot of the engine, in numbers.

Read by the service for monitoring. Contains no text, no tokens and no seed of any request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxllama.engine.engine import Engine
from jaxllama.engine.generation import Generation


@dataclass(frozen=True)
class SlotState:
    """State of one slot and of the request that holds it."""

    index: int
    cached: int  # tokens in the KV cache
    task: int | None = None  # number of the request, None if the slot is free
    prompt: int = 0  # tokens of the prompt
    decoded: int = 0  # tokens of the answer so far
    most: int = 0  # tokens the answer may have
    # Knobs with a single number as value.
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_held(self) -> bool:
        """Whether a request holds the slot."""
        return self.task is not None


def slot_states(engine: Engine) -> list[SlotState]:
    """Return the state of every slot, in the order of their numbers; it may be one step old."""
    return [state_of(engine, index, generation) for index, generation in enumerate(engine.holders)]


def state_of(engine: Engine, index: int, generation: Generation | None) -> SlotState:
    """Return the state of slot number `index`, and of the generation that holds it, if any.

    `generation` None: no request holds the slot.
    """
    cached = len(engine.slots.slots[index].cached)
    if generation is None:
        return SlotState(index, cached)
    request = generation.request
    numbers = {
        name: value
        for name, value in request.knobs.items()
        if isinstance(value, int | float | bool)
    }
    return SlotState(
        index,
        cached,
        generation.id,
        len(request.prompt),
        len(generation.emitted),
        request.max_tokens,
        {"temperature": request.temperature, "max_tokens": request.max_tokens, **numbers},
    )
