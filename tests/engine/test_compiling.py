"""The compiler: each program once, in order, and callers that wait only for their own."""

import threading

import pytest

from jaxllama.engine.compiling import ProgramCompiler

SOON = 30.0  # seconds: more than any wait of these tests needs


class Making:
    """Makes programs one at a time, as the test lets it."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.begun: dict[str, threading.Event] = {}

    def hold(self, name: str) -> None:
        self.gates[name], self.begun[name] = threading.Event(), threading.Event()

    def __call__(self, name: str) -> str:
        self.order.append(name)
        if name in self.gates:
            self.begun[name].set()
            assert self.gates[name].wait(SOON)
        if name == "broken":
            raise ValueError("no such program")
        return name.upper()


def test_a_call_makes_a_program_once():
    making = Making()
    compiler = ProgramCompiler(making)
    assert [compiler.get("a"), compiler.get("a")] == ["A", "A"]
    assert making.order == ["a"]


def test_the_thread_makes_programs_in_order_and_a_hurried_one_next():
    making = Making()
    making.hold("a")
    compiler = ProgramCompiler(making)
    compiler.start(["a", "b", "c", "d"])
    assert making.begun["a"].wait(SOON)
    assert compiler.pending == ("a", "b", "c", "d")
    assert compiler.is_pending("d")
    compiler.hurry("d")
    compiler.wait("d", 0.0)
    assert compiler.is_pending("d")
    making.gates["a"].set()
    compiler.wait("d", SOON)
    assert compiler.made["d"] == "D"
    compiler.join()
    assert making.order == ["a", "d", "b", "c"]
    assert not compiler.pending


def test_a_call_waits_for_the_thread_and_makes_what_nothing_makes_yet():
    making = Making()
    making.hold("a")
    compiler = ProgramCompiler(making)
    compiler.start(["a", "b"])
    assert making.begun["a"].wait(SOON)
    assert compiler.get("b") == "B"
    assert making.order == ["a", "b"]
    threading.Timer(0.0, making.gates["a"].set).start()
    assert compiler.get("a") == "A"
    compiler.join()
    assert making.order == ["a", "b"]


def test_stop_waits_for_the_present_program_only():
    making = Making()
    making.hold("a")
    compiler = ProgramCompiler(making)
    compiler.start(["a", "b"])
    assert making.begun["a"].wait(SOON)
    threading.Timer(0.0, making.gates["a"].set).start()
    compiler.stop()
    assert compiler.made.keys() <= {"a", "b"}
    assert compiler.made["a"] == "A"
    assert not compiler.pending


def test_a_failure_on_the_thread_is_raised_where_the_program_is_called(caplog):
    making = Making()
    compiler = ProgramCompiler(making)
    compiler.start(["broken", "a"])
    compiler.join()
    assert compiler.made == {"a": "A"}
    assert not compiler.is_pending("broken")
    assert "broken cannot be compiled" in caplog.text
    with pytest.raises(ValueError, match="no such program"):
        compiler.get("broken")
