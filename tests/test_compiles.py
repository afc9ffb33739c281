"""What is compiled: once each, nothing while serving, nothing cache-sized copied."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compiler

from jaxllama.engine import executables
from jaxllama.engine.blueprints import LEAN, NAMES, PACKED, WHOLE
from jaxllama.engine.engine import Engine
from jaxllama.engine.executables import MAGIC, Executables
from jaxllama.engine.own_files import read_own, write_own
from jaxllama.engine.program_key import program_key
from jaxllama.engine.programs import Programs
from jaxllama.errors import BrokenPlugin, CompiledLate
from jaxllama.kernels.cpu import library
from tests.support import (
    BODIES,
    CHAIN,
    ENGINE,
    FEW,
    KERNELS,
    MODEL,
    QuickPrograms,
    Told,
    closed,
    drive,
    new_engine,
    programs,
    request,
    run,
)


def fresh_programs(root) -> Programs:
    """Programs that nothing has compiled yet; those with samplers are read back all the time."""
    shared = programs(MODEL, ENGINE, samplers=())
    kept = Executables(root, program_key(("test",)))
    return QuickPrograms(MODEL, ENGINE, shared.bank, shared.params, shared.mesh, executables=kept)


def compilations(monkeypatch) -> list[str]:
    """Every XLA compilation from now on, by name."""
    names: list[str] = []
    original = compiler.backend_compile_and_load

    def counted(backend, module, *args, **kwargs):
        names.append(str(module.operation.attributes["sym_name"]))
        return original(backend, module, *args, **kwargs)

    monkeypatch.setattr(compiler, "backend_compile_and_load", counted)
    return names


def test_mixed_workload_compiles_nothing_and_closes_its_ledger(monkeypatch):
    engine = new_engine()
    engine.programs.warm_up()
    traces = engine.programs.traces.copy()
    names = compilations(monkeypatch)
    rng = np.random.default_rng(3)
    told: dict[int, Told] = {}
    knobs = [{}, {"top_k": 3}, {"top_p": 0.7, "min_p": 0.05}, {"logit_bias": {5: 3.0}}]
    for index in range(200):
        generation = engine.submit(
            request(
                rng.integers(0, 256, rng.integers(1, 120)),
                int(rng.integers(1, 12)),
                temperature=float(rng.choice([0, 1])),
                seed=index,
                knobs=knobs[index % 4],
                top_logprobs=None if index % 3 else 5,
            )
        )
        drive(engine, told, int(rng.integers(0, 3)))
        if index % 7 == 0:
            engine.cancel(generation)
    drive(engine, told)
    assert closed(engine)
    assert engine.ledger["accepted"] == 200
    assert engine.ledger["cancelled"] == 29
    assert names == []
    assert engine.programs.traces == traces


def test_compilations_are_noticed(monkeypatch):
    """The test above can fail: a compilation does show."""
    names = compilations(monkeypatch)
    jax.jit(lambda x: x * 12345 + 678)(np.float32(1)).block_until_ready()
    assert len(names) == 1


@pytest.fixture(scope="module")
def first_start(tmp_path_factory):
    """The folder of a first start, its programs, and the progress that it reported."""
    folder, heard = tmp_path_factory.mktemp("first"), []
    first = fresh_programs(folder)
    first.warm_up(lambda *told: heard.append(told))
    return folder, first, heard


def test_second_start_compiles_nothing(first_start, monkeypatch):
    folder, first, _ = first_start
    assert set(first.traces.elements()) == set(NAMES) - {LEAN}
    second = fresh_programs(folder)
    names = compilations(monkeypatch)
    second.warm_up()
    assert not second.traces
    assert names == []


def test_progress_names_each_program_that_is_not_on_disk(first_start):
    folder, _, heard = first_start
    names = [name for name in NAMES if name != LEAN]
    total = len(names)
    each = [
        told
        for done, name in enumerate(names)
        for told in [("programs", done, total), (f"compiling {name}", done, total)]
    ]
    assert heard == [*each, ("programs", total, total)]
    again = []
    fresh_programs(folder).warm_up(lambda *told: again.append(told))
    assert again == [("programs", done, total) for done in range(total + 1)]


def test_first_start_makes_a_lean_program_first_and_the_others_behind(tmp_path):
    first = fresh_programs(tmp_path)
    first.prepare()
    assert {"empty", "admit", "prefill", LEAN} <= first.made.keys()
    first.finish()
    assert not first.pending
    assert first.made.keys() == set(NAMES)
    second = fresh_programs(tmp_path)
    second.prepare()
    assert WHOLE in second.made
    second.finish()
    assert second.made.keys() == set(NAMES) - {LEAN}
    assert not any(made.is_compiled for made in second.made.values())


def test_samplers_are_tried_before_programs_are_kept(tmp_path):
    tried = []
    for _ in range(2):
        programs = fresh_programs(tmp_path)
        programs.bank = SimpleNamespace(try_samplers=lambda: tried.append("tried"))
        programs.prepare(behind=False)
        programs.finish()
    assert tried == ["tried"]
    programs = fresh_programs(tmp_path / "other")

    def refuse():
        raise BrokenPlugin("no good")

    programs.bank = SimpleNamespace(try_samplers=refuse)
    with pytest.raises(BrokenPlugin):
        programs.prepare(behind=False)
    assert not programs.executables.has("empty")
    assert not programs.pending


def test_start_of_a_short_command_compiles_what_it_needs(tmp_path):
    programs = fresh_programs(tmp_path)
    programs.prepare(behind=False)
    programs.finish()
    assert programs.made.keys() == {"empty", "admit", "prefill", LEAN}
    assert all(map(programs.is_ready, NAMES))  # the others are made when they are called
    told = run(Engine(programs), [request([1, 2, 3], 4), request([1, 2, 3], 4)])
    assert told[0].tokens == told[1].tokens
    assert WHOLE not in programs.made


def test_sealed_programs_refuse_to_compile(tmp_path):
    programs = fresh_programs(tmp_path)
    programs.compiled("release")
    programs.seal()
    try:
        programs.compiled("release")
        with pytest.raises(CompiledLate, match="program scrub"):
            programs.compiled("scrub")
        with pytest.raises(CompiledLate, match="something was compiled"):
            jax.jit(lambda x: x * 54321 + 9)(np.float32(1))
    finally:
        programs.stop()
    programs.compiled("scrub")


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign"])
def test_damaged_program_file_is_compiled_anew(tmp_path, damage, caplog):
    first = fresh_programs(tmp_path)
    first.compiled("release")
    path = next(tmp_path.glob("*/release.program"))
    blob = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(blob[: len(blob) // 2])
    elif damage == "flip":
        blob[len(blob) // 2] ^= 1
        path.write_bytes(blob)
    else:
        path.chmod(0o666)
    second = fresh_programs(tmp_path)
    second.compiled("release")
    assert second.traces["release"] == 1
    assert "not usable" in caplog.text


def test_unwritable_cache_costs_nothing_but_time(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    fresh_programs(blocked / "below").compiled("release")
    assert "was not kept" in caplog.text


def test_own_file_round_trip(tmp_path):
    write_own(tmp_path / "key" / "x.program", b"payload", MAGIC)
    assert read_own(tmp_path / "key" / "x.program", MAGIC) == b"payload"
    assert read_own(tmp_path / "key" / "y.program", MAGIC) is None


def test_key_changes_with_every_part():
    base = program_key((MODEL, ENGINE))
    assert base == program_key((MODEL, ENGINE))
    assert base != program_key((MODEL, dataclasses.replace(ENGINE, slots=5)))
    assert base != program_key((dataclasses.replace(MODEL, norm_eps=1e-6), ENGINE))


def cache_sized(text: str, shape: tuple[int, ...], operations: str) -> list[str]:
    """Instructions of these kinds whose result has the cache's shape."""
    dims = ",".join(map(str, shape))
    return re.findall(rf"= \w+\[{dims}\]\S* (?:{operations})\(.*", text)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["decode", "prefill", "copy", "save", "restore"])
