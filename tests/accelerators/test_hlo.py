"""The reading of compiled HLO, on small programs written by hand."""

from collections import Counter

from tests.accelerators.hlo import Counts, Reading, in_graphs, size_of

MIB = 1 << 20
# A loop of unknown length with an inner loop of three trips, a conditional, and an update in place.
PROGRAM = """HloModule planted

%add_one (p.0: f32[512,512], p.1: f32[1,512], p.2: s32[]) -> f32[512,512] {
  %p.0 = f32[512,512]{1,0} parameter(0)
  %p.1 = f32[1,512]{1,0} parameter(1)
  %p.2 = s32[] parameter(2)
  ROOT %update = f32[512,512]{1,0} dynamic-update-slice(%p.0, %p.1, %p.2, %p.2)
}

%cheap (c.0: f32[512,512]) -> f32[512,512] {
  ROOT %c.0 = f32[512,512]{1,0} parameter(0)
}

%dear (d.0: f32[512,512]) -> f32[512,512] {
  %d.0 = f32[512,512]{1,0} parameter(0)
  ROOT %sorted = f32[512,512]{1,0} sort(%d.0), dimensions={1}
}

%inner_test (i.0: (s32[])) -> pred[] {
  ROOT %less.1 = pred[] constant(true)
}

%inner (i.1: (s32[])) -> (s32[]) {
  %i.1 = (s32[]) parameter(0)
  %i.2 = s32[] get-tuple-element(%i.1), index=0
  %next = s32[] negate(%i.2)
  ROOT %out.1 = (s32[]) tuple(%next)
}

%test (t.0: (f32[512,512], f32[1,512], s32[], pred[])) -> pred[] {
  %t.0 = (f32[512,512]{1,0}, f32[1,512]{1,0}, s32[], pred[]) parameter(0)
  ROOT %more = pred[] get-tuple-element(%t.0), index=3
}

%body (b.0: (f32[512,512], f32[1,512], s32[], pred[])) -> (f32[512,512], f32[1,512], s32[], pred[]) {
  %b.0 = (f32[512,512]{1,0}, f32[1,512]{1,0}, s32[], pred[]) parameter(0)
  %b.1 = f32[512,512]{1,0} get-tuple-element(%b.0), index=0
  %b.2 = f32[1,512]{1,0} get-tuple-element(%b.0), index=1
  %b.3 = s32[] get-tuple-element(%b.0), index=2
  %b.4 = pred[] get-tuple-element(%b.0), index=3
  %written = f32[512,512]{1,0} fusion(%b.1, %b.2, %b.3), kind=kLoop, calls=%add_one
  %copied = f32[512,512]{1,0} copy(%written)
  %chosen = f32[512,512]{1,0} conditional(%b.4, %copied, %copied), branch_computations={%cheap, %dear}
  %start = (s32[]) tuple(%b.3)
  %counted = (s32[]) while(%start), condition=%inner_test, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %result = (f32[512,512]{1,0}, f32[1,512]{1,0}, s32[], pred[]) tuple(%chosen, %b.2, %b.3, %b.4)
}

ENTRY %main (a.0: (f32[512,512], f32[1,512], s32[], pred[])) -> (f32[512,512], f32[1,512], s32[], pred[]) {
  %a.0 = (f32[512,512]{1,0}, f32[1,512]{1,0}, s32[], pred[]) parameter(0)
  ROOT %loop = (f32[512,512]{1,0}, f32[1,512]{1,0}, s32[], pred[]) while(%a.0), condition=%test, body=%body
}
"""  # noqa: E501

EXCHANGES = """HloModule spread

ENTRY %main (a.0: f32[512,512]) -> f32[1024,512] {
  %a.0 = f32[512,512]{1,0} parameter(0)
  %sum = f32[512,512]{1,0} all-reduce-start(%a.0), to_apply=%add
  %added = f32[512,512]{1,0} all-reduce-done(%sum)
  %both = (f32[512,512]{1,0}, f32[1024,512]{1,0}) all-gather-start(%added), dimensions={0}
  ROOT %gathered = f32[1024,512]{1,0} all-gather-done(%both)
}
"""


def test_a_trip_of_a_loop_is_counted():
    counts = Reading(PROGRAM, trips=(1,)).counts
    assert counts.kernels == 2 + 3  # the update, the copy, and three trips of the inner loop
    assert (counts.loops, counts.conditionals, counts.sorts) == (2, 1, 0)
    assert Reading(PROGRAM, trips=(0,)).counts.kernels == 0


def test_the_host_reads_what_lies_outside_of_graphs():
    assert Reading(PROGRAM, trips=(4,)).counts.host == 5 + 4  # loop tests, and the conditional
    inside = frozenset({"loop", "chosen"})
    assert Reading(PROGRAM, trips=(4,), in_graphs=inside).counts.host == 0


def test_bytes_of_an_update_in_place_are_those_of_the_update():
    counts = Reading(PROGRAM, trips=(1,)).counts
    row, copy = 2 * 2048, 2 * MIB
    assert row <= counts.moved - copy <= row + 64  # and the few numbers of the inner loop
    assert list(counts.large_writes(MIB)) == [("copy", "f32[512,512]{1,0}")]


def test_exchanges_between_devices_are_counted_with_what_they_write():
    counts = Reading(EXCHANGES).counts
    assert (counts.kernels, counts.exchanges) == (2, 2)
    assert counts.moved == 2 * MIB + 3 * MIB
    assert list(counts.large_writes(2 * MIB)) == [
        ("all-gather-start", "(f32[512,512]{1,0}, f32[1024,512]{1,0})")
    ]
    assert Reading(PROGRAM).counts.exchanges == 0


def test_many_small_buffers_are_no_large_one():
    buffer = ("copy", "f32[512,512]{1,0}")
    counts, one = Counts(), Counts(writes=Counter({buffer: MIB}), largest={buffer: MIB})
    counts.add(one, 16)
    assert counts.large_writes(MIB) == {buffer: 16 * MIB}
    assert counts.large_writes(MIB + 1) == {}


def test_the_dearest_branch_is_counted_if_asked():
    counts = Reading(PROGRAM, trips=(1,), dearest=True).counts
    assert counts.sorts == 1
    assert counts.kernels == 6


def test_a_padded_array_takes_whole_tiles():
    assert size_of("bf16[16,8,4096,64]{3,2,1,0}") == 16 * 8 * 4096 * 64 * 2
    assert size_of("bf16[16,8,4096,64]{3,2,1,0:T(8,128)(2,1)}") == 16 * 8 * 4096 * 128 * 2
    assert size_of("s4[8,128]{1,0:E(4)}") == 8 * 128 // 2
    assert size_of("f32[8,128]{1,0:T(8,128)S(1)}") == 0


def test_loops_inside_a_command_buffer_are_found():
    thunks = "000: kCommandBuffer\n    001: kWhile\n        002: kConditional\n003: kWhile\n"
    names = (
        'annotation: "one" thunk_id: 1\nannotation: "two" thunk_id: 2\n'
        'annotation: "three" thunk_id: 3\n'
    )
    assert in_graphs(thunks, names) == {"one", "two"}
