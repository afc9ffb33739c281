"""Calls on a thread with a large stack, for native code that recurses deeply.

Used to load compiled programs. Knows nothing of them.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STACK_BYTES = 64 << 20  # of address space: only what is used takes memory
CHANGING = threading.Lock()  # held while the size for new threads, one of the process, is changed


def on_deep_stack(function: Callable[[], T]) -> T:
    """Run `function` on a thread with a large stack; return its result, or raise its error.

    The thread's stack has STACK_BYTES; that of other threads usually has 8 MiB.
    """
    found: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(function())
        except BaseException as error:  # raised again by the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, name="deep stack")
    with CHANGING:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return found[0]
