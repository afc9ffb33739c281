"""Decoding: what is no sound JSON or no sound request is refused, in time that grows with it."""

import json
import random
import string
import time
from typing import Any

import msgspec
import pytest

from jaxllama.errors import InvalidParameter
from jaxllama.serve.decode import check_depth, convert, parse_json
from tests.serve.conftest import running, scenario


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
        convert(fields, Outer, (), lenient=False)
    assert caught.value.field == field


@pytest.mark.parametrize("fields", [{"cuont": 1}, {"inner": {"nmae": ""}}, {"many": [{"nmae": 1}]}])
def test_the_nearest_name_is_told(fields):
    with pytest.raises(InvalidParameter, match=r"did you mean '(count|name)'"):
        convert(fields, Outer, (), lenient=False)


def test_lenient_leaves_out_what_nobody_knows():
    fields = {"count": 3, "inner": {"name": "x", "y": 1}, "many": [{"z": 1}, {"z": 2}], "w": 0}
    made, knobs = convert(fields, Outer, ("knob",), lenient=True)
    assert made == Outer(3, Inner("x"), [Inner(), Inner()])
    assert knobs == {}


def test_knobs_are_kept_apart():
    made, knobs = convert({"count": 2, "top_k": 5}, Outer, {"top_k"}, lenient=False)
    assert (made.count, knobs) == (2, {"top_k": 5})


def test_the_operator_decides_about_unknown_fields():
    async def body():
        async with running() as live:
            assert await live.status("/say", "POST", json={"user": "me"}) == 400
        async with running(lenient=True) as live:
            assert await live.status("/say", "POST", json={"user": "me"}) == 200
            assert await live.status("/say", "POST", json={"temperature": -1}) == 400

    scenario(body)


def test_depth_alone_says_nothing_about_the_rest():
    check_depth(b"not json at all", 64)
