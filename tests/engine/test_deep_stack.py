"""Calls on a thread with a large stack."""

import threading

import pytest

from jaxllama.engine.deep_stack import STACK_BYTES, on_deep_stack


def test_it_returns_and_raises_what_the_function_does(monkeypatch):
    asked, set_size = [], threading.stack_size
    monkeypatch.setattr(threading, "stack_size", lambda size: asked.append(size) or set_size(size))
    before = set_size()
    assert on_deep_stack(lambda: threading.current_thread().name) == "deep stack"
    with pytest.raises(ZeroDivisionError):
        on_deep_stack(lambda: 1 // 0)
    assert asked == [STACK_BYTES, before] * 2
    assert set_size() == before  # of other threads
