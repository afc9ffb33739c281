"""The ExLlama dialect: example endpoints, WebSocket actions, sessions on disk and their replies."""

import asyncio
import json

import pytest

from jaxllama.errors import InvalidParameter
from jaxllama.serve.dialects.exllama.sessions import (
    ExLlamaSession,
    SessionStore,
    safe_name,
)
from jaxllama.serve.dialects.exllama.speaking import shortened
from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import Gate, config, connect, post, running, scenario
from tests.serve.dialects import everyone, lines
from tests.support import installed_samplers


def serving(answer=b" Hi!\nUser: x", *, folder=None, slots=4, **settings):
    script = answer if callable(answer) else (lambda _: answer)
    size = config(candidates=32, context=1024, slots=slots)
    engine = ScriptedEngine(script, config=size, samplers=installed_samplers())
    options = () if folder is None else (f"exllama.sessions={folder}",)
    return running(engine, dialects=everyone(dialect_options=options), **settings)


async def call(live, name, status=200, headers=None, **body):
    async with live.http.post(f"{live.url}/api/{name}", json=body, headers=headers) as response:
        assert response.status == status, await response.text()
        return json.loads(await response.text())


async def say(live, text):
    async with live.http.post(f"{live.url}/api/userinput", json={"user_input": text}) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "application/json"
        return lines(await response.text())


async def populate(live, headers=None):
    async with live.http.get(f"{live.url}/api/populate", headers=headers) as response:
        return await response.json()


def text_of(prompt) -> str:
    return bytes(id_ for id_ in prompt if id_ < 256).decode()


@pytest.mark.parametrize("name", ["precise", "creative", "sphinx"])
@pytest.mark.origin("ExLlama: endpoints of example_flask")
def test_a_form_gives_the_prompt_and_200_tokens(name):
    async def body():
        async with serving(b"x" * 300) as live:
            url = f"{live.url}/infer_{name}"
            async with live.http.post(url, data={"prompt": "a b&c"}) as response:
                assert await response.text() == "a b&c" + "x" * 200
            async with live.http.post(url, data={"text": "hi"}) as response:
                assert response.status == 400
            async with live.http.post(url, json={"prompt": "hi"}) as response:
                assert response.status == 415
            evil = {"Origin": "https://evil.example"}
            async with live.http.post(url, data={"prompt": "hi"}, headers=evil) as response:
                assert response.status == 403

    scenario(body)


@pytest.mark.origin("ExLlama: actions of example_ws")
def test_the_actions_of_the_socket():
    async def body():
        async with (
            serving(b"one two", root_dialect="exllama") as live,
            live.http.ws_connect(live.url) as socket,
        ):

            async def ask(**message):
                await socket.send_json({"request_id": 7, **message})
                reply = await socket.receive_json()
                assert reply["request_id"] == 7
                return reply

            assert (await ask(action="estimateToken", text="hello"))["response"] == 5
            assert (await ask(action="echo"))["action"] == "echo"
            trim = await ask(action="leftTrim", text="hello", desiredLen=2)
            assert trim["response"] == "lo"
            whole = await ask(action="oneShotInfer", text="hi", maxNew=50, stopToken="x,tw")
            assert (whole["response"], whole["utilContext"]) == ("one ", 2 + 6)
            await socket.send_json({"action": "infer", "request_id": 8, "text": "hi"})
            texts = []
            while not texts or not texts[-1].endswith("</s>"):
                reply = await socket.receive_json()
                assert (reply["request_id"], reply["action"]) == (8, "infer")
                texts.append(reply["response"])
            assert texts[-1] == "one two</s>"
            assert all("one two".startswith(text) for text in texts[:-1])
            wrong = await ask(action="infer", text="hi", temp=-1)
            assert "temp" in wrong["error"]
            assert "desiredLen" in (await ask(action="leftTrim", text="hi"))["error"]
            async with live.http.get(live.url) as response:
                assert response.status == 426

    scenario(body)


