"""The meter: limits the work of one rendering of an untrusted template.

Every rendering has its own meter, which the sandbox charges. It knows steps, bytes and time, not
templates.

Limits in steps and bytes give the same outcome on every machine; the time limit is the last resort
for work that they underestimate. `weigh` counts nested items, because a few lines of template can
build lists that contain the same list twice, thirty levels deep; comparing or printing such a list
never ends.
"""

import itertools
import sys
import time
from collections.abc import Iterable
from typing import Any

from jaxllama.errors import TemplateError

MAX_STEPS = 2_000_000
MAX_BYTES = 32 << 20  # created by one rendering, on top of the allowance for its input
BYTES_PER_INPUT = 16  # a template may create this many copies of its input
BYTES_PER_ITEM = 40  # of a list: its pointer and a small object
MAX_SECONDS = 0.75  # of the thread's processor time
STEPS_PER_CHECK = 64  # steps between two readings of the clock
MAX_BITS = 4096  # of an integer


class Meter:
    """Counts down steps, bytes and time; raises TemplateError when one is used up."""

    def __init__(self, input_bytes: int = 0) -> None:
        self.steps = MAX_STEPS
        self.bytes = MAX_BYTES + BYTES_PER_INPUT * input_bytes
        self.next_check = MAX_STEPS - STEPS_PER_CHECK
        self.deadline = time.thread_time() + MAX_SECONDS

    def step(self, count: int = 1) -> None:
        """Charge `count` steps; raise TemplateError if steps or time are used up.

        The clock is read every STEPS_PER_CHECK steps.
        """
        self.steps -= count
        if self.steps < 0:
            raise TemplateError(
                f"the chat template takes more than {MAX_STEPS} steps; expected it to end"
            )
        if self.steps < self.next_check:
            self.next_check = self.steps - STEPS_PER_CHECK
            if time.thread_time() > self.deadline:
                raise TemplateError(
                    f"the chat template takes more than {MAX_SECONDS} s; expected it to end"
                )

    def allocate(self, size: int) -> None:
        """Charge one step and `size` bytes; raises TemplateError if too few are left."""
        self.step()
        self.bytes -= size
        if self.bytes < 0:
            raise TemplateError(
                f"the chat template makes more than {MAX_BYTES >> 20} MiB of text; expected less"
            )

    def made(self, value: Any) -> Any:
        """Charge the bytes of a value that was just created, and return the value."""
        self.step()
        if isinstance(value, str | bytes | list | tuple | dict | set):
            self.allocate(sys.getsizeof(value))
        return value

    def weigh(self, *values: Any) -> int:
        """Charge a step per item at any depth; return the bytes that printing the values takes."""
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
        """Raise TemplateError if fewer than `size` bytes are left; charge nothing."""
        if size > self.bytes:
            self.allocate(size)

    def take(self, items: Iterable[Any]) -> list[Any]:
        """Collect the items in a list, charging BYTES_PER_ITEM for each."""
        taken = []
        for item in items:
            self.allocate(BYTES_PER_ITEM)
            taken.append(item)
        return taken
