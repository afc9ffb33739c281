"""The log: one line per request, which no client can forge and no secret enters."""

import json
import logging
import subprocess
import sys

import pytest

from jaxllama.serve.log import JsonLines, LineFormatter
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
    ("path", "body", "reason", "field", "why"),
    [
        ("/say", {"n": 0}, "invalid_parameter", "n", "n is 0"),
        ("/say", {"temperature": -1}, "invalid_parameter", "temperature", "temperature is -1"),
        ("/say", {"prompt": "x" * 999}, "context_length_exceeded", None, "999 tokens"),
        ("/say", {"prompt": 5}, "invalid_parameter", "prompt", "prompt: Expected `str`"),
        ("/nothing\n2026 info forged", {}, "not_found", None, "there is no"),
    ],
)
def test_a_refusal_is_one_line_with_the_field_and_the_reason(
    caplog, path, body, reason, field, why
):
    (line,) = logged(caplog, (path, body))
    assert line["reason"] == reason
    assert line["field"] == field
    assert why in line["why"]
    (text,) = lines_of(caplog, LineFormatter())
    assert "\n" not in text


def test_values_cannot_pass_for_other_fields():
    record = logging.makeLogRecord({"msg": "a\nb", "levelname": "INFO"})
    record.facts = {"route": 'GET /x" reason=done', "none": None, "n": 3, "reason": "done"}
    text = LineFormatter().format(record)
    assert text.endswith('info a\\nb route="GET /x\\" reason=done" n=3 reason=done')


def test_a_failure_brings_its_trace():
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.makeLogRecord({"msg": "bad", "levelname": "ERROR", "exc_info": info})
    assert "ZeroDivisionError" in json.loads(JsonLines().format(record))["trace"]
    assert "ZeroDivisionError" in LineFormatter().format(record)


def test_devices_that_are_not_there_are_no_line_but_warnings_of_jax_are():
    program = (
        "import logging\n"
        "from jaxllama.serve import log\n"
        "log.set_up(as_json=False)\n"
        "jax = logging.getLogger('jax._src.xla_bridge')\n"
        "jax.info('Unable to initialize backend tpu')\n"
        "jax.warning('An NVIDIA GPU may be present')\n"
        "logging.getLogger('jaxllama').info('listening')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    lines = done.stderr.decode().splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "warning An NVIDIA GPU may be present",
        "info listening",
    ]
