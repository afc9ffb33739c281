"""A conversation that is longer than the context, in every dialect that has conversations."""

import pytest

from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import config, running, scenario
from tests.serve.dialects import everyone
from tests.support import installed_samplers

LONG = [{"role": role, "content": "x" * 40} for role in ("user", "assistant") * 5]
SYSTEM = {"role": "system", "content": "S"}
HI = {"role": "user", "content": "hi"}
MODEL = {"model": "scripted", "stream": False}

# route -> body, the fields that drop the oldest turns, those that refuse, place of the count
ROUTES = {
    "/api/chat": (
        MODEL | {"messages": [SYSTEM, *LONG, HI]},
        [{}, {"truncate": True}, {"truncate": False, "context_overflow": "drop_oldest"}],
        [{"truncate": False}, {"context_overflow": "error"}],
        lambda answer: answer["dropped_messages"],
    ),
    "/v1/messages": (
        MODEL | {"messages": [*LONG, HI], "system": "S", "max_tokens": 20},
        [{"context_overflow": "drop_oldest"}],
        [{}],
        lambda answer: answer["usage"]["dropped_messages"],
    ),
    "/v1/responses": (
        MODEL | {"input": [*LONG, HI], "instructions": "S", "max_output_tokens": 20},
        [{"truncation": "auto"}, {"context_overflow": "keep_fixed"}],
        [{}, {"truncation": "disabled"}, {"truncation": "auto", "context_overflow": "error"}],
        lambda answer: answer["usage"]["input_tokens_details"]["dropped_messages"],
    ),
    "/chat/completion": (
        {"messages": [SYSTEM, *LONG, HI], "max_tokens": 20},
        [{"context_overflow": "drop_oldest"}],
        [{}],
        None,
    ),
}


def serving():
    size = config(candidates=32, context=256, slots=4)
    engine = ScriptedEngine(lambda _: b"Hello!", config=size, samplers=installed_samplers())
    return running(engine, dialects=everyone())


@pytest.mark.parametrize("path", ROUTES)
def test_the_oldest_turns_are_left_out_or_the_conversation_is_refused(path):
    common, dropping, refusing, count = ROUTES[path]

    async def body():
        async with serving() as live:
            for more in dropping:
                url = f"{live.url}{path}"
                async with live.http.post(url, json=common | more) as response:
                    assert response.status == 200, await response.text()
                    dropped = int(response.headers["X-Dropped-Messages"])
                    assert 0 < dropped <= len(LONG)
                    if count is not None:
                        assert count(await response.json()) == dropped
            for more in refusing:
                async with live.http.post(f"{live.url}{path}", json=common | more) as response:
                    assert response.status == 400, await response.text()
                    assert "X-Dropped-Messages" not in response.headers

    scenario(body)


def test_a_conversation_that_fits_loses_nothing():
    async def body():
        async with serving() as live:
            for path, (common, dropping, _, _) in ROUTES.items():
                name = "input" if "input" in common else "messages"
                short = common | {name: [HI]} | dropping[0]
                async with live.http.post(f"{live.url}{path}", json=short) as response:
                    assert response.status == 200, await response.text()
                    assert "X-Dropped-Messages" not in response.headers
                    assert "dropped" not in await response.text()

    scenario(body)


@pytest.mark.origin("Rama: a chat longer than the context goes on")
def test_a_chat_over_a_websocket_goes_on_when_the_context_is_full():
    async def body():
        async with serving() as live, live.http.ws_connect(f"{live.url}/ws") as socket:

            async def say(**more):
                await socket.send_json({"type": "message", "content": "x" * 40, **more})
                while (event := await socket.receive_json())["type"] == "token":
                    pass
                return event

            ends = [await say() for _ in range(6)]
            assert {end["type"] for end in ends} == {"done"}
            assert "dropped" not in ends[0] and ends[-1]["dropped"] > 0
            refused = await say(context_overflow="error")
            assert refused["type"] == "error" and "tokens" in refused["message"]
            wrong = await say(context_overflow="never")
            assert wrong["type"] == "error" and "context_overflow" in wrong["message"]

    scenario(body)
