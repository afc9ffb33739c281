"""Short prompts of several requests in one prefill call: same bits, fewer calls, no one waits."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from jaxllama.engine.adapters import LoadedAdapters
from jaxllama.engine.batch import Batch
from jaxllama.engine.blueprints import PACKED
from jaxllama.engine.engine import Engine
from jaxllama.engine.packing import PackedChunk
from jaxllama.engine.programs import Programs
from jaxllama.engine.remote_calls import decode_call, encode_call
from jaxllama.errors import ConfigError
from jaxllama.kernels import body_named
from jaxllama.kernels.cpu import library
from jaxllama.loading import engine_config
from jaxllama.model.adapters import empty_adapters
from jaxllama.weights.lora import read_adapter
from tests.adapter_writer import random_adapter, write_adapter
from tests.support import (
    ENGINE,
    KERNELS,
    MODEL,
    QuickPrograms,
    closed,
    drive,
    new_engine,
    programs,
    request,
    run,
)

PACKING = dataclasses.replace(KERNELS, slots=8, pack_prompts=True)
BUILT = pytest.mark.skipif(not library.available(), reason=library.why_not())


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, length]).integers(0, 256, length).tolist())


def test_a_chunk_has_every_token_at_its_place():
    rng = np.random.default_rng(0)
    for _ in range(100):
        rows, prompts = int(rng.integers(1, 9)), int(rng.integers(1, 5))
        lengths = rng.integers(2, 30, prompts)
        spans = int(sum(-(-lengths // rows)) + rng.integers(3))
        chunk = PackedChunk(spans, rows)
        expected = {}
        for slot, length in enumerate(lengths):
            ids, start = rng.integers(1, 256, length).tolist(), int(rng.integers(2))
            chunk.add(slot, ids, start)
            expected |= {(slot, at): ids[at] for at in range(start, length)}
        ids, places = chunk.arrays()
        found = {}
        for piece, (slot, start, count) in zip(ids.reshape(spans, rows), places.T, strict=True):
            assert count or start > max(at for owner, at in expected if owner == slot)
            found |= {(slot, start + at): piece[at] for at in range(count)}
        assert found == expected


def counting(engine: Engine) -> Counter[str]:
    """Count the engine's prefill calls from now on."""
    calls: Counter[str] = Counter()
    for name in ("prefill", "prefill_packed"):
        original = getattr(engine.programs, name)

        def call(*given, name=name, original=original):
            calls[name] += 1
            return original(*given)

        setattr(engine.programs, name, call)
    return calls


def engine_of(config) -> Engine:
    return new_engine(MODEL, config, kind=QuickPrograms)


def packing_engine(config=PACKING, kind=QuickPrograms) -> Engine:
    made = programs(MODEL, config, kind=kind)
    made.compiled(PACKED)
    return Engine(made)


@BUILT
@pytest.mark.parametrize("cache_dtype", ["float16", "int8"])
def test_prompts_have_the_same_bits_together_as_alone(cache_dtype):
    config = dataclasses.replace(PACKING, cache_dtype=cache_dtype)
    lengths = (2, 5, 17, 16, 18, 33, 9, 60)
    asked = [request(prompt_of(length), 6) for length in lengths]
    solo = dataclasses.replace(config, pack_prompts=False)
    alone = [run(new_engine(MODEL, solo), [each])[0] for each in asked]
    engine = packing_engine(config, kind=Programs)
    calls = counting(engine)
    together = run(engine, asked)
    for one, other in zip(alone, together, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
    # Tiles of 4 spans of 16 tokens: (1, 1, 1, 1), then (2, 2), then (1), then the longest alone.
    assert calls == {"prefill_packed": 2, "prefill": 2}
    assert closed(engine)


@BUILT
def test_the_prefix_of_another_prompt_in_the_same_call_is_computed_once():
    engine = packing_engine()
    calls = counting(engine)
    stem = prompt_of(30)
    asked = [request((*stem, each), 4) for each in range(3)]
    found = run(engine, [*asked, request(prompt_of(7), 4)])
    assert calls == {"prefill_packed": 1}  # the first and the last; the others wait, and copy
    alone = [run(engine_of(KERNELS), [each])[0] for each in asked]
    assert [each.tokens for each in found[:3]] == [each.tokens for each in alone]
    assert [each.finished.usage.reused for each in found[:3]] == [0, 30, 30]


@BUILT
@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((130,), {"prefill": 3}),
        ((130, 9, 10, 11), {"prefill": 3, "prefill_packed": 1}),
        ((9, 130, 10, 11), {"prefill": 3, "prefill_packed": 1}),
        # The third has no room beside the others: 32, 8, 19 and 9 tokens in 4 spans of 16.
        ((33, 9, 20, 10), {"prefill": 1, "prefill_packed": 1}),
    ],
)
def test_a_prompt_without_room_beside_others_has_calls_of_its_own(lengths, expected):
    engine = packing_engine()
    calls = counting(engine)
    run(engine, [request(prompt_of(length), 2) for length in lengths])
    assert calls == expected


