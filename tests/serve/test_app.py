"""The application: requests in, answers out, and every error in the dialect's form."""

import asyncio
import ssl
from pathlib import Path

import pytest

from jaxllama.errors import ConfigError
from jaxllama.intake import Intake
from jaxllama.testing import ByteTokenizer, ScriptedEngine
from jaxllama_formats.template import Template
from tests.serve.conftest import Gate, config, events_of, running, scenario, scripted

ROOT = Path(__file__).parents[2]
TLS = Path(__file__).parent / "tls"


def test_an_answer_streamed_is_the_answer_whole():
    async def body():
        async with running(scripted(b"A \xe2\x82\xac sign")) as live:
            whole = await live.say()
            events = await live.stream()
            assert whole["texts"] == ["A € sign"]
            assert events[-1] == "[DONE]"
            assert "".join(event["text"] for event in events[:-1]) == "A € sign"

    scenario(body)


def test_streams_of_several_choices_are_each_whole_and_in_order():
    async def body():
        async with running(scripted(b"0123456789", slots=2)) as live:
            events = await live.stream(n=5)
            for index in range(5):
                own = [event for event in events[:-1] if event["index"] == index]
                assert "".join(event["text"] for event in own) == "0123456789"
                assert [event["kind"] for event in own].index("Finished") == len(own) - 1

    scenario(body)


def test_choices_have_their_own_declared_seeds():
    async def body():
        async with running() as live:
            answer = await live.say(n=3, seed=7)
            assert answer["texts"] == ["Hello!"] * 3
            assert answer["seeds"][0] == 7
            assert len(set(answer["seeds"])) == 3

    scenario(body)


def test_a_strict_server_refuses_an_unknown_field_with_the_nearest_name():
    async def body():
        async with running(strict=True) as live:
            error = (await live.say(400, temprature=1))["error"]
            assert error["param"] == "temprature"
            assert "'temperature'" in error["message"]

    scenario(body)


def with_template(engine, template):
    """An intake for a model that brings a template of its own."""
    tokenizer = ByteTokenizer(template=template)
    chosen = Template.for_model(tokenizer.text)
    return Intake(tokenizer, chosen, engine.bank, engine.config)


def test_a_conversation_goes_through_the_models_own_template_in_another_process():
    async def body():
        engine = ScriptedEngine(lambda prompt: prompt, config=config())
        intake = with_template(engine, "{% for m in messages %}[{{ m.content }}]{% endfor %}")
        async with running(engine, intake=intake) as live:
            said = [{"role": "user", "content": each} for each in ("one", "two")]
            assert (await live.say(messages=said))["texts"] == ["[one][two]"]

    scenario(body)


def test_a_template_without_end_fails_its_request_alone():
    async def body():
        engine = scripted()
        twice = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}"
        intake = with_template(engine, twice)
        async with running(engine, intake=intake) as live:
            stream = asyncio.create_task(live.stream())
            asked = live.say(400, messages=[{"role": "user", "content": "x"}])
            assert (await asked)["error"]["code"] == "template_error"
            assert (await stream)[-1] == "[DONE]"

    scenario(body)


def test_an_answer_that_fails_later_ends_in_one_error_event():
    async def body():
        engine = ScriptedEngine(lambda _: [ord("a"), ord("b"), None], config=config())
        async with running(engine) as live:
            events = await live.stream()
            assert [event.get("text") for event in events[:-1]] == ["a", "b"]
            assert events[-1]["error"]["code"] == "generation_failed"
            assert (await live.say(500))["error"]["code"] == "generation_failed"

    scenario(body)


def test_a_bug_in_a_handler_tells_nothing():
    async def body():
        async with running() as live:
            live.service.open = None
            error = (await live.say(500))["error"]
            assert error == {"message": "internal error", "code": "internal_error", "param": None}

    scenario(body)


def test_a_silent_stream_is_kept_alive():
    async def body():
        engine = scripted()
        async with running(engine, ping_seconds=0.05) as live:
            gate = Gate(engine)
            async with live.http.post(f"{live.url}/say", json={"stream": True}) as response:
                assert await response.content.readline() == b": ping\n"
                gate.open()
                events = events_of(await response.text())
            assert "".join(event["text"] for event in events[:-1]) == "Hello!"

    scenario(body)


def test_every_response_has_an_id_of_its_own():
    async def body():
        async with running() as live:
            ids = set()
            for path in ("/health", "/nothing", "/metrics"):
                async with live.http.get(f"{live.url}{path}") as response:
                    ids.add(response.headers["X-Request-Id"])
            assert len(ids) == 3

    scenario(body)


def test_it_speaks_tls():
    async def body():
        files = {"tls_certificate": str(TLS / "certificate.pem"), "tls_key": str(TLS / "key.pem")}
        async with running(**files) as live:
            trusted = ssl.create_default_context(cafile=files["tls_certificate"])
            async with live.http.post(f"{live.url}/say", json={}, ssl=trusted) as response:
                assert (await response.json())["texts"] == ["Hello!"]

    scenario(body)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tls_certificate": "missing.pem", "tls_key": "missing.pem"}, "cannot be used"),
        ({"tls_certificate": "missing.pem"}, "give both or neither"),
        ({"ping_seconds": 0}, "ping_seconds is 0; expected more than 0"),
        ({"connections": -1}, "connections is -1"),
        ({"host": "203.0.113.7"}, "cannot listen on 203.0.113.7"),
    ],
)
def test_settings_that_cannot_work_are_refused_clearly(settings, words):
    async def body():
        async with running(**settings):
            pass

    with pytest.raises(ConfigError, match=words):
        scenario(body)


def test_a_stream_tells_proxies_neither_to_keep_nor_to_change_it():
    async def body():
        async with running() as live:
            async with live.http.post(f"{live.url}/say", json={"stream": True}) as response:
                control = response.headers["Cache-Control"].split(", ")
            assert {"no-cache", "no-store", "no-transform"} <= set(control)

    scenario(body)
