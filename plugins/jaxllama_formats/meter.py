"""The meter: how much work one rendering of an untrusted template may still do.

Made anew for every rendering, charged by the sandbox. Knows steps, bytes and time, not templates.

Steps and bytes make the outcome the same on every machine; the clock is the last resort for work
that the two underestimate. `weigh` looks into containers, because a few lines of template build
lists that hold the same list twice, thirty deep, and comparing or printing those never ends.
"""

import itertools
import sys
import time
from collections.abc import Iterable
from typing import Any

from jaxllama.errors import TemplateError

MAX_STEPS = 2_000_000
MAX_BYTES = 32 << 20  # of everything one rendering makes, beside what its input asks for
BYTES_PER_INPUT = 16  # a template may make so many copies of its input
BYTES_PER_ITEM = 40  # of a list: the place and a small thing in it
MAX_SECONDS = 0.75  # of this thread's own time
STEPS_PER_LOOK = 64  # steps between two looks at the clock
MAX_BITS = 4096  # of a whole number


class Meter:
    """Counts down; refuses with TemplateError."""

    def __init__(self, input_bytes: int = 0) -> None:
        self.steps = MAX_STEPS
        self.bytes = MAX_BYTES + BYTES_PER_INPUT * input_bytes
        self.look = MAX_STEPS - STEPS_PER_LOOK
        self.deadline = time.thread_time() + MAX_SECONDS

    def step(self, count: int = 1) -> None:
        """Pay for so many small operations."""
        self.steps -= count
        if self.steps < 0:
            raise TemplateError(
                f"the chat template takes more than {MAX_STEPS} steps; expected it to end"
            )
        if self.steps < self.look:
            self.look = self.steps - STEPS_PER_LOOK
            if time.thread_time() > self.deadline:
                raise TemplateError(
                    f"the chat template takes more than {MAX_SECONDS} s; expected it to end"
                )

    def allocate(self, size: int) -> None:
        """Pay for `size` bytes before they are made."""
        self.step()
        self.bytes -= size
        if self.bytes < 0:
            raise TemplateError(
                f"the chat template makes more than {MAX_BYTES >> 20} MiB of text; expected less"
            )

    def made(self, value: Any) -> Any:
        """Pay for a value that was just made, and return it."""
        self.step()
        if isinstance(value, str | bytes | list | tuple | dict | set):
            self.allocate(sys.getsizeof(value))
        return value

    def weigh(self, *values: Any) -> int:
        """Pay a step per item in `values`, however deep; how many bytes printing them takes."""
        size = 0
        rest = list(values)
        while rest:
            value = rest.pop()
            self.step()
            if isinstance(value, str):
                size += sys.getsizeof(value)
            elif isinstance(value, dict):
                rest += itertools.chain.from_iterable(value.items())
                size += 8 * len(value)
            elif isinstance(value, list | tuple | set | frozenset):
                rest += value
                size += 8 * len(value)
            else:
                size += 32
            self.fits(size)
        return size

    def fits(self, size: int) -> None:
        """Refuse what cannot be paid any more, before it is made."""
        if size > self.bytes:
            self.allocate(size)

    def take(self, items: Iterable[Any]) -> list[Any]:
        """All items, paid for one by one."""
        taken = []
        for item in items:
            self.allocate(BYTES_PER_ITEM)
            taken.append(item)
        return taken
