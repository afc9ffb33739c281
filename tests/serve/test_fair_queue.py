"""Who is next: tokens computed, room in the queue, and slots that are kept back."""

from dataclasses import dataclass

import pytest

from jaxllama.errors import ConfigError, QueueFull
from jaxllama.service.fair_queue import SECONDS_REMEMBERED, FairQueue
from jaxllama.service.slot_shares import divide_slots


@dataclass(frozen=True)
class Item:
    """A request or a probe."""

    client: str
    number: int = 0
    size: int = 1
    slots: int = 1
    is_probe: bool = False


class Clock:
    """Time that passes when a test says so."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def new_queue(slots=16, reserved=0, clock=None, **bounds):
    queue = FairQueue(
        bounds.get("items", 1000), bounds.get("tokens", 10**6), clock=clock or Clock()
    )
    queue.shares = divide_slots(slots, reserved)
    return queue


def push(queue, client, count=1, **more):
    for number in range(count):
        queue.push(Item(client, number, **more))


def clients(queue, *, free, count=100):
    """Whose work is handed out while so many slots are free."""
    found = []
    while free > 0 and len(found) < count and (work := queue.pop(free)):
        found.append(work.client)
        free -= work.slots
    return found


def serve(queue, tokens, count):
    """Hand out work one at a time, each of which costs its client so many tokens."""
    found = []
    for _ in range(count):
        work = queue.pop(1)
        queue.charge(work, tokens[work.client])
        queue.ended(work)
        found.append(work.client)
    return found


def test_clients_get_the_same_number_of_tokens():
    queue = new_queue()
    push(queue, "small", 100)
    push(queue, "large", 100)
    served = serve(queue, {"small": 10, "large": 40}, 100)
    assert abs(10 * served.count("small") - 40 * served.count("large")) <= 40


def test_a_newcomer_gets_no_more_than_clients_that_waited_longer():
    queue = new_queue()
    push(queue, "old", 50)
    serve(queue, {"old": 100}, 10)
    push(queue, "new", 50)
    order = serve(queue, {"old": 100, "new": 100}, 10)
    assert order.count("new") == 5


def test_a_flood_leaves_room_for_others():
    queue = new_queue(items=8, tokens=1000)
    for number in range(4):
        queue.check("flood", 1)
        queue.push(Item("flood", number))
    with pytest.raises(QueueFull, match="4 of them yours"):
        queue.check("flood", 1)
    queue.check("other", 1)


def test_probes_and_requests_share_the_room_of_their_client():
    queue = new_queue(items=8, tokens=1000)
    push(queue, "flood", 2)
    push(queue, "flood", 2, is_probe=True)
    with pytest.raises(QueueFull, match="4 of them yours"):
        queue.check("flood", 1)


def test_an_empty_queue_remembers_nobody():
    queue = new_queue(items=8)
    items = [Item(f"client {i}", size=5) for i in range(4)]
    for item in items:
        queue.push(item)
    assert queue.remove(items[3])
    assert not queue.remove(items[3])
    while work := queue.pop(1):
        queue.charge(work, 7)
        queue.ended(work)
    assert queue._accounts == {}
    assert (queue.items, queue.tokens, queue.running) == (0, 0, 0)


def test_a_client_that_is_alone_fills_all_slots():
    queue = new_queue(reserved=2)
    push(queue, "one", 40)
    assert len(clients(queue, free=16)) == 16


def test_slots_are_kept_back_while_there_are_several_clients():
    queue = new_queue(reserved=2)
    push(queue, "flood", 40)
    push(queue, "light")
    assert clients(queue, free=16).count("flood") == 13  # and one of the light client's
    push(queue, "light", 2)
    assert clients(queue, free=2) == ["light"]  # its second of two
    push(queue, "other")
    assert clients(queue, free=1) == ["other"]
    push(queue, "next", 2)
    assert clients(queue, free=1) == ["next"]


def test_slots_are_kept_back_for_a_minute_after_a_second_client_has_left():
    clock = Clock()
    queue = new_queue(reserved=2, clock=clock)
    push(queue, "flood", 100)
    clients(queue, free=16)
    push(queue, "light")
    light = queue.pop(1)
    queue.ended(light)
    clock.seconds = SECONDS_REMEMBERED - 1
    assert clients(queue, free=2) == []
    assert clients(queue, free=3) == ["flood"]
    clock.seconds = SECONDS_REMEMBERED + 1
    assert clients(queue, free=2) == ["flood"] * 2


def test_the_server_itself_is_no_second_client():
    queue = new_queue(reserved=2)
    push(queue, "")
    queue.ended(queue.pop(16))
    push(queue, "one", 40)
    assert len(clients(queue, free=16)) == 16


def test_work_that_needs_two_slots_is_not_overtaken():
    queue = new_queue(slots=4)
    push(queue, "one", slots=2)
    push(queue, "one", 5)
    assert clients(queue, free=1) == []
    assert clients(queue, free=2) == ["one"]


def test_a_client_that_holds_many_does_not_stand_before_one_that_holds_few():
    queue = new_queue(slots=8, reserved=1)
    push(queue, "flood", 20)
    push(queue, "other", 20)
    clients(queue, free=8)
    push(queue, "light", slots=2)
    assert clients(queue, free=1) == []
    assert clients(queue, free=2) == ["light"]


def test_probes_hold_few_slots_and_one_of_each_client():
    queue = new_queue(slots=16)
    for client in "abcdef":
        push(queue, client, 3, is_probe=True)
    push(queue, "g", 3)
    assert sorted(clients(queue, free=16)) == ["a", "b", "c", "d", "g", "g", "g"]


def test_probes_leave_half_of_few_slots():
    assert [divide_slots(count).probes for count in (1, 2, 3, 4, 8, 64)] == [1, 1, 1, 2, 4, 4]


def test_a_probe_that_has_to_wait_holds_up_no_request_of_its_client():
    queue = new_queue(slots=4)
    push(queue, "one", 2, is_probe=True)
    push(queue, "one", 1)
    first, second = queue.pop(4), queue.pop(3)
    assert (first.is_probe, second.is_probe) == (True, False)
    assert queue.pop(2) is None
    queue.ended(first)
    assert queue.pop(3).is_probe


def test_an_eighth_of_the_slots_is_kept_back():
    counts = (1, 2, 3, 4, 8, 16, 64)
    assert [divide_slots(count).reserved for count in counts] == [0, 0, 0, 1, 1, 2, 8]
    assert divide_slots(16, 0).reserved == 0


def test_an_engine_cannot_keep_all_slots_back():
    with pytest.raises(ConfigError, match="reserved_slots is 4 and the engine has 4 slots"):
        divide_slots(4, 4)


def test_work_that_needs_no_slot_waits_for_none_but_for_its_turn():
    queue = new_queue(slots=4, reserved=1)
    push(queue, "large", slots=4)
    push(queue, "encoder", 3, slots=0, is_probe=True)
    assert queue.pop(0).client == "encoder"
    assert queue.pop(0) is None  # one probe of a client runs at a time
    assert queue.pop(3) is None
    assert queue.pop(4).client == "large"


def test_work_without_slots_is_ordered_by_the_accounts_of_its_clients():
    queue = new_queue()
    push(queue, "flood", 50, slots=0, is_probe=True)
    push(queue, "light", 50, slots=0, is_probe=True)
    served = serve(queue, {"flood": 40, "light": 10}, 50)
    assert abs(10 * served.count("light") - 40 * served.count("flood")) <= 40