@BUILT
def test_a_client_whose_prompt_was_passed_over_has_the_next_turn():
    engine = packing_engine()
    sent: list[tuple[int, ...]] = []
    alone, together = engine.programs.prefill, engine.programs.prefill_packed

    def prefill(state, slot, *given):
        sent.append((int(slot),))
        return alone(state, slot, *given)

    def prefill_packed(state, ids, places):
        sent.append(tuple(places[0, places[2] > 0].tolist()))
        return together(state, ids, places)

    engine.programs.prefill, engine.programs.prefill_packed = prefill, prefill_packed
    for seed, (client, length) in enumerate(zip("ababc", (40, 40, 9, 8, 7), strict=True)):
        engine.submit(request(prompt_of(length, seed), 2), client=client)
    drive(engine, {})
    # Each gets the slot of its number; 39 tokens take three of the four spans.
    assert sent == [(0, 0, 0, 2), (1, 1, 1, 3), (4,)]


@BUILT
@pytest.mark.parametrize(("is_shared", "calls"), [(False, 1), (True, 2)])
def test_clients_that_share_the_engine_are_packed_less(is_shared, calls):
    engine = packing_engine()
    counted = counting(engine)
    engine.is_shared = is_shared
    run(engine, [request(prompt_of(9, seed), 2) for seed in range(4)])
    assert counted == {"prefill_packed": calls}


@BUILT
def test_a_prompt_with_an_adapter_has_a_call_of_its_own(tmp_path):
    folder = write_adapter(tmp_path / "one", random_adapter(MODEL, seed=0))
    config = dataclasses.replace(PACKING, adapter_slots=1)
    made = programs(MODEL, config, kind=QuickPrograms)
    made.compiled(PACKED)
    adapters = LoadedAdapters(made, empty_adapters(MODEL, config, made.mesh))
    adapters.load("one", read_adapter(folder, MODEL, config))
    engine = Engine(made, adapters=adapters)
    calls = counting(engine)
    with_adapter = request(prompt_of(9), 4, adapter=adapters.use("one", 1.0))
    others = [request(prompt_of(9, seed), 4) for seed in (1, 2)]
    found = run(engine, [others[0], with_adapter, others[1]])
    assert calls == {"prefill": 1, "prefill_packed": 1}
    alone = [run(engine_of(KERNELS), [each])[0].tokens for each in others]
    assert [found[0].tokens, found[2].tokens] == alone
    assert found[1].tokens != run(engine_of(KERNELS), [request(prompt_of(9), 4)])[0].tokens


@BUILT
def test_a_fault_in_a_call_of_several_prompts_replays_them():
    engine = packing_engine()
    original, failed = engine.programs.prefill_packed, []

    def failing(*given):
        if not failed:
            failed.append(True)
            raise RuntimeError("planted")
        return original(*given)

    engine.programs.prefill_packed = failing
    asked = [request(prompt_of(length), 4) for length in (9, 12)]
    found = run(engine, asked)
    assert failed and engine.recovery.faults == 1
    expected = [run(engine_of(KERNELS), [each])[0].tokens for each in asked]
    assert [each.tokens for each in found] == expected
    assert closed(engine)


@BUILT
def test_a_call_of_several_prompts_reaches_the_other_hosts():
    arrays = np.arange(64, dtype=np.int32), np.arange(12, dtype=np.int32).reshape(3, 4)
    call = decode_call(encode_call("prefill_packed", arrays, {}))
    assert hasattr(Batch.prefill_packed, "__wrapped__")
    for sent, found in zip(arrays, call.positional, strict=True):
        np.testing.assert_array_equal(sent, found)


@pytest.mark.parametrize("kernels", ["gpu", "tpu"])
def test_interpreted_kernels_write_the_same_columns(kernels):
    config = dataclasses.replace(
        ENGINE, kernels=kernels, dtype="bfloat16", cache_dtype="bfloat16", slots=3
    )
    config = dataclasses.replace(config, prefill_chunk=512, pack_prompts=True)
    prompts = [prompt_of(length) for length in (70, 9, 64)]
    alone, together = (programs(MODEL, config, kind=QuickPrograms) for _ in range(2))
    state = alone.empty()
    for slot, ids in enumerate(prompts):
        padded = np.zeros(alone.chunk, np.int32)
        padded[: len(ids)] = ids
        numbers = (np.int32(0), np.int32(len(ids)))
        state = alone.prefill(state, np.int32(slot), padded, *numbers)
    chunk = PackedChunk(together.spans, together.span_rows)
    for slot, ids in enumerate(prompts):
        chunk.add(slot, ids, 0)
    other = together.prefill_packed(together.empty(), *chunk.arrays())
    caches = alone.tree_of(state).cache, together.tree_of(other).cache
    for one, two in zip(*caches, strict=True):
        for first, second in zip(one, two, strict=True):
            for slot, ids in enumerate(prompts):
                columns = (slot, slice(None), slice(len(ids)))
                np.testing.assert_array_equal(np.asarray(first[columns]), second[columns])


def test_kernels_that_cannot_and_stages_refuse():
    assert body_named("xla").span_rows is None
    with pytest.raises(ConfigError, match="pack_prompts is set with kernels 'xla'"):
        engine_config(MODEL, "xla", pack_prompts=True)
    with pytest.raises(ConfigError, match="pack_prompts is set with kernels 'xla'"):
        programs(MODEL, dataclasses.replace(ENGINE, pack_prompts=True))
    with pytest.raises(ConfigError, match="pack_prompts is set with 2 stages"):
        dataclasses.replace(ENGINE, stage_layers=(1, 1), pack_prompts=True)
    assert not engine_config(MODEL, "xla").pack_prompts
