"""The slot table: random operations keep its promises, and a claim compares little."""

import sys

import numpy as np
import pytest

from jaxllama.engine.prefixes import BLOCK, common_prefix, longest_prefix
from jaxllama.engine.slots import LEAST_COPIED, SlotTable


def test_common_prefix_is_the_longest_common_beginning():
    long = list(range(2000))
    assert common_prefix(long, [*long[:1500], -1, *long[1501:]]) == 1500
    assert common_prefix([], long) == 0
    assert common_prefix(long, tuple(long)) == 2000


def filled(table: SlotTable, *prompts: list[int]) -> None:
    """Claim a slot for each prompt, compute it whole, and give all slots back."""
    slots = []
    for owner, ids in enumerate(prompts):
        slot = table.claim(owner, [*ids, 0]).slot
        table.slots[slot].cached.extend(ids[len(table.slots[slot].cached) :])
        slots.append(slot)
    for slot in slots:
        table.release(slot)


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
    busy = table.claim(1, list(range(20)))
    other = table.claim(2, [*range(LEAST_COPIED), 500, 501])
    assert other.slot != busy.slot
    assert other.source == busy.slot


def test_a_few_tokens_are_copied_from_another_slot_only_if_no_others_are_missing():
    table = SlotTable(3)
    busy = table.claim(1, list(range(20)))
    assert table.claim(2, [*range(LEAST_COPIED - 1), 500, 501]).source is None
    assert table.claim(3, [*range(LEAST_COPIED - 1), 500]).source == busy.slot


def test_long_conversation_is_copied_from_rather_than_cut_short():
    table = SlotTable(2)
    filled(table, list(range(100)))
    claim = table.claim(1, [*range(10), 500])
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
        assert cached.ids == ids[: claim.reused], "reused rows hold other tokens"
        assert claim.source != claim.slot
        cached.extend(ids[claim.reused : -1])
        held[claim.slot] = owner
        assert table.claimed == len(held)
    assert table.claimed == len(held)


def test_no_slot_when_all_are_held():
    table = SlotTable(1)
    assert table.claim(1, [1]) is not None
    assert table.claim(2, [1]) is None


def test_answer_as_long_as_its_prompt_is_not_lost_to_the_same_prompt():
    """Another client asks the same: the first one finds its conversation when it returns."""
    prompt, answer = list(range(100)), list(range(500, 600))
    table = SlotTable(3)
    filled(table, [*prompt, *answer])
    other = table.claim(7, [*prompt, 9])
    assert (other.slot, other.source) == (1, 0)
    again = table.claim(8, [*prompt, *answer, 9])
    assert (again.slot, again.reused) == (0, 200)


def test_of_equal_prefixes_the_slot_with_nothing_to_lose_is_taken():
    prompt = list(range(100))
    table = SlotTable(2)
    filled(table, [*prompt, *range(500, 600)], prompt)
    claim = table.claim(7, [*prompt, 9])
    assert (claim.slot, claim.reused, claim.source) == (1, 100, None)


def test_slot_that_loses_a_few_tokens_is_used_in_place():
    """A conversation comes back a little different at the end of the last answer."""
    prompt = list(range(200))
    table = SlotTable(2)
    filled(table, [*prompt, 7, 8])
    claim = table.claim(7, [*prompt, 9, 9])
    assert (claim.slot, claim.reused, claim.source) == (0, 200, None)


def test_planned_tokens_are_promised_until_the_slot_is_released():
    table = SlotTable(2)
    long = list(range(3 * BLOCK))
    busy = table.claim(1, long)
    other = table.claim(2, [*long[:-10], 9, 9])
    assert (other.reused, other.source) == (0, busy.slot)
    own, source = (table.slots[each.slot].cached for each in (other, busy))
    assert own.shared_with(source) == 3 * BLOCK - 10
    table.release(other.slot)
    table.release(busy.slot)
    assert table.claim(3, long).source is None