def test_no_program_copies_or_converts_the_cache(name, dtype, body):
    engine = dataclasses.replace(body, cache_dtype=dtype)
    # What samplers do to the cache shows with any dtype: other tests compile these two anyway.
    samplers = {"float32": FEW, "int8": CHAIN}.get(dtype, ())
    shared = programs(MODEL, engine, samplers=samplers)
    text = shared.compiled(name).as_text()
    for part in jax.tree.leaves(shared.blueprints.state.cache[0]):
        assert cache_sized(text, part.shape, "parameter")
        moves = "copy|convert|copy-start|select|transpose|concatenate"
        assert not cache_sized(text, part.shape, moves)


@pytest.mark.skipif(not library.available(), reason=library.why_not())
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_packed_prompts_change_the_cache_in_place(dtype):
    engine = dataclasses.replace(KERNELS, cache_dtype=dtype, pack_prompts=True)
    shared = programs(MODEL, engine, samplers=())
    text, state = shared.compiled(PACKED).as_text(), shared.blueprints.state
    assert not_in_place(text, len(jax.tree.leaves(state)), 1) == []
    for part in jax.tree.leaves(state.cache[0]):
        assert not cache_sized(text, part.shape, "copy|convert|copy-start|select|concatenate")


PARAMETER = re.compile(r"%(\S+?) = (\w+\[[\d,]*\])\S* parameter\((\d+)\)")
ALIAS = re.compile(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)")


