"""Decoding: what is no sound JSON or no sound request is refused, in time that grows with it."""

import json
import random
import string
import time
from typing import Any

import msgspec
import pytest

from jaxllama.engine.choosing.knobs import catalogue
from jaxllama.errors import InvalidParameter
from jaxllama.limits import FRONT, LIMITS
from jaxllama.serve.aliases import ALIASES
from jaxllama.serve.decode import check_depth, convert, parse_json
from jaxllama.serve.unknown import join_names
from tests.serve.conftest import running, scenario
from tests.support import installed_samplers


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""


class Outer(msgspec.Struct):
    count: int = 1
    inner: Inner | None = None
    many: list[Inner] = []


@pytest.mark.parametrize("depth", [1, 2, 63, 64])
def test_nesting_up_to_the_limit_is_read(depth):
    value = parse_json(b"[" * depth + b"]" * depth, 64)
    for _ in range(depth - 1):
        (value,) = value
    assert value == []


@pytest.mark.parametrize("shape", [b"[%s]", b'{"a":%s}', b'[{"a":%s}]'])
def test_nesting_beyond_the_limit_is_not_followed(shape):
    body = b"1"
    for _ in range(65):
        body = shape % body
    with pytest.raises(InvalidParameter, match="nested more than 64"):
        parse_json(body, 64)


def test_brackets_in_texts_are_no_nesting():
    assert parse_json(b'["[[[[{{{{\\"]]]]"]', 1) == ['[[[[{{{{"]]]]']


def test_what_json_says_is_what_is_read():
    """Against the plain reader, for random documents."""
    random_ = random.Random(0)

    def document(depth: int) -> Any:
        kind = random_.randrange(7 if depth else 5)
        if kind == 5:
            return [document(depth - 1) for _ in range(random_.randrange(4))]
        if kind == 6:
            keys = random_.sample(string.printable, random_.randrange(4))
            return {key: document(depth - 1) for key in keys}
        text = "".join(random_.choices(string.printable + '\u20ac\U0001f600\\"[]{}', k=5))
        number = random_.randrange(-(10**20), 10**20)
        return (None, True, number, random_.random() * 1e9, text)[kind]

    for _ in range(300):
        value = document(4)
        body = json.dumps(value, ensure_ascii=random_.random() < 0.5).encode()
        assert parse_json(body, 64) == value


@pytest.mark.parametrize(
    "piece", [b"[", b'"', b'\\"', b'"\\', b'{"a":', b"[]", b"{}", b"9", b"[1,", b"\\u"]
)
def test_hostile_bodies_take_time_in_proportion(piece):
    """Twice the size may not take four times as long; a quadratic reader would take minutes."""
    body = (piece * (1 << 21))[: 1 << 21]
    began = time.process_time()
    with pytest.raises(InvalidParameter):
        parse_json(body, 64)
    assert time.process_time() - began < 20


def test_a_key_that_comes_twice_is_named():
    with pytest.raises(InvalidParameter, match="'a' comes twice"):
        parse_json(b'{"b": {"a": 1, "c": 2, "a": 1}}', 64)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"count": "many"}, "count"),
        ({"count": None}, "count"),
        ({"count": 1.5}, "count"),
        ({"count": True}, "count"),
        ({"inner": {"name": 5}}, "inner.name"),
        ({"many": [{}, {"name": []}]}, "many[1].name"),
        ({"many": {}}, "many"),
        ({"cuont": 1}, "cuont"),
        ({"inner": {"nmae": ""}}, "inner.nmae"),
        ({"many": [{"nmae": ""}]}, "many[0].nmae"),
    ],
)
def test_a_wrong_field_is_named(fields, field):
    with pytest.raises(InvalidParameter) as caught:
        convert(fields, Outer, (), strict=True)
    assert caught.value.field == field


@pytest.mark.parametrize("fields", [{"cuont": 1}, {"inner": {"nmae": ""}}, {"many": [{"nmae": 1}]}])
def test_the_nearest_name_is_told(fields):
    with pytest.raises(InvalidParameter, match=r"did you mean '(count|name)'"):
        convert(fields, Outer, (), strict=True)


def test_what_nobody_knows_is_left_out_and_named_once():
    fields = {"count": 3, "inner": {"name": "x", "y": 1}, "many": [{"z": 1}, {"z": 2}], "w": 0}
    found = convert(fields, Outer, ("knob",), strict=False)
    assert found.body == Outer(3, Inner("x"), [Inner(), Inner()])
    assert found.knobs == {}
    assert sorted(found.ignored) == ["inner.y", "many[].z", "w"]