@pytest.mark.origin("ExLlama: a user and a bot, fixed prompt")
def test_a_user_and_a_bot_talk_and_the_stream_says_who():
    async def body():
        prompts = []

        def script(prompt):
            prompts.append(text_of(prompt))
            return b" Hi!\nUser: x"

        async with serving(script) as live:
            await call(live, "set_fixed_prompt", fixed_prompt="A talk.", keep_fixed_prompt=True)
            packets = await say(live, "Hello.")
            assert [packet["cmd"] for packet in packets[:3]] == [
                "begin_stream",
                "begin_block",
                "begin_block",
            ]
            assert packets[1]["author"] == "User" and packets[1]["init_text"] == "Hello."
            assert (packets[2]["author"], packets[2]["author_idx"]) == ("Chatbort", 1)
            assert "".join(packet.get("text", "") for packet in packets) == "Hi!"
            assert prompts[-1] == "A talk.\nUser: Hello.\nChatbort:"
            shown = await populate(live)
            assert [block["text"] for block in shown["history"]] == ["Hello.", "Hi!"]
            assert [block["author_idx"] for block in shown["history"]] == [0, 1]
            await say(live, "")  # the bot goes on
            assert prompts[-1].endswith("Chatbort: Hi!\nChatbort:")

    scenario(body)


@pytest.mark.origin("ExLlama: free text")
def test_without_participants_a_text_is_continued():
    async def body():
        prompts = []

        def script(prompt):
            prompts.append(text_of(prompt))
            return b" time\nno"

        async with serving(script) as live:
            await call(live, "set_participants", participants=[])
            packets = await say(live, "Once upon a")
            assert prompts[-1] == "Once upon a"
            assert "author" not in packets[-1]
            history = (await populate(live))["history"]
            assert [block["text"] for block in history] == ["Once upon a", " time"]

    scenario(body)


@pytest.mark.origin("ExLlama: several bots")
def test_with_several_bots_the_model_chooses_who_speaks():
    async def body():
        async with serving(b"Hi!\n") as live:
            await call(live, "set_participants", participants=["Me", "Ann", "Bob"])
            packets = await say(live, "Hello.")
            speakers = [packet["author"] for packet in packets if packet["cmd"] == "begin_block"]
            # The lowest allowed token is drawn: "Ann:", then "Bob:" before "Me:".
            assert speakers == ["Me", "Ann", "Bob"]

    scenario(body)


@pytest.mark.origin("ExLlama: sessions on disk")
def test_a_session_is_kept_on_disk_renamed_and_deleted(tmp_path):
    async def body():
        async with serving(folder=tmp_path) as live:
            assert (await populate(live))["current_session"] == "Untitled session"
            await say(live, "Hello.")
            await call(live, "set_session", session_name=".")
            assert (await populate(live))["history"] == []
            assert await call(live, "rename_session", new_name="../My: talk!") == {"result": "ok"}
            shown = await populate(live)
            assert shown["current_session"] == "My talk!"
            assert shown["sessions"] == ["My talk!", "Untitled session"]
            taken = await call(live, "rename_session", 400, new_name="Untitled session")
            assert taken["result"] == "fail" and "exists already" in taken["error"]
            await call(live, "set_session", session_name="Untitled session")
        kept = json.loads((tmp_path / "Untitled session.json").read_text())
        assert [block["text"] for block in kept["history"]] == ["Hello.", "Hi!"]
        assert kept["typical"] == 0.25 and kept["participants"] == ["User", "Chatbort"]
        async with serving(folder=tmp_path) as live:  # as after a restart
            assert [block["text"] for block in (await populate(live))["history"]][1] == "Hi!"
            await call(live, "delete_session", session="Untitled session")
            shown = await populate(live)
            assert shown["sessions"] == ["My talk!", "Untitled session"]  # a new one, not saved
            assert shown["history"] == []
            assert not (tmp_path / "Untitled session.json").exists()
            gone = await call(live, "delete_session", 400, session="nothing")
            assert "no session" in gone["error"]

    scenario(body)


@pytest.mark.origin("ExLlama: blocks are edited, deleted and appended")
def test_blocks_are_edited_deleted_and_appended():
    async def body():
        async with serving() as live:
            await say(live, "Hello.")
            first, second = (await populate(live))["history"]
            await call(live, "edit_block", uuid=first["uuid"], text="Hey.")
            await call(live, "delete_block", uuid=second["uuid"])
            await call(live, "append_block", text="Me again.")
            await call(live, "append_block", text="Yes?", author="Chatbort")
            history = (await populate(live))["history"]
            assert [(block["author"], block["text"]) for block in history] == [
                ("User", "Hey."),
                ("User", "Me again."),
                ("Chatbort", "Yes?"),
            ]
            assert "no block" in (await call(live, "edit_block", 400, uuid="x", text="y"))["error"]

    scenario(body)