def not_in_place(text: str, states: int, argument: int) -> list[str]:
    """What a compiled program does not write where it reads it, of a state of so many arrays.

    The state is argument number `argument` and the first `states` results, in the same order.
    """
    entry = text[text.index("\nENTRY ") :]
    given = {
        int(index): int(place[1])
        for name, _, index in PARAMETER.findall(entry)
        if (place := re.match(rf"args_{argument}__(\d+)_", name))
    }
    assert sorted(given.values()) == list(range(states)), "the program does not take the state"
    header = text[: text.index("\n")]
    aliases = {int(result): int(parameter) for result, parameter in ALIAS.findall(header)}
    return [
        f"array {place} of the state"
        for parameter, place in given.items()
        if aliases.get(place) != parameter
    ]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "name", ["decode", "prefill", "copy", "restore", "admit", "release", "scrub"]
)
def test_every_array_of_the_state_is_updated_in_place(name, body):
    shared = programs(MODEL, body)
    text = shared.compiled(name).as_text()
    argument = 1 if name in ("decode", "prefill") else 0
    assert not_in_place(text, len(jax.tree.leaves(shared.blueprints.state)), argument) == []


@pytest.mark.parametrize(
    ("function", "donate", "wrong"),
    [
        (lambda _, state: [state[0] + 1, state[1] + 2, state[2] * 2], (1,), []),
        (lambda _, state: [state[0] + 1, state[1] + 2, state[2] * 2], (), [0, 1, 2]),
        (lambda x, state: [state[0] + 1, jnp.sum(x * state[1])[None], state[2] * 2], (1,), [1]),
        (lambda _, state: [state[1] + 1, state[0] + 2, state[2] * 2], (1,), [0, 1]),
    ],
)
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_an_array_that_is_not_updated_in_place_is_noticed(function, donate, wrong):
    """The test above can fail: for each array alone, not by their number."""

    def traced(*args):
        return function(*args)

    x, state = jnp.ones(4), [jnp.ones(4), jnp.ones(3), jnp.ones(5)]
    if wrong == [1]:
        state[1] = jnp.ones(4)
    text = jax.jit(traced, donate_argnums=donate).lower(x, state).compile().as_text()
    assert not_in_place(text, 3, 1) == [f"array {place} of the state" for place in wrong]


def test_a_program_that_xla_could_not_load_again_is_not_kept(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(executables, "MOST_OBJECTS", 0)
    fresh_programs(tmp_path).compiled("release")
    assert "was not kept: it has" in caplog.text
    assert not list(tmp_path.rglob("*.program"))