def test_any_number_of_unknown_fields_is_left_out():
    fields = {"many": [{f"field_{i}": i} for i in range(500)], **{f"more_{i}": 0 for i in range(9)}}
    found = convert(fields, Outer, (), strict=False)
    assert len(found.body.many) == 500
    assert len(found.ignored) == 509


@pytest.mark.parametrize("fields", [{"count": "many"}, {"inner": {"name": 5, "nmae": 1}}])
def test_types_are_checked_whatever_is_ignored(fields):
    with pytest.raises(InvalidParameter):
        convert(fields, Outer, (), strict=False)


def test_the_list_of_ignored_fields_is_bounded_and_safe_in_a_header():
    assert join_names(["a", "b.c[].d-e_f"]) == "a, b.c[].d-e_f"
    assert join_names(["a\r\nSet-Cookie: x=1", "\u20ac", "x" * 1000]) == (
        f"a??Set-Cookie??x?1, ?, {'x' * 64}"
    )
    long = join_names(f"field_{i}" for i in range(5000))
    assert len(long) < 1100
    shown, _, rest = long.partition(", and ")
    assert len(shown.split(", ")) + int(rest.removesuffix(" more")) == 5000


def test_knobs_are_kept_apart():
    found = convert({"count": 2, "top_k": 5}, Outer, {"top_k"}, strict=True)
    assert (found.body.count, found.knobs) == (2, {"top_k": 5})


def test_an_alias_counts_as_its_own_field():
    known = {"repetition_penalty", "max_tokens", "dry_range"}
    sent = {"repeat_penalty": 1.1, "n_predict": -1, "dry_penalty_last_n": -1, "rep_pen": 1.1}
    found = convert(sent, Outer, known, strict=True)
    assert found.knobs == {"repetition_penalty": 1.1, "dry_range": 0}
    assert set(found.aliased) == {"repetition_penalty", "dry_range"}
    assert convert({"rep_pen": 2}, Outer, (), strict=False).ignored == ["rep_pen"]


@pytest.mark.parametrize("window", [-1, 0, 64])  # all tokens, no token, the newest 64
def test_the_window_of_the_repetition_penalty_means_what_it_means_in_llama_cpp(window):
    found = convert({"repeat_last_n": window}, Outer, {"repetition_window"}, strict=True)
    assert found.knobs == {"repetition_window": window}


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"n_predict": 3, "max_tokens": 4}, "max_tokens is 4 and n_predict is 3; .* differ"),
        ({"n_predict": 3, "max_length": 4}, "is [34] and .* is [34]; .* differ"),
        ({"dry_penalty_last_n": 0}, "dry_penalty_last_n is 0: 0 turns the penalty off"),
    ],
)
def test_names_of_one_field_that_differ_are_refused(sent, words):
    with pytest.raises(InvalidParameter, match=words):
        convert(sent, Outer, {"max_tokens", "dry_range"}, strict=False)


def test_every_alias_leads_to_a_field_that_exists():
    known = {*LIMITS, *FRONT, *catalogue(installed_samplers())}
    assert {alias.own for alias in ALIASES.values()} <= known
    assert not ALIASES.keys() & known


def test_the_operator_decides_about_unknown_fields():
    async def body():
        async with running(strict=True) as live:
            assert await live.status("/say", "POST", json={"user": "me"}) == 400
        async with running() as live:
            sent = {"user": "me", "x\ny": 1}
            async with live.http.post(f"{live.url}/say", json=sent) as response:
                assert response.status == 200
                assert response.headers["X-Ignored-Fields"] == "user, x?y"
            async with live.http.post(f"{live.url}/say", json={}) as response:
                assert "X-Ignored-Fields" not in response.headers
            assert await live.status("/say", "POST", json={"temperature": -1}) == 400

    scenario(body)


def test_ignored_fields_are_in_the_log_line_of_the_request(caplog):
    async def body():
        async with running() as live:
            await live.say(chat_id="c", session_id="s")
            await live.stream(chat_id="c")
            await live.say(400, temperature=-1, chat_id="c")

    caplog.set_level("INFO")
    scenario(body)
    facts = [each.facts for each in caplog.records if hasattr(each, "facts")]
    assert [each.get("ignored") for each in facts] == ["chat_id, session_id", "chat_id", "chat_id"]


def test_depth_alone_says_nothing_about_the_rest():
    check_depth(b"not json at all", 64)
