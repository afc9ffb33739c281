"""Files and batches, driven by OpenAI's client; resumed by another server on the same folder."""

import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from jaxllama.errors import ConfigError
from jaxllama.serve.dialects.openai import OpenAI, OpenAIOptions, batch_work
from jaxllama.testing import ScriptedEngine
from tests.serve.clients import HI, MODEL, client_of, post, saying
from tests.serve.conftest import Gate, Running, config, running, scenario

CHATS = "/v1/chat/completions"


@contextlib.asynccontextmanager
async def keeping(
    folder: Path, engine=None, key: str = "none", **more
) -> AsyncIterator[tuple[Running, openai.AsyncOpenAI]]:
    """A server that keeps files in a folder, with an OpenAI client."""
    settings = {name: more.pop(name) for name in ("api_keys", "strict") if name in more}
    options = OpenAIOptions(folder=str(folder), **more)
    async with (
        running(engine or saying(b"Hello!"), dialects=[OpenAI(options)], **settings) as live,
        client_of(live, api_key=key) as client,
    ):
        yield live, client


def line(number: int | str, url: str = CHATS, method: str = "POST", **body) -> str:
    """A line of an input file."""
    sent = {"model": MODEL, "messages": HI} | body
    return json.dumps({"custom_id": f"n{number}", "method": method, "url": url, "body": sent})


