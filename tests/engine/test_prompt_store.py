"""The prompt store: what slots drop comes back with the same bits, from memory and from disk."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

from jaxllama.config import KEY_BLOCK, EngineConfig
from jaxllama.engine import prompts
from jaxllama.engine.engine import Engine
from jaxllama.engine.own_files import read_own, write_own
from jaxllama.engine.prefixes import common_prefix
from jaxllama.engine.probes import finish
from jaxllama.engine.prompt_files import HEADER, MAGIC, PromptFiles
from jaxllama.engine.prompt_store import LEAST, PromptStore
from jaxllama.model.cache import Columns
from tests.support import (
    BODIES,
    CHAIN,
    ENGINE,
    MODEL,
    Told,
    closed,
    drive,
    programs,
    request,
    run,
)

BLOCK_BYTES = 1000  # of the stores below without an engine


class Numbers(np.ndarray):
    """Host numbers that can be asked what a device array can be asked."""

    def is_ready(self) -> bool:
        return True

    def copy_to_host_async(self) -> None:
        pass


def columns(at: int) -> Columns:
    return Columns(np.full((1, 1, 1, 1), at).view(Numbers))


def new_store(blocks: int) -> PromptStore:
    return PromptStore(blocks * BLOCK_BYTES, BLOCK_BYTES)


def is_ordered(store: PromptStore) -> bool:
    """Say whether every block comes before its parent, so that the first one can be dropped."""
    place = {block: index for index, block in enumerate(store)}
    return all(place[block] < place[block.parent] for block in store if block.parent.tokens)


def test_longest_stored_prefix_is_found():
    """Random prompts that share beginnings, against a search through all that was stored."""
    rng, store, kept = random.Random(5), new_store(10_000), []
    stems = [[rng.randrange(3) for _ in range(400)] for _ in range(4)]
    for _ in range(200):
        stem = rng.choice(stems)
        prompt = stem[: rng.randrange(1, 400)] + [rng.randrange(3) for _ in range(rng.randrange(9))]
        best = max((common_prefix(prompt, each) for each in kept), default=0)
        found = store.find(prompt, None)
        assert (found.length if found else 0) == (best if best >= LEAST else 0)
        if found:
            assert len(found.blocks) == -(-found.length // KEY_BLOCK)
        store.save(prompt, None, columns)
        kept.append(prompt)
        assert is_ordered(store)


def test_common_beginning_is_stored_once():
    store, stem = new_store(100), list(range(2 * KEY_BLOCK))
    read = []

    def reading(at: int) -> Columns:
        read.append(at)
        return columns(at)

    for tail in range(5):
        store.save([*stem, 1000 + tail, 7], None, reading)
    assert read == [0, KEY_BLOCK, *[2 * KEY_BLOCK] * 5]
    assert len(store) == 2 + 5
    store.save(stem[:200], None, reading)  # the beginning of a block that is there
    assert len(store) == 2 + 5


def test_longer_tail_replaces_the_shorter_one_that_it_begins_with():
    store = new_store(100)
    for length in (40, 60, KEY_BLOCK, KEY_BLOCK + 40):
        store.save(list(range(length)), None, columns)
    assert [len(block.tokens) // 4 for block in store] == [40, KEY_BLOCK]


def test_least_recently_used_blocks_go_first_and_the_bound_holds():
    store = new_store(4)
    for first in range(3):
        store.save([first, *range(100, 100 + KEY_BLOCK + 39)], None, columns)
        assert len(store) <= 4
    assert store.find([0, *range(100, 260)], None) is None
    assert store.figures["prompt_cache_evictions"] == 2
    assert store.figures["prompt_cache_bytes"] == 4 * BLOCK_BYTES
    used = store.find([1, *range(100, 260)], None)
    store.use(used, 0)
    store.save([3, *range(100, 260)], None, columns)
    assert store.find([1, *range(100, 260)], None).length == used.length
    assert store.find([2, *range(100, 260)], None) is None
    store.save(list(range(1000, 1000 + 9 * KEY_BLOCK)), None, columns)  # longer than the store
    assert len(store) == 4
    assert store.find(range(1000, 2000), None).length == 4 * KEY_BLOCK


def test_adapters_share_nothing():
    store, prompt = new_store(100), list(range(100))
    store.save(prompt, (1, 1.0), columns)
    assert store.find(prompt, None) is None
    assert store.find(prompt, (1, 0.5)) is None
    assert store.find(prompt, (1, 1.0)).length == 100


def test_a_gain_too_small_for_a_copy_is_no_hit():
    store, prompt = new_store(100), list(range(100))
    store.save(prompt, None, columns)
    assert store.find(prompt, None, 100 - LEAST).length == 100
    assert store.find(prompt, None, 101 - LEAST) is None


def test_blocks_of_a_failed_program_are_forgotten():
    store = new_store(100)
    store.save(list(range(KEY_BLOCK)), None, columns)
    store.settle()
    store.save(list(range(3 * KEY_BLOCK)), None, lambda _: Columns(Broken()))
    store.settle()
    assert store.find(range(3 * KEY_BLOCK), None).length == KEY_BLOCK


class Broken:
    """The result of a program that failed."""

    def is_ready(self) -> bool:
        return True

    def copy_to_host_async(self) -> None:
        pass

    def __array__(self, *_args: object, **_named: object) -> np.ndarray:
        raise RuntimeError("the program failed")


# Engines.


def stored_engine(
    engine: EngineConfig = ENGINE,
    files: PromptFiles | None = None,
    **samplers: tuple[str, ...],
) -> Engine:
    ready = programs(MODEL, engine, **samplers)
    store = PromptStore(1 << 20, KEY_BLOCK)
    return Engine(ready, prompt_store=store, prompt_files=files)


def turns(rng: random.Random, clients: int, count: int) -> list[list[list[int]]]:
    """The prompts of conversations that all begin with the same words."""
    system = [rng.randrange(256) for _ in range(20)]
    found = []
    for _ in range(clients):
        prompt, own = list(system), []
        for _ in range(count):
            prompt = prompt + [rng.randrange(256) for _ in range(rng.randrange(45, 60))]
            own.append(prompt)
        found.append(own)
    return found


@pytest.mark.origin("RLLaMA: the prompt cache, of continuations too")
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_conversations_of_more_clients_than_slots_come_back_with_the_same_bits(body, dtype):
    """With the same seeds: the same text and log-probabilities as without a store."""
    rng = random.Random(7)
    samplers = {"samplers": CHAIN} if dtype == "int8" else {}  # other tests compile these, too
    engine = stored_engine(dataclasses.replace(body, cache_dtype=dtype), **samplers)
    plain = Engine(engine.programs)
    reused = 0
    for prompt_of in zip(*turns(rng, 9, 3), strict=True):
        asked = [
            request(prompt, 4, temperature=rng.choice([0.0, 1.0]), seed=rng.randrange(99))
            for prompt in prompt_of
        ]
        for one in asked:
            got, expected = run(engine, [one])[0], run(plain, [one])[0]
            assert got.tokens == expected.tokens
            if body.kernels == "cpu":
                assert got.logprobs == expected.logprobs
            else:
                np.testing.assert_allclose(got.logprobs, expected.logprobs, atol=1e-5)
            reused += got.finished.usage.reused > 60
            assert expected.finished.usage.reused <= 60
    assert reused == 9 * 2
    figures = engine.prompt_store.figures
    assert figures["prompt_cache_hits"] >= 9 * 2
    assert figures["prompt_cache_tokens"] > 9 * 2 * 60
    assert closed(engine)


def test_a_prompt_is_restored_in_pieces_between_decode_steps(monkeypatch):
    monkeypatch.setattr(prompts, "RESTORED", 1)
    engine = stored_engine()
    rng = random.Random(8)
    asked = [request([rng.randrange(256) for _ in range(190)], 4, seed=i) for i in range(9)]
    first = [run(engine, [one])[0] for one in asked]
    told: dict[int, Told] = {}
    other = engine.submit(request([1, 2, 3], 60))
    drive(engine, told, 3)
    before = len(told[other.id].tokens)
    again = engine.submit(asked[0])
    drive(engine, told, 1)
    assert again.filled == KEY_BLOCK  # one of two blocks
    drive(engine, told)
    assert told[again.id].tokens == first[0].tokens
    assert told[again.id].finished.usage.reused == 189
    assert len(told[other.id].tokens) == 60 > before


def test_cancelled_while_it_is_restored(monkeypatch):
    monkeypatch.setattr(prompts, "RESTORED", 1)
    engine = stored_engine()
    rng = random.Random(9)
    asked = [request([rng.randrange(256) for _ in range(190)], 4, seed=i) for i in range(9)]
    first = [run(engine, [one])[0] for one in asked]
    gone = engine.submit(asked[0])
    engine.step()
    engine.cancel(gone)
    again = run(engine, [asked[0]])[0]
    assert again.tokens == first[0].tokens
    assert again.finished.usage.reused == 189
    assert closed(engine)


@pytest.mark.parametrize("name", ["save", "restore"])
def test_a_program_that_fails_loses_no_request(name, monkeypatch):
    engine = stored_engine()
    rng = random.Random(10)
    asked = [request([rng.randrange(256) for _ in range(150)], 4, seed=i) for i in range(9)]
    first = [run(engine, [one])[0] for one in asked]
    real, failures = getattr(engine.programs, name), []

    def fail(state, *given):
        if failures:
            return real(state, *given)
        failures.append(name)
        engine.programs.delete(state)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.programs, name, fail)
    new = request([rng.randrange(256) for _ in range(150)], 4)
    again = run(engine, [new, *asked])[1:]
    assert failures
    assert [one.tokens for one in again] == [one.tokens for one in first]
    assert closed(engine)


def test_probes_continue_a_stored_prefix():
    engine = stored_engine()
    rng = random.Random(11)
    texts = [[rng.randrange(256) for _ in range(180)] for _ in range(9)]
    expected = finish(engine.probes.peek(texts[0], 150))[0]
    for each in texts[1:]:
        finish(engine.probes.peek(each, 150))
    hits = engine.prompt_store.figures["prompt_cache_hits"]
    np.testing.assert_allclose(finish(engine.probes.peek(texts[0], 150))[0], expected, atol=1e-5)
    assert engine.prompt_store.figures["prompt_cache_hits"] == hits + 1


def test_without_a_store_nothing_is_read():
    engine = Engine(programs(MODEL, ENGINE))
    run(engine, [request([i, *range(100)], 2) for i in range(9)])
    assert not len(engine.prompt_store)
    assert not engine.prompt_store.is_on


# Files.


def files_in(folder: Path, key: str = "weights") -> PromptFiles:
    return PromptFiles(folder, key, programs(MODEL, ENGINE).columns, MODEL.vocab_size)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the prompts of an engine that was closed, a request, and its answer."""
    folder = tmp_path_factory.mktemp("prompts")
    one = request([*range(7, 190)], 4)
    engine = stored_engine(files=files_in(folder))
    told = run(engine, [one])[0]
    run(engine, [request([*range(100), 3], 2)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.programs, "delete_weights", lambda: None)  # other tests use them
        engine.close()
    return folder, one, told


def reopened(folder: Path, key: str = "weights") -> Engine:
    return stored_engine(files=files_in(folder, key))


def copied(written, target: Path) -> list[Path]:
    folder = next(written[0].iterdir())
    own = target / folder.name
    own.mkdir(mode=0o700)
    for path in folder.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    return sorted(own.iterdir())


@pytest.mark.origin("RLLaMA: the prompt cache on disk, which it had planned")
def test_a_restart_keeps_prompts(written):
    folder, one, told = written
    engine = reopened(folder)
    again = run(engine, [one])[0]
    assert again.finished.usage.reused == len(one.prompt) - 1
    assert (again.tokens, again.logprobs) == (told.tokens, told.logprobs)
    assert is_ordered(engine.prompt_store)


def test_prompts_of_other_weights_are_not_used(written):
    folder, one, _ = written
    assert run(reopened(folder, "others"), [one])[0].finished.usage.reused == 0


def spoil_digest(blob: bytearray) -> None:
    blob[-1] ^= 1


def spoil_numbers(blob: bytearray) -> None:
    blob[-100] ^= 1


def spoil_magic(blob: bytearray) -> None:
    blob[0] ^= 1


def cut_short(blob: bytearray) -> None:
    del blob[-5:]


@pytest.mark.parametrize("spoil", [spoil_digest, spoil_numbers, spoil_magic, cut_short])
def test_damaged_files_are_ignored(spoil, written, tmp_path, caplog):
    paths = copied(written, tmp_path)
    for path in paths:
        blob = bytearray(path.read_bytes())
        spoil(blob)
        path.write_bytes(blob)
    engine = reopened(tmp_path)
    assert not len(engine.prompt_store)
    assert sum("are ignored" in record.message for record in caplog.records) == 1
    assert run(engine, [written[1]])[0].tokens == written[2].tokens


def test_a_file_with_a_right_digest_and_wrong_content_is_ignored(written, tmp_path):
    """The digest protects against accidents: the content is checked as well."""
    for path in copied(written, tmp_path):
        body = bytearray(read_own(path, MAGIC))
        key, parent, _, tokens = HEADER.unpack_from(body)
        HEADER.pack_into(body, 0, key, parent, 512, b"\xff" * len(tokens))
        write_own(path, bytes(body), MAGIC)
    assert not len(reopened(tmp_path).prompt_store)


def test_a_block_without_its_beginning_is_ignored(written, tmp_path, caplog):
    paths = copied(written, tmp_path)
    parents = {HEADER.unpack_from(read_own(path, MAGIC))[1].hex() for path in paths}
    before = next(path for path in paths if path.stem in parents)
    before.unlink()
    assert len(reopened(tmp_path).prompt_store) < len(paths) - 1
    assert "without their beginning" in caplog.text


def test_files_that_others_can_write_are_ignored(written, tmp_path):
    paths = copied(written, tmp_path)
    for path in paths:
        path.chmod(0o666)
    assert not len(reopened(tmp_path).prompt_store)
    for path in paths:
        path.chmod(0o600)
    assert len(reopened(tmp_path).prompt_store) == len(paths)
    paths[0].parent.chmod(0o777)
    assert not len(reopened(tmp_path).prompt_store)


def test_the_folder_is_bounded_and_old_keys_go_first(written, tmp_path):
    paths = copied(written, tmp_path)
    size = paths[0].stat().st_size
    other, foreign = tmp_path / ("0" * 64), tmp_path / "letters"
    for folder in (other, foreign):
        folder.mkdir(mode=0o700)
        (folder / "one.block").write_bytes(bytes(size))
    files = files_in(tmp_path)
    store = PromptStore(2 * BLOCK_BYTES, BLOCK_BYTES)  # two blocks
    files.read(store)
    store.save([1] * 10, None, columns_like(programs(MODEL, ENGINE).columns))
    files.write(store)
    assert len(list(paths[0].parent.iterdir())) == len(store) == 2
    assert not other.exists()
    assert (foreign / "one.block").exists()


def columns_like(shapes: Columns):
    filled = np.zeros(shapes.numbers.shape, shapes.numbers.dtype).view(Numbers)
    return lambda _: Columns(filled)


def test_a_folder_that_cannot_be_written_costs_a_log_line(tmp_path, caplog):
    place = tmp_path / "file"
    place.write_text("")
    store = PromptStore(BLOCK_BYTES, BLOCK_BYTES)
    files_in(place).write(store)
    assert "were not kept" in caplog.text


def test_claims_save_only_what_they_drop():
    engine = stored_engine()
    run(engine, [request(range(100), 2)])
    run(engine, [request([*range(100), 5, 6], 2)])  # continues in its slot
    assert not len(engine.prompt_store)
