"""The log: one line per request, which no client can forge and no secret enters."""

import json
import logging

import pytest

from jaxllama.serve.log import JsonLines, Lines
from tests.serve.conftest import running, scenario, scripted


def lines_of(caplog, formatter):
    return [formatter.format(each) for each in caplog.records if hasattr(each, "facts")]


def logged(caplog, *asked, **settings):
    """What is logged while some requests are made."""

    async def body():
        async with running(scripted(b"12345"), **settings) as live:
            for path, body in asked:
                await live.status(path, "POST", json=body)
            await live.settled()

    with caplog.at_level(logging.INFO, logger="jaxllama"):
        scenario(body)
    return [json.loads(line) for line in lines_of(caplog, JsonLines())]


def test_each_request_is_one_line_with_its_figures(caplog):
    prompt = "tell nobody"
    first, second = logged(caplog, *[("/say", {"prompt": prompt, "max_tokens": 3})] * 2)
    assert first["message"] == "request"
    assert first["route"] == "POST /say"
    assert first["client"] == "at 127.0.0.1"
    assert first["reason"] == "done"
    assert (first["prompt"], first["generated"], first["choices"]) == (11, 3, 1)
    assert first["reused"] == 0
    assert second["reused"] == 10
    assert first["id"] != second["id"]
    assert first["seconds_to_first"] <= first["seconds"]
    assert first["tokens_per_second"] > 0
    assert prompt not in caplog.text


def test_prompts_are_logged_where_the_operator_asks(caplog):
    line, *_ = logged(caplog, ("/say", {"prompt": "tell me"}), log_prompts=True)
    assert line["text"] == ["tell me"]


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/say", {"n": 0}, "invalid_parameter"),
        ("/say", {"prompt": "x" * 999}, "context_length_exceeded"),
        ("/say", {"nn": 1}, "invalid_parameter"),
        ("/nothing\n2026 info forged", {}, "not_found"),
    ],
)
def test_what_is_refused_is_one_line_too(caplog, path, body, reason):
    (line,) = logged(caplog, (path, body), strict=True)
    assert line["reason"] == reason
    (text,) = lines_of(caplog, Lines())
    assert "\n" not in text


def test_values_cannot_pass_for_other_fields():
    record = logging.makeLogRecord({"msg": "a\nb", "levelname": "INFO"})
    record.facts = {"route": 'GET /x" reason=done', "none": None, "n": 3, "reason": "done"}
    text = Lines().format(record)
    assert text.endswith('info a\\nb route="GET /x\\" reason=done" n=3 reason=done')


def test_a_failure_brings_its_trace():
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.makeLogRecord({"msg": "bad", "levelname": "ERROR", "exc_info": info})
    assert "ZeroDivisionError" in json.loads(JsonLines().format(record))["trace"]
    assert "ZeroDivisionError" in Lines().format(record)
