"""Blocks of prompts, the map of who saw them, and the order of replicas."""

import json

import pytest

from jaxllama.deploy.prefixes import BLOCK, MOST_BLOCKS, PrefixMap, blocks_of, rank

LONG = "You are a helpful assistant. " * 20


def chat(*texts: str, **more):
    roles = ["system", "user", "assistant", "user"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"messages": messages, **more}


def test_a_conversation_begins_with_the_blocks_of_its_last_turn():
    first = blocks_of(chat(LONG, "hello", stream=True))
    second = blocks_of({"seed": 7, **chat(LONG, "hello", "hi", "and now?")})
    assert len(first) >= len(LONG) // BLOCK
    assert second[: len(first)] == first


def test_a_difference_changes_all_blocks_after_it():
    one, other = blocks_of({"prompt": "a" * 400}), blocks_of({"prompt": "a" * 200 + "b" * 200})
    assert one[:1] == other[:1]
    assert not set(one[1:]) & set(other[1:])


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "ollama", "rama"])
def test_fields_of_a_prompt_are_read_wherever_they_are(dialect):
    bodies = {
        "openai": chat(LONG, "x"),
        "anthropic": {"max_tokens": 5, "system": [{"type": "text", "text": LONG}]},
        "ollama": {"model": "m", "prompt": LONG, "options": {"seed": 1}},
        "rama": {"stream": True, "prompt": LONG},
    }
    assert blocks_of(bodies[dialect])


@pytest.mark.parametrize("body", [None, [], "text", {}, {"messages": None}, {"prompt": [1, 2]}])
def test_a_body_without_a_prompt_has_no_blocks(body):
    assert blocks_of(body) == ()


def test_prompts_of_any_size_and_any_text_are_bounded():
    body = json.loads(json.dumps({"prompt": "\ud800" * 10**6}))
    assert len(blocks_of(body)) == MOST_BLOCKS


def test_the_replica_that_saw_most_is_found():
    seen = PrefixMap()
    seen.remember([1, 2, 3], "a")
    seen.remember([1, 9], "b")
    assert seen.matched([1, 2, 4]) == {"a": 2, "b": 1}
    assert seen.matched([2, 3]) == {"a": 2}
    assert seen.matched([7]) == {}


def test_the_least_recent_blocks_are_forgotten():
    seen = PrefixMap(most=3)
    seen.remember([1, 2], "a")
    seen.remember([1], "b")
    seen.remember([3, 4], "a")
    assert len(seen) == 3
    assert seen.matched([1]) == {"a": 1, "b": 1}
    assert seen.matched([2]) == {}


def test_the_prefix_decides_until_a_replica_has_much_more_to_do():
    matched = {"a": 5}
    assert rank({"a": 4, "b": 0}, matched, spread=4) == ["a", "b"]
    assert rank({"a": 5, "b": 0}, matched, spread=4) == ["b", "a"]


def test_without_a_prefix_the_least_busy_replica_is_first():
    assert rank({"a": 2, "b": 1, "c": 3}, {}, spread=8) == ["b", "a", "c"]
    firsts = {rank({"a": 0, "b": 0}, {}, spread=1)[0] for _ in range(100)}
    assert firsts == {"a", "b"}


def test_replicas_to_avoid_come_last():
    assert rank({"a": 0, "b": 9}, {"a": 5}, spread=1, avoid={"a"}) == ["b", "a"]
    assert rank({}, {}, spread=1) == []
