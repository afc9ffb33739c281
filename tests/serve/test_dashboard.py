"""`/metrics/live`: the dashboard's figures as events, without names of clients or texts."""

import asyncio
import json

from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import config, running, scenario, scripted

SECRET = "the secret prompt"


async def event_of(live, path="/metrics/live", **headers):
    async with live.http.get(f"{live.url}{path}", headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        async for line in response.content:
            if line.startswith(b"data: "):
                return json.loads(line[6:]), line.decode()
    raise AssertionError("the stream has no event")


def test_the_stream_has_counters_waits_slots_and_memory():
    async def body():
        async with running(scripted(b"123456789")) as live:
            await live.say(prompt="abcdefgh", max_tokens=5)
            await live.say(prompt="abcdefgh", max_tokens=5)
            await live.settled()
            found, _ = await event_of(live)
            assert found["state"] == "ready" and found["context"] > 0
            assert found["tokens"] == {"prompt": 16, "generated": 10, "reused": 7}
            assert found["requests"] == {"done": 2} and found["hits"] == 1
            assert sum(found["first"]["counts"]) == 2 and sum(found["between"]["counts"]) == 8
            assert len(found["first"]["counts"]) == len(found["first"]["bounds"]) + 1
            assert [each["is_held"] for each in found["slots"]] == [False] * 4
            assert found["slots"][0]["cached"] > 0
            assert found["figures"]["slots"] == 4 and found["resident_bytes"] > 1 << 20
            assert found["clients"] == [] and found["pending"] == []

    scenario(body)


def test_who_waits_and_writes_is_shown_without_names_and_texts():
    async def body():
        engine = ScriptedEngine(lambda _: b"x" * 4000, config=config(slots=1, context=4096))
        async with running(engine) as live:
            saying = [
                asyncio.create_task(live.say(prompt=SECRET, max_tokens=3000)) for _ in range(2)
            ]
            while live.service.queue.items == 0:
                await asyncio.sleep(0.01)
            found, raw = await event_of(live, "/metrics/live?seconds=1")
            (client,) = found["clients"]
            assert client["is_you"] and client["running"] == client["waiting"] == 1
            assert client["slots"] == 1 and client["tokens"] == len(SECRET)
            assert client["name"].startswith("client ")
            (slot,) = found["slots"]
            assert slot["is_held"] and slot["most"] == 3000 and slot["prompt"] == len(SECRET)
            assert "127.0.0.1" not in raw and SECRET not in raw
            for each in saying:
                each.cancel()
            await asyncio.gather(*saying, return_exceptions=True)

    scenario(body)


def test_a_visitor_without_the_key_sees_nothing_and_a_wrong_pause_is_refused():
    async def body():
        async with running(scripted(b"1"), api_keys=("k" * 20,)) as live:
            async with live.http.get(f"{live.url}/metrics/live") as response:
                assert response.status == 401
            key = {"Authorization": f"Bearer {'k' * 20}"}
            found, _ = await event_of(live, **key)
            assert found["state"] == "ready"
            for pause in ("0", "x", "1e9"):
                path = f"{live.url}/metrics/live?seconds={pause}"
                async with live.http.get(path, headers=key) as response:
                    assert response.status == 400
                    assert (await response.json())["error"]["param"] == "seconds"

    scenario(body)