def test_tokens_other_than_planned_replace_the_plan():
    table = SlotTable(1)
    cached = table.slots[table.claim(1, list(range(3 * BLOCK))).slot].cached
    cached.extend(range(BLOCK + 5))
    cached.append(7777)
    cached.extend([8, 9])
    assert cached.ids == [*range(BLOCK + 5), 7777, 8, 9]
    cached.cut(BLOCK + 6)
    assert cached.ids == [*range(BLOCK + 5), 7777]
    table.release(0, keep=False)
    assert cached.ids == [] and not table.slots[0].cached.root.children


def test_claims_find_what_comparing_every_slot_finds():
    """Prompts with long common prefixes that end at, before and after the ends of blocks."""
    rng = np.random.default_rng(1)
    trunk = rng.integers(0, 50_000, 6 * BLOCK).tolist()
    table, held = SlotTable(6), {}
    for owner in range(1500):
        if held and (rng.random() < 0.5 or table.full):
            table.release(slot := int(rng.choice(list(held))), keep=bool(rng.random() < 0.9))
            del held[slot]
            continue
        at = int(rng.choice([0, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, *rng.integers(0, 384, 3)]))
        ids = [*trunk[:at], *rng.integers(0, 3, rng.integers(1, 2 * BLOCK)).tolist()]
        before = {i: slot.cached.ids for i, slot in enumerate(table.slots)}
        known = {i: max(common_prefix(old, ids[:-1]) for old in (before[i], held.get(i, [])))
                 for i in before}  # fmt: skip
        claim = table.claim(owner, ids)
        assert claim.reused == common_prefix(before[claim.slot], ids[:-1])
        if claim.source is None:
            assert claim.reused > max(known.values()) - LEAST_COPIED
            assert max(known.values()) in {claim.reused, *range(len(ids) - 1)}
        else:
            least = min(LEAST_COPIED, len(ids) - 1 - claim.reused)
            assert known[claim.source] == max(known.values()) >= claim.reused + least > claim.reused
        cached = table.slots[claim.slot].cached
        cached.extend(ids[claim.reused : int(rng.integers(claim.reused, len(ids)))])
        held[claim.slot] = ids
    for slot in held:
        table.release(slot)
    for slot in range(6):
        table.release(slot, keep=False)
    assert not table.slots[0].cached.root.children, "blocks that no slot has are kept"


class Work:
    """Counts the calls that Python makes inside the `with`."""

    def __init__(self):
        self.calls = 0

    def __enter__(self):
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _note(self, _frame, event, _argument):
        self.calls += event in ("call", "c_call")


@pytest.mark.parametrize("busy", [True, False])
def test_a_claim_does_not_compare_its_prompt_with_every_slot(busy):
    """All 256 slots share 8,000 tokens with it; each compared whole would be 2,000,000 tokens."""
    slots, shared = 256, list(range(8000))
    table = SlotTable(slots)
    for index in range(slots - 1):
        ids = [*shared, *range(50_000 + index, 50_050 + index)]
        claim = table.claim(index, [*ids, 0])
        table.slots[claim.slot].cached.extend(ids[claim.reused :])
    for index in range(0 if busy else slots - 1):
        table.release(index)
    with Work() as work:
        claim = table.claim(999, [*shared, 1, 2, 3])
    assert busy == (claim.source is not None)
    assert work.calls < 8 * slots + 8 * len(shared) // BLOCK


def test_longest_prefix_of_several():
    def packed(*tokens: int) -> bytes:
        return np.array(tokens, np.int32).tobytes()

    several = [packed(1, 2, 3), packed(1, 2), packed(7), packed(), packed(1, 2, 4)]
    assert longest_prefix(several, packed(1, 2, 4, 5)) == (3, [4])
    assert longest_prefix(several, packed(1, 2, 9)) == (2, [0, 1, 4])
    assert longest_prefix(several, packed(9)) == (0, [0, 1, 2, 3, 4])
    assert longest_prefix(several, b"") == (0, [0, 1, 2, 3, 4])
