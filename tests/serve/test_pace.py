"""When a client may try again, by a clock that a test moves."""

import pytest

from jaxllama.bridge import Ticket
from jaxllama.errors import QueueFull
from jaxllama.request import GenerationRequest
from jaxllama.service.bounds import Bounds
from jaxllama.service.dispatch import Dispatch
from jaxllama.service.pace import MOST, Pace


class Clock:
    """Time since the machine was started."""

    seconds = 100_000.0

    def __call__(self) -> float:
        return self.seconds


def ends(pace, clock, *, count, apart, remaining=1):
    for _ in range(count):
        clock.seconds += apart
        pace.note_end(remaining)


def test_nothing_is_known_at_first():
    assert Pace(Clock()).seconds_for(100) == 1


def test_one_end_says_nothing():
    clock = Clock()
    pace = Pace(clock)
    ends(pace, clock, count=1, apart=5.0)
    assert pace.seconds_for(100) == 1


def test_ends_half_a_second_apart_make_ten_requests_last_five_seconds():
    clock = Clock()
    pace = Pace(clock)
    ends(pace, clock, count=2, apart=0.5)
    assert pace.seconds_for(10) == pytest.approx(5)
    ends(pace, clock, count=100, apart=0.2)
    assert pace.seconds_for(10) == pytest.approx(2, rel=0.01)
    assert pace.seconds_for(10**6) == MOST


def test_a_quiet_hour_changes_nothing():
    clock = Clock()
    pace = Pace(clock)
    ends(pace, clock, count=20, apart=0.1)
    ends(pace, clock, count=1, apart=0.1, remaining=0)
    ends(pace, clock, count=1, apart=3600.0)
    ends(pace, clock, count=1, apart=0.1)
    assert pace.seconds_for(20) == pytest.approx(2)


def test_a_refusal_right_after_a_start_says_to_come_back_soon():
    """The first request of a server has ended, and its queue is full."""
    clock = Clock()
    dispatch = Dispatch(Bounds(queue_requests=2), lambda _: None, clock)
    dispatch._pace.note_end(0)
    dispatch.queue.push(Ticket(GenerationRequest((1,), 1), None, lambda _: None, "one"))
    with pytest.raises(QueueFull) as refused:
        dispatch.check("one", 1)
    assert refused.value.retry_after == 1
