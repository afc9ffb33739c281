"""Rooms: sessions under addresses of their own, and the events for those who watch one."""

import asyncio
import json

import aiohttp
import pytest

from tests.serve.conftest import scenario
from tests.serve.test_exllama import call, populate, serving


async def ask(live, method, path="", status=200, headers=None, **body):
    url = f"{live.url}/v1/rooms{path}"
    options = {"json": body} if method == "POST" else {}
    async with live.http.request(method, url, headers=headers, **options) as response:
        assert response.status == status, await response.text()
        return await response.json()


async def next_event(response):
    while True:
        line = (await asyncio.wait_for(response.content.readline(), 20)).decode()
        if line.startswith("data:"):
            return json.loads(line[5:])
        assert line, "the stream has ended"


def texts(room):
    return [(block["author"], block["text"]) for block in room["blocks"]]


def test_a_room_is_made_renamed_listed_and_deleted():
    async def body():
        async with serving() as live:
            room = await ask(live, "POST")
            assert room["name"] == "Untitled session"
            assert [each["name"] for each in room["speakers"]] == ["User", "Chatbort"]
            named = await ask(live, "POST", name="Ours ü/..")
            assert named["name"] == "Ours ü.."
            await ask(live, "POST", name="Ours ü..", status=400)
            renamed = await ask(live, "POST", "/Ours%20ü..", new_name="Theirs")
            assert renamed["name"] == "Theirs"
            assert (await ask(live, "GET"))["rooms"] == ["Theirs", "Untitled session"]
            assert (await ask(live, "DELETE", "/Theirs"))["deleted"] is True
            await ask(live, "GET", "/Theirs", status=404)
            await ask(live, "POST", "/..%2f..%2fetc%2fpasswd", status=404)
            await ask(live, "POST", "/Untitled%20session", new_name="/.", status=400)

    scenario(body)


def test_blocks_are_inserted_anywhere_edited_deleted_and_rewound():
    async def body():
        async with serving() as live:
            await ask(live, "POST", name="r")
            said = [{"author": "Ann", "text": "one"}, {"author": "Bob", "text": "two"}]
            room = await ask(live, "POST", "/r/insert", blocks=said)
            first, second = (block["uuid"] for block in room["blocks"])
            room = await ask(live, "POST", "/r/insert", blocks=[{"text": "mid"}], after=first)
            room = await ask(live, "POST", "/r/insert", blocks=[{"text": "top"}], after="")
            assert texts(room) == [(None, "top"), ("Ann", "one"), (None, "mid"), ("Bob", "two")]
            room = await ask(live, "POST", "/r/edit", uuid=second, text="2", author="Ann")
            assert texts(room)[-1] == ("Ann", "2")
            room = await ask(live, "POST", "/r/delete", uuid=room["blocks"][0]["uuid"])
            room = await ask(live, "POST", "/r/rewind", uuid=first)
            assert texts(room) == [("Ann", "one")]
            for path, field in (("insert", "after"), ("delete", "uuid"), ("rewind", "uuid")):
                more = {"blocks": said} if path == "insert" else {}
                error = await ask(live, "POST", f"/r/{path}", 400, **{field: "no"}, **more)
                assert (error["field"], error["result"]) == (field, "fail")
            huge = [{"text": "x" * 200_000}, {"text": "x" * 100_000}]
            await ask(live, "POST", "/r/insert", 400, blocks=huge)
            await ask(live, "POST", "/r/insert", 400, blocks=[{"text": ""}] * 3000)
            assert texts(await ask(live, "GET", "/r")) == [("Ann", "one")]

    scenario(body)


def test_speakers_keep_their_settings_and_a_new_name_is_written_into_the_texts(tmp_path):
    ann = {"name": "Ann", "system": "Rhyme.", "colour": 3, "knobs": {"top_k": 5}, "model": "m"}

    async def body():
        async with serving(folder=tmp_path) as live:
            await ask(live, "POST", name="r")
            await ask(live, "POST", "/r/insert", blocks=[{"author": "User", "text": "hi"}])
            room = await ask(
                live,
                "POST",
                "/r",
                speakers=[{**ann, "was": "User"}, {"name": "Bob"}],
                fixed_prompt="A play.",
                keep_fixed_prompt=False,
                break_on_newline=False,
                max_response_tokens=50,
                style="script",
            )
            assert texts(room) == [("Ann", "hi")]
            assert room["speakers"][0] == ann
            for wrong in (["Ann", "Ann"], [""], ["a "], ["a\nb"], [str(n) for n in range(9)]):
                speakers = [{"name": name} for name in wrong]
                await ask(live, "POST", "/r", 400, speakers=speakers)
            await ask(live, "POST", "/r", 400, max_response_tokens=0)
        saved = json.loads((tmp_path / "r.json").read_text())
        assert saved["participants"] == ["Ann", "Bob"] and saved["history"][0]["author"] == "Ann"
        async with serving(folder=tmp_path) as live:
            assert await ask(live, "GET", "/r") == {**room, "revision": 0}

    scenario(body)


def test_all_who_watch_a_room_see_what_changes_whoever_changes_it():
    async def body():
        async with serving(b" Hi!\nUser: x") as live:
            await ask(live, "POST", name="r")
            async with (
                live.http.get(f"{live.url}/v1/rooms/r/events") as one,
                live.http.get(f"{live.url}/v1/rooms/r/events") as other,
            ):
                both = (one, other)
                for stream in both:
                    first = await next_event(stream)
                    assert (first["type"], first["name"]) == ("room", "r")
                room = await ask(live, "POST", "/r/insert", blocks=[{"author": "A", "text": "b"}])
                for stream in both:
                    assert texts(await next_event(stream)) == [("A", "b")]
                uuid = room["blocks"][0]["uuid"]
                await ask(live, "POST", "/r/edit", uuid=uuid, text="bc")
                for stream in both:
                    grown = await next_event(stream)
                    assert (grown["type"], grown["texts"]) == ("append", {uuid: "c"})
                    assert grown["since"] == room["revision"] < grown["revision"]
                # ExLlama's routes change the same session.
                await call(live, "set_session", session_name="r")
                await call(live, "append_block", text="d", author="E")
                for stream in both:
                    assert texts(await next_event(stream))[-1] == ("E", "d")
                assert len((await populate(live))["history"]) == 2
                await ask(live, "DELETE", "/r")
                for stream in both:
                    assert (await next_event(stream))["type"] == "gone"

    scenario(body)


@pytest.mark.parametrize("keys", [(), ("one", "two")])
def test_a_client_with_a_key_has_rooms_of_its_own(keys):
    async def body():
        async with serving(api_keys=keys) as live:
            named = [{"Authorization": f"Bearer {key}"} for key in keys] or [None, None]
            await ask(live, "POST", headers=named[0], name="r")
            seen = (await ask(live, "GET", headers=named[1]))["rooms"]
            assert seen == ([] if keys else ["r"])

    scenario(body)


def test_watching_ends_when_the_server_stops():
    async def body():
        async with aiohttp.ClientSession() as watcher:
            async with serving() as live:
                await ask(live, "POST", name="r")
                response = await watcher.get(f"{live.url}/v1/rooms/r/events")
                await next_event(response)
            rest = [line async for line in response.content]
            assert not any(line.startswith(b"data") for line in rest)

    scenario(body)
