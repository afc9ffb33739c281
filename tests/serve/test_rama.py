"""The Rama dialect: a prompt in the URL, chats over HTTP and WebSockets, a page that is safe."""

import asyncio
import contextlib

import aiohttp
import pytest

from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import Gate, config, connect, running, scenario
from tests.serve.dialects import everyone
from tests.support import installed_samplers


def serving(answer=b"Hi!", *, options=(), slots=4, **settings):
    script = answer if callable(answer) else (lambda _: answer)
    size = config(candidates=32, context=256, slots=slots)
    engine = ScriptedEngine(script, config=size, samplers=installed_samplers())
    dialects = everyone(dialect_options=tuple(f"rama.{each}" for each in options))
    return running(engine, dialects=dialects, **settings)


@contextlib.asynccontextmanager
async def chatting(live, **headers):
    async with live.http.ws_connect(f"{live.url}/ws", headers=headers) as socket:
        yield socket


async def fetch(live, path, status=200, **headers):
    async with live.http.get(f"{live.url}{path}", headers=headers) as response:
        assert response.status == status, await response.text()
        return await response.text()


@pytest.mark.origin("Rama: GET /gen")
def test_a_stream_echoes_the_prompt_and_escapes_line_breaks():
    async def body():
        async with serving(b"a\nb") as live:
            assert await fetch(live, "/gen?prompt=hi") == (
                "data: h\n\ndata: i\n\ndata: a\n\ndata: \\n\n\ndata: b\n\n"
            )

    scenario(body)


@pytest.mark.origin("Rama: `--step`")
def test_prompt_and_answer_have_together_as_many_tokens_as_the_operator_allows():
    async def body():
        async with serving(b"x" * 300, options=("step=7",)) as live:
            assert (await fetch(live, "/gen?prompt=hi")).count("data:") == 7
            assert "tokens" in await fetch(live, "/gen?prompt=longerthan7", 400)
            assert (await fetch(live, "/gen")).count("data: x") == 6  # after the begin token

    scenario(body)


def test_a_client_that_leaves_its_stream_frees_the_slot():
    async def body():
        async with serving(b"x" * 200, slots=1) as live:
            gate = Gate(live.engine)
            raw = b"GET /gen?prompt=hi HTTP/1.1\r\nHost: localhost\r\n\r\n"
            _, writer = await connect(live.url, raw)
            await gate.advance(lambda: live.engine.counts["running"] == 1)
            writer.close()
            gate.open()
            await live.settled()

    scenario(body)


def test_pages_of_other_sites_cannot_use_it():
    async def body():
        async with serving() as live:
            evil = {"Origin": "https://evil.example"}
            await fetch(live, "/gen?prompt=hi", 403, **{"Sec-Fetch-Site": "cross-site"})
            async with live.http.post(f"{live.url}/chat", data="hi", headers=evil) as response:
                assert response.status == 403
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                async with chatting(live, **evil):
                    pass
            assert caught.value.status == 403
            async with chatting(live, Origin=live.url) as socket:
                assert not socket.closed
        async with (
            serving(cors_origins=("https://good.example",)) as live,
            chatting(live, Origin="https://good.example") as socket,
        ):
            assert not socket.closed

    scenario(body)


@pytest.mark.origin("Rama: its page")
def test_the_page_is_at_the_root_if_the_operator_says_so_and_shows_no_html_of_the_prompt():
    async def body():
        async with serving(root_dialect="rama") as live:
            evil = "?prompt=%3Cscript%3Ealert(1)%3C/script%3E"
            html = await fetch(live, f"/{evil}")
            assert html == await fetch(live, "/rama")
            assert "alert" not in html and "EventSource" in html
            async with live.http.get(live.url) as response:
                policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy

    scenario(body)


@pytest.mark.origin("Rama: chats over a WebSocket")
def test_several_conversations_are_answered_at_a_time_and_remember_their_messages():
    async def body():
        prompts = []

        def script(prompt):
            prompts.append(bytes(id_ for id_ in prompt if id_ < 256).decode())
            return b"ok"

        async with serving(script) as live, chatting(live) as socket:
            for name in ("a", "b"):
                message = {"type": "message", "conversation": name, "content": f"I am {name}."}
                await socket.send_json(message | ({"system": "Be brief."} if name == "a" else {}))
            texts, done = {"a": "", "b": ""}, set()
            while done != {"a", "b"}:
                event = await socket.receive_json()
                texts[event["conversation"]] += event.get("text", "")
                if event["type"] == "done":
                    assert event["reason"] == "stop"
                    done.add(event["conversation"])
            assert texts == {"a": "ok", "b": "ok"}
            await socket.send_json({"type": "message", "conversation": "a", "content": "Who?"})
            while (await socket.receive_json())["type"] != "done":
                pass
            assert "Be brief." in prompts[-1] and "ok" in prompts[-1] and "I am a." in prompts[-1]
            assert "I am b." not in prompts[-1]
            await socket.send_json({"type": "forget", "conversation": "a"})
            await socket.send_json({"type": "stop", "conversation": "a"})
            event = await socket.receive_json()
            assert event["type"] == "error" and "no conversation" in event["message"]

    scenario(body)