@pytest.mark.origin("ExLlama: settings of a session")
def test_settings_are_kept_and_checked():
    settings = {
        "temperature": 1.2, "top_p": 0.5, "min_p": 0.1, "top_k": 9, "typical": 0.0,
        "gen_endnewline": False, "max_response_tokens": 40, "chunk_size": 64,
        "token_repetition_penalty_max": 1.3, "token_repetition_penalty_sustain": 20,
        "token_repetition_penalty_decay": 10,
    }  # fmt: skip

    async def body():
        async with serving(b" a\nb\nUser: c") as live:
            await call(live, "set_gen_settings", **settings)
            shown = await populate(live)
            assert shown["temperature"] == 1.2 and shown["break_on_newline"] is False
            packets = await say(live, "Hello.")
            assert "".join(packet.get("text", "") for packet in packets) == "a\nb"
            wrong = await call(live, "set_gen_settings", 400, **settings | {"temperature": -1.0})
            assert "temperature" in wrong["error"]
            many = await call(live, "set_participants", 400, participants=["a", "a"])
            assert "participants" in many["error"]

    scenario(body)


def test_clients_with_keys_have_sessions_of_their_own(tmp_path):
    async def body():
        async with serving(folder=tmp_path, api_keys=("one", "two")) as live:
            one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
            await call(live, "append_block", headers=one, text="mine")
            assert len((await populate(live, one))["history"]) == 1
            assert (await populate(live, two))["history"] == []

    scenario(body)


def test_what_came_before_the_client_left_is_kept():
    async def body():
        async with serving(b" " + b"x" * 300, slots=1) as live:
            gate = Gate(live.engine)
            raw = post({"user_input": "hi"}, path="/api/userinput")
            reader, writer = await connect(live.url, raw)
            await gate.advance(lambda: live.engine.counts["running"] == 1)
            for _ in range(9):
                gate.let()
            while b"append" not in await reader.readline():
                await asyncio.sleep(0.001)
            writer.close()
            gate.open()
            await live.settled()
            await live.until(lambda: not live.service._open)
            text = (await populate(live))["history"][1]["text"]
            assert text and set(text) == {"x"}

    scenario(body)


@pytest.mark.origin("ExLlama: a full context")
def test_a_reply_longer_than_the_context_goes_on_with_a_shorter_history():
    async def body():
        async with serving(b" " + b"x" * 2000) as live:
            shown = await populate(live)
            names = ("temperature", "top_p", "min_p", "top_k", "typical", "max_response_tokens")
            more = ("chunk_size", "token_repetition_penalty_max")
            ends = ("token_repetition_penalty_sustain", "token_repetition_penalty_decay")
            settings = {name: shown[name] for name in (*names, *more, *ends)}
            settings |= {"max_response_tokens": 1500, "gen_endnewline": True}
            await call(live, "set_gen_settings", **settings)
            packets = await say(live, "Hello. " * 60)
            text = "".join(packet.get("text", "") for packet in packets)
            assert 1490 <= len(text) <= 1500 and set(text) <= {"x", " "}

    scenario(body)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a/../b", "a..b"),
        ("..", None),
        ("  x\0y ", "xy"),
        ("\u00e4 (1)", "\u00e4 (1)"),
        ("/", None),
    ],
)
def test_names_are_safe(name, safe):
    if safe is None:
        with pytest.raises(InvalidParameter):
            safe_name(name)
    else:
        assert safe_name(name) == safe


def test_a_session_does_not_grow_without_end():
    async def body():
        async with serving() as live:
            await call(live, "append_block", text="x" * 200_000)
            wrong = await call(live, "append_block", 400, text="x" * 200_000)
            assert "at most 262144 are kept" in wrong["error"]
            assert len((await populate(live))["history"]) == 1

    scenario(body)


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"history": [{"author": 5}]}'])
def test_a_damaged_session_is_told(tmp_path, raw):
    store = SessionStore(tmp_path)
    store.save("a", ExLlamaSession())
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(InvalidParameter, match="damaged"):
        store.load("a")
    assert store.last() == "a"
    with pytest.raises(InvalidParameter, match="no session"):
        store.load("b")


def test_a_long_history_loses_its_oldest_tokens_in_steps():
    tokens = list(range(1000))
    assert shortened(tokens, 1000) == tokens
    assert shortened(tokens, 999) == tokens[256:]
    assert shortened(tokens, 700) == tokens[512:]
    assert shortened(tokens, 10) == tokens[-10:]
