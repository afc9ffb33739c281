"""`jaxllama explain`: stages that end in the engine's own tokens, and replays without a model."""

import json
import re
from collections.abc import Iterator

import pytest

from jaxllama.cli.explain import draw, parse, record
from jaxllama.errors import ConfigError, InvalidParameter
from jaxllama.explain import Position, Stage, replay
from jaxllama.intake import Intake
from jaxllama.llm import LLM
from jaxllama.recording import Recording
from jaxllama.testing import ByteTokenizer
from jaxllama_formats.chatml import ChatMl
from tests.support import (
    ENGINE,
    MODEL,
    QuickPrograms,
    installed_samplers,
    new_engine,
    quick_operations,
)

KNOBS = {
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.05,
    "repetition_penalty": 1.2,
    "mirostat": 2,
    "temperature": 0.9,
    "seed": 3,
    "max_tokens": 2,  # the second is drawn with what the first has left behind
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def recording() -> Recording:
    engine = new_engine(kind=QuickPrograms)
    llm = LLM(engine, Intake(ByteTokenizer(), ChatMl(), engine.bank, ENGINE), config=MODEL)
    return record(llm, "hello", **KNOBS)  # nothing of the model goes further than this


@pytest.fixture(scope="module", autouse=True)
def quick(recording) -> Iterator[None]:
    """Replays run hundreds of operations a few times each."""
    del recording  # the engine's programs are compiled before
    with quick_operations():
        yield


@pytest.fixture(scope="module")
def positions(recording):
    return replay(recording, installed_samplers())


def test_stages_end_in_the_tokens_that_the_engine_drew(recording, positions):
    assert len(positions) == 2
    assert [each.token for each in positions] == list(recording.tokens)
    names = [stage.name for stage in positions[0].stages]
    filters = ["top_k", "top_p", "min_p", "mirostat"]
    assert names == ["model", "repetition", "temperature", *filters]


def test_stages_add_up(positions):
    for each in positions:
        kept = [stage.kept for stage in each.stages]
        assert kept[0] == MODEL.vocab_size and kept == sorted(kept, reverse=True)
        assert 0 <= each.chance < 1
        by_name = {stage.name: stage for stage in each.stages}
        before, after = by_name["temperature"], by_name["top_k"]
        assert after.kept == 40 and after.rank == before.rank
        assert after.p == pytest.approx(before.p / (1 - after.removed), rel=1e-4)


def test_unchanged_numbers_change_nothing_and_others_do(recording, positions, tmp_path):
    recording.save(tmp_path / "kept.npz")
    loaded = Recording.load(tmp_path / "kept.npz")
    assert replay(loaded, installed_samplers(), {"top_p": 0.9}) == positions
    greedy = replay(loaded, installed_samplers(), {"temperature": 0.0})
    assert all(each.stages[-1].rank == 0 and each.stages[-1].kept == 1 for each in greedy)


@pytest.mark.parametrize("changes", [{"top_q": 0.9}, {"top_p": 7.0}, {"max_tokens": 3}])
def test_numbers_that_do_not_do_are_refused(recording, changes):
    with pytest.raises(InvalidParameter):
        replay(recording, installed_samplers(), changes)


def test_what_is_no_recording_is_refused(tmp_path):
    (tmp_path / "x.npz").write_text("nothing")
    with pytest.raises(ConfigError, match="no recording"):
        Recording.load(tmp_path / "x.npz")


def test_the_command_replays_a_file(run, recording, tmp_path):
    recording.save(tmp_path / "kept.npz")
    result = run("explain", "--load", "kept.npz", "--what-if", "top_k=1", "--json")
    for each in json.loads(result.stdout)["positions"]:
        stages = {stage["name"]: stage for stage in each["stages"]}
        assert stages["top_k"]["kept"] == 1 and each["recorded"] in recording.tokens
    assert run("explain").exit_code != 0


def test_people_see_the_texts_of_tokens_and_a_legend(recording, capsys):
    texts = list(recording.texts)
    drawn, other = recording.tokens[0], recording.tokens[0] + 1
    texts[drawn], texts[other] = " word\x1b", ""
    stage = Stage("model", kept=9, removed=0.25, rank=1, p=0.5)
    same = Position(drawn, texts[drawn], drawn, 0.125, (stage,))
    differs = Position(other, "", drawn, 0.125, (stage,))
    draw([same, differs], texts)
    told = capsys.readouterr().out
    assert "' word␛'" in told and f"token {other} (was" in told
    assert f" {drawn} " not in told
    for column in ("token", "chance", "stage", "tokens left", "removed", "rank", "probability"):
        assert re.search(rf"^{column} {{2,}}[a-z]", told, re.MULTILINE)
    assert max(map(len, told.splitlines())) <= 80


def test_an_expression_is_a_stage_and_can_be_tried_with_other_words(recording):
    others = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "mirostat": 0}
    changes = {**others, "expression": "rank < min(2, 3)"}
    stages = replay(recording, installed_samplers(), changes)[0].stages
    assert [each.name for each in stages] == ["model", "temperature", "expression"]
    assert stages[-1].kept == 2
    assert parse("expression=rank < min(2, 3) and p >= 0,top_k=0") == {
        "expression": "rank < min(2, 3) and p >= 0",
        "top_k": 0,
    }
