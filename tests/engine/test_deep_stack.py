"""Calls on a thread with a large stack."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxllama.engine.deep_stack import CHANGING, STACK_BYTES, on_deep_stack


def test_it_returns_and_raises_what_the_function_does():
    assert on_deep_stack(lambda: threading.current_thread().name) == "deep stack"
    with pytest.raises(ZeroDivisionError):
        on_deep_stack(lambda: 1 // 0)


def test_other_threads_keep_the_size_of_their_stacks():
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda each: on_deep_stack(lambda: each), range(200))) == [*range(200)]
    with CHANGING:  # other tests leave threads behind that load programs
        assert threading.stack_size() != STACK_BYTES