@pytest.mark.origin("Rama: an answer in a chat is stopped")
def test_an_answer_is_stopped_while_the_connection_stays():
    async def body():
        async with serving(b"x" * 200, slots=1) as live, chatting(live) as socket:
            gate = Gate(live.engine)
            await socket.send_json({"type": "message", "content": "hi"})
            await gate.advance(lambda: live.engine.counts["running"] == 1)
            await socket.send_json({"type": "message", "content": "again"})
            event = await socket.receive_json()
            while event["type"] == "token":
                event = await socket.receive_json()
            assert "being answered" in event["message"]
            await socket.send_json({"type": "stop"})
            gate.open()
            while event["type"] != "done":
                event = await socket.receive_json()
            assert event["reason"] == "stopped"
            await live.settled()
            assert not socket.closed

    scenario(body)


def test_an_answer_that_is_stopped_at_once_has_an_end():
    async def body():
        async with serving(b"x" * 200) as live, chatting(live) as socket:
            for _ in range(3):
                await socket.send_json({"type": "message", "content": "hi"})
                await socket.send_json({"type": "stop"})
            ends = []
            while len(ends) < 3:
                event = await asyncio.wait_for(socket.receive_json(), 10)
                ends += [event] if event["type"] in ("done", "error") else []
            assert {end.get("reason") for end in ends} == {"stopped"}

    scenario(body)


def test_a_message_that_does_not_fit_is_forgotten():
    async def body():
        async with serving(b"ok") as live, chatting(live) as socket:
            for content, kind in (("x" * 500, "error"), ("hi", "done")):
                await socket.send_json({"type": "message", "content": content})
                event = await socket.receive_json()
                while event["type"] == "token":
                    event = await socket.receive_json()
                assert event["type"] == kind

    scenario(body)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"type": "dance"}', "type"),
        ('{"type": "message"}', "content is missing"),
        ('{"type": "message", "content": "hi", "temperature": -1}', "temperature"),
        ('{"type": "stop", "conversation": "x", "typo": 1}', "no conversation"),
    ],
)
def test_a_wrong_message_is_told(raw, words):
    async def body():
        async with serving() as live, chatting(live) as socket:
            await socket.send_str(raw)
            event = await socket.receive_json()
            if "typo" in raw:
                assert (event["type"], "typo" in event["message"]) == ("note", True)
                event = await socket.receive_json()
            assert event["type"] == "error" and words in event["message"]

    scenario(body)


def test_a_key_is_needed():
    async def body():
        async with serving(api_keys=("one",)) as live:
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                async with chatting(live):
                    pass
            assert caught.value.status == 401
            async with chatting(live, Authorization="Bearer one") as socket:
                assert not socket.closed

    scenario(body)


@pytest.mark.parametrize("answers", [False, True])
def test_a_client_that_leaves_and_a_server_that_stops_end_the_chat(answers):
    async def body():
        async with serving(b"x" * 200, slots=1) as live:
            gate = Gate(live.engine)
            async with chatting(live) as socket:
                await socket.send_json({"type": "message", "content": "hi"})
                await gate.advance(lambda: live.engine.counts["running"] == 1)
            gate.open()
            await live.settled()
            async with chatting(live) as socket:
                if answers:
                    await socket.send_json({"type": "message", "content": "hi"})
                    await socket.receive_json()
                stopping = asyncio.create_task(live.server.stop())
                async for _ in socket:
                    pass
                assert socket.close_code == 1001
                assert await stopping

    scenario(body)


@pytest.mark.origin("llama-burn: POST /generate with an event per token and `done`")
def test_the_events_of_llama_burn_byte_for_byte():
    async def body():
        async with serving("\u20ac!".encode()) as live:
            asked = {"prompt": "hi", "max_tokens": 9, "temperature": 0.0, "top_p": 1.0, "seed": 1}
            async with live.http.post(f"{live.url}/generate", json=asked) as response:
                raw = await response.text()
            assert raw == (
                'data: {"token":"","token_id":226,"index":0}\n\n'
                'data: {"token":"","token_id":130,"index":1}\n\n'
                'data: {"token":"\u20ac","token_id":172,"index":2}\n\n'
                'data: {"token":"!","token_id":33,"index":3}\n\n'
                "event: done\ndata: done\n\n"
            )
            async with live.http.post(f"{live.url}/generate", json={}) as response:
                assert response.status == 422 and "prompt" in await response.text()

    scenario(body)
