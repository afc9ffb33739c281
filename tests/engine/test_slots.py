"""The slot table: random operations keep its promises."""

import numpy as np

from jaxllama.engine.slots import SlotTable, common_prefix


def test_common_prefix_is_the_longest_common_beginning():
    long = list(range(2000))
    assert common_prefix(long, [*long[:1500], -1, *long[1501:]]) == 1500
    assert common_prefix([], long) == 0
    assert common_prefix(long, tuple(long)) == 2000


def test_freed_slot_keeps_its_prefix_for_the_next_turn():
    table = SlotTable(2)
    first = table.claim(1, [1, 2, 3, 4])
    table.slots[first.slot].cached.extend([1, 2, 3])
    table.release(first.slot)
    again = table.claim(2, [1, 2, 3, 4, 5])
    assert (again.slot, again.reused, again.source) == (first.slot, 3, None)


def test_last_prompt_token_is_always_computed():
    table = SlotTable(1)
    table.slots[0].cached.extend([1, 2, 3])
    assert table.claim(1, [1, 2, 3]).reused == 2


def test_busy_slot_is_a_source_not_a_victim():
    table = SlotTable(2)
    busy = table.claim(1, [1, 2, 3, 4, 5])
    other = table.claim(2, [1, 2, 3, 9])
    assert other.slot != busy.slot
    assert other.source == busy.slot


def test_long_conversation_is_copied_from_rather_than_cut_short():
    table = SlotTable(2)
    table.slots[0].cached.extend(range(100))
    claim = table.claim(1, [0, 1, 2, 3, 500])
    assert (claim.slot, claim.source) == (1, 0)
    assert len(table.slots[0].cached) == 100


def test_released_without_keeping_is_never_reused():
    table = SlotTable(1)
    claim = table.claim(1, [1, 2, 3])
    table.slots[0].cached.extend([1, 2])
    table.release(claim.slot, keep=False)
    assert table.claim(2, [1, 2, 3]).reused == 0


def test_random_claims_and_releases_keep_the_invariants():
    rng = np.random.default_rng(0)
    table = SlotTable(5)
    held: dict[int, int] = {}
    for owner in range(3000):
        if held and (rng.random() < 0.5 or table.full):
            slot = int(rng.choice(list(held)))
            table.release(slot, keep=bool(rng.random() < 0.9))
            held.pop(slot)
            continue
        ids = rng.integers(0, 3, rng.integers(1, 12)).tolist()
        claim = table.claim(owner, ids)
        assert claim.slot not in held, "a held slot was handed out"
        assert claim.reused <= len(ids) - 1
        cached = table.slots[claim.slot].cached
        assert cached == ids[: claim.reused], "reused rows hold other tokens"
        assert claim.source != claim.slot
        cached.extend(ids[claim.reused : -1])
        held[claim.slot] = owner
        assert table.claimed == len(held)
    assert table.claimed == len(held)


def test_no_slot_when_all_are_held():
    table = SlotTable(1)
    assert table.claim(1, [1]) is not None
    assert table.claim(2, [1]) is None