async def begin(client, lines, endpoint=CHATS, **more):
    """Send a file of requests and start a batch on it."""
    raw = "".join(f"{each}\n" for each in lines).encode()
    file = await client.files.create(file=("in.jsonl", raw), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


async def ended(live, client, batch, *status):
    """Wait until a batch is over and return it."""
    while batch.status not in (status or ("completed", "failed", "expired", "cancelled")):
        await live.until(lambda: True)
        batch = await client.batches.retrieve(batch.id)
    return batch


async def lines_of(client, file):
    """The lines of a file, by the id that the client gave them."""
    text = (await client.files.content(file)).text
    found = [json.loads(each) for each in text.splitlines()]
    return {each["custom_id"]: each for each in found}


def test_a_batch_answers_every_line_of_its_file(tmp_path):
    async def body():
        async with keeping(tmp_path) as (live, client):
            lines = [line(number) for number in range(20)]
            lines[7] = line(7, temperature=-1)
            batch = await begin(client, lines, metadata={"a": "b"})
            assert (batch.object, batch.status, batch.metadata) == (
                "batch",
                "validating",
                {"a": "b"},
            )
            batch = await ended(live, client, batch)
            assert batch.status == "completed"
            counts = batch.request_counts
            assert (counts.total, counts.completed, counts.failed) == (20, 19, 1)
            good = await lines_of(client, batch.output_file_id)
            assert good.keys() == {f"n{number}" for number in range(20)} - {"n7"}
            answer = good["n3"]["response"]
            assert answer["status_code"] == 200
            assert answer["body"]["choices"][0]["message"]["content"] == "Hello!"
            assert len({each["id"] for each in good.values()}) == 19
            (bad,) = (await lines_of(client, batch.error_file_id)).values()
            assert (bad["custom_id"], bad["response"]["status_code"]) == ("n7", 400)
            assert bad["response"]["body"]["error"]["param"] == "temperature"

    scenario(body)


@pytest.mark.parametrize(
    ("endpoint", "sent", "read"),
    [
        ("/v1/completions", {"prompt": "a"}, lambda body: body["choices"][0]["text"] == "Hello!"),
        ("/v1/embeddings", {"input": "a"}, lambda body: len(body["data"]) == 1),
        ("/v1/responses", {"input": "a"}, lambda body: body["status"] == "completed"),
    ],
)
def test_other_endpoints_answer_in_batches_too(tmp_path, endpoint, sent, read):
    async def body():
        async with keeping(tmp_path) as (live, client):
            one = {"custom_id": "x", "method": "POST", "url": endpoint, "body": sent}
            batch = await ended(live, client, await begin(client, [json.dumps(one)], endpoint))
            assert batch.error_file_id is None
            found = await lines_of(client, batch.output_file_id)
            assert read(found["x"]["response"]["body"])

    scenario(body)


def test_files_are_listed_read_and_deleted(tmp_path):
    async def body():
        async with keeping(tmp_path) as (_, client):
            sent = [b"one\n", b"two\n", b"three\n"]
            files = [
                await client.files.create(file=(f"../{i}.jsonl", raw), purpose="batch")
                for i, raw in enumerate(sent)
            ]
            assert [file.bytes for file in files] == [4, 4, 6]
            assert files[0].filename == "../0.jsonl"
            listed = {file.id async for file in client.files.list(limit=1)}
            assert listed == {file.id for file in files}
            assert [f.id async for f in client.files.list(purpose="batch_output")] == []
            assert (await client.files.retrieve(files[2].id)).bytes == 6
            assert (await client.files.content(files[2].id)).content == b"three\n"
            assert (await client.files.delete(files[0].id)).deleted
            with pytest.raises(openai.NotFoundError):
                await client.files.retrieve(files[0].id)
            kept = {path.name for path in (tmp_path / "files").iterdir()}
            assert kept == {f"{f.id}.{end}" for f in files[1:] for end in ("json", "data")}

    scenario(body)


@pytest.mark.parametrize("name", ["file-x", "..%2F..%2Fetc%2Fpasswd", f"file-{'0' * 24}"])
def test_a_name_that_is_none_of_ours_is_no_file(tmp_path, name):
    async def body():
        async with keeping(tmp_path) as (live, _):
            assert await live.status(f"/v1/files/{name}") == 404
            assert await live.status(f"/v1/files/{name}/content") == 404

    scenario(body)


WRONG = [
    ("no json", "malformed"),
    (line(0, url="/v1/completions"), "url is"),
    (line(0, method="GET"), "GET"),
    (line(0, stream=True), "cannot stream"),
    (line(1), "was used before"),
    (line("x" * 513), "514 characters"),
]


def test_a_file_with_wrong_lines_fails_and_names_them(tmp_path):
    async def body():
        async with keeping(tmp_path) as (live, client):
            batch = await begin(client, [line(1), *(each for each, _ in WRONG)])
            batch = await ended(live, client, batch)
            assert batch.status == "failed"
            problems = batch.errors.data
            assert [problem.line for problem in problems] == list(range(2, 2 + len(WRONG)))
            for problem, (_, words) in zip(problems, WRONG, strict=True):
                assert words in problem.message
            assert batch.output_file_id is None

    scenario(body)


def test_what_is_wrong_with_a_batch_is_named(tmp_path):
    async def body():
        async with keeping(tmp_path, file_mib=1, folder_mib=2, batch_lines=3) as (live, client):
            file = await client.files.create(file=("a", b"x"), purpose="batch")
            sent = {
                "input_file_id": file.id,
                "endpoint": CHATS,
                "completion_window": "24h",
            }
            for more, status, param in (
                ({"endpoint": "/v1/models"}, 400, "endpoint"),
                ({"completion_window": "1h"}, 400, "completion_window"),
                ({"output_expires_after": {"a": 1}}, 400, "output_expires_after"),
                ({"metadata": {str(i): "" for i in range(17)}}, 400, "metadata"),
                ({"input_file_id": "file-0"}, 404, None),
            ):
                error = (await post(live, "/v1/batches", sent | more, status))["error"]
                assert error["param"] == param
            with pytest.raises(openai.BadRequestError, match="purpose is 'vision'"):
                await client.files.create(file=b"x", purpose="vision")
            with pytest.raises(openai.BadRequestError, match="is empty"):
                await client.files.create(file=("a", b""), purpose="batch")
            much = b"x" * (1 << 20)
            with pytest.raises(openai.APIStatusError, match="more than 1 MiB") as found:
                await client.files.create(file=("a", much + b"x"), purpose="batch")
            assert found.value.status_code == 413
            await client.files.create(file=("a", much), purpose="batch")
            with pytest.raises(openai.APIStatusError, match="delete some"):
                await client.files.create(file=("a", much), purpose="batch")
            batch = await ended(live, client, await begin(client, map(line, range(4))))
            assert batch.errors.data[0].code == "too_many_lines"
            assert await live.status("/v1/batches?limit=0") == 400
            assert not list((tmp_path / "files").glob("*.part"))

    scenario(body)


def test_a_batch_is_cancelled_and_keeps_what_is_answered(tmp_path):
    async def body():
        engine = ScriptedEngine(
            lambda prompt: b"Hello!" if b"fast" in bytes(prompt[:20]) else b"x" * 1000,
            config=config(context=2048),
        )
        gate = Gate(engine)
        gate.open()
        async with keeping(tmp_path, engine) as (live, client):
            gate._is_open.clear()
            batch = await begin(client, [line(number, max_tokens=900) for number in range(30)])
            batch = await ended(live, client, batch, "in_progress")
            await live.until(lambda: bool(live.service.queue) or engine.counts["slots"] > 0)
            batch = await client.batches.cancel(batch.id)
            assert batch.status == "cancelling"
            gate.open()
            batch = await ended(live, client, batch)
            assert batch.status == "cancelled"
            assert batch.request_counts.completed < 30
            with pytest.raises(openai.ConflictError):
                await client.batches.cancel(batch.id)
            await live.settled()

    scenario(body)


def test_a_restart_goes_on_where_the_server_ended(tmp_path):
    prompts = []

    def script(prompt):
        prompts.append(prompt)
        return b"Hello!"

    async def body():
        engine = ScriptedEngine(script, config=config(slots=2))
        gate = Gate(engine)
        gate.open()
        async with keeping(tmp_path, engine) as (live, client):
            batch = await begin(client, [line(number) for number in range(40)])
            while batch.request_counts.completed < 5:
                batch = await client.batches.retrieve(batch.id)
        growing = tmp_path / "batches" / f"{batch.id}.output.jsonl"
        done = len(growing.read_text().splitlines())
        assert 5 <= done < 40
        with growing.open("ab") as lines:
            lines.write(b'{"id":"batch_req_cut')  # as a crash leaves it
        asked = len(prompts)
        async with keeping(tmp_path, ScriptedEngine(script, config=config())) as (live, client):
            batch = await ended(live, client, batch)
            assert batch.status == "completed"
            assert batch.request_counts.completed == 40
            found = await lines_of(client, batch.output_file_id)
            assert found.keys() == {f"n{number}" for number in range(40)}
            assert len((await client.files.content(batch.output_file_id)).text.splitlines()) == 40
            assert len(prompts) - asked <= 40 - done + 2  # the first request of a server is its own
            listed = [each.id async for each in client.batches.list()]
            assert listed == [batch.id]

    scenario(body)


def test_a_late_batch_expires_and_says_which_lines_are_left(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_work, "SECONDS_PER_DAY", -1)

    async def body():
        async with keeping(tmp_path) as (live, client):
            batch = await ended(live, client, await begin(client, [line(1), line(2)]))
            assert batch.status == "expired"
            assert batch.expires_at < time.time()
            left = await lines_of(client, batch.error_file_id)
            assert {each["error"]["code"] for each in left.values()} == {"batch_expired"}
            assert batch.request_counts.failed == 2

    scenario(body)


def test_clients_with_keys_see_their_own_files_only(tmp_path):
    async def body():
        async with keeping(tmp_path, key="mine", api_keys=("mine", "theirs")) as (live, mine):
            batch = await ended(live, mine, await begin(mine, [line(1)]))
            async with client_of(live, api_key="theirs") as theirs:
                assert [file.id async for file in theirs.files.list()] == []
                assert [each.id async for each in theirs.batches.list()] == []
                for asked in (
                    theirs.files.content(batch.output_file_id),
                    theirs.files.delete(batch.input_file_id),
                    theirs.batches.retrieve(batch.id),
                    theirs.batches.cancel(batch.id),
                ):
                    with pytest.raises(openai.NotFoundError):
                        await asked

    scenario(body)


def test_one_folder_is_for_one_server(tmp_path):
    async def body():
        async with keeping(tmp_path):
            with pytest.raises(ConfigError, match="is used by another server"):
                async with keeping(tmp_path):
                    pass

    scenario(body)


def test_without_a_folder_batches_last_as_long_as_the_server():
    async def body():
        dialect = OpenAI()
        async with (
            running(saying(b"Hello!"), dialects=[dialect]) as live,
            client_of(live) as client,
        ):
            batch = await ended(live, client, await begin(client, [line(1)]))
            assert batch.status == "completed"
            folder = dialect._folder
            assert folder.stat().st_mode & 0o077 == 0
        assert not folder.exists()

    scenario(body)


def test_answers_are_read_while_a_batch_runs(tmp_path):
    async def read(live, batch, kind="output", start=0):
        url = f"{live.url}/v1/batches/{batch.id}/{kind}?start={start}"
        async with live.http.get(url) as response:
            assert response.status == 200, await response.text()
            return await response.read()

    async def body():
        holds = threading.Event()

        def answer(prompt: tuple[int, ...]) -> bytes:
            if b"wait" in bytes(token for token in prompt if token < 256):
                holds.wait(30)
            return b"Hello!"

        engine = ScriptedEngine(answer, config=config(slots=1))
        async with keeping(tmp_path, engine) as (live, client):
            lines = [
                line(1),
                line(2, temperature=-1),
                line(3, messages=[{"role": "user", "content": "wait"}]),
            ]
            batch = await begin(client, lines)
            found = b""
            while not found:
                found = await read(live, batch)
                await live.until(lambda: True)
            assert [json.loads(each)["custom_id"] for each in found.splitlines()] == ["n1"]
            assert await read(live, batch, start=len(found)) == b""
            holds.set()
            batch = await ended(live, client, batch)
            rest = await read(live, batch, start=len(found))
            assert json.loads(rest)["custom_id"] == "n3"
            failed = json.loads(await read(live, batch, "errors"))
            assert failed["custom_id"] == "n2"
            whole = (await client.files.content(batch.output_file_id)).read()
            assert whole == found + rest
            for start in ("-1", "x", "1" * 16):
                path = f"/v1/batches/{batch.id}/output?start={start}"
                assert await live.status(path) == 400
            assert await live.status("/v1/batches/none/output") == 404

    scenario(body)


def test_a_page_of_another_site_sends_no_files(tmp_path):
    async def body():
        async with keeping(tmp_path) as (live, _):
            status = await live.status(
                "/v1/files", "POST", data={"purpose": "batch"}, headers={"Origin": "http://evil"}
            )
            assert status == 403

    scenario(body)
