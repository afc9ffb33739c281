"""A full disk: what cannot be stored is told, nothing is half written, batches wait for room."""

import contextlib
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from jaxllama.errors import CannotStore
from jaxllama.serve.dialects.exllama.sessions import ExLlamaSession, SessionStore
from jaxllama.serve.dialects.openai import OpenAI, OpenAIOptions, batch_work
from jaxllama.serve.whole_files import append_whole, write_whole
from tests.serve.clients import MODEL, client_of, saying
from tests.serve.conftest import Gate, running, scenario
from tests.serve.test_batches import begin, ended, keeping, line, lines_of


@contextlib.contextmanager
def full_disk(room: int = 0) -> Iterator[None]:
    """Within the context, no file of this process can become larger than `room` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_old_content_stays_and_nothing_is_left_over(tmp_path: Path):
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    with full_disk(), pytest.raises(CannotStore, match="cannot write to its disk"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_session_whose_folder_cannot_be_made_is_told_as_such(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotStore, match="cannot write to its disk"):
        SessionStore(tmp_path / "file" / "sessions").save("one", ExLlamaSession())


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "lines"
    append_whole(path, b"one\n")
    with full_disk(room=6), pytest.raises(CannotStore):
        append_whole(path, b"second\n")
    assert path.read_bytes() == b"one\n"
    append_whole(path, b"third\n")
    assert path.read_bytes() == b"one\nthird\n"


def test_threads_that_find_the_disk_full_leave_each_others_lines_alone(tmp_path: Path):
    path, line = tmp_path / "lines", b"x" * 99 + b"\n"

    def append(_: int) -> bool:
        try:
            append_whole(path, line)
        except CannotStore:
            return False
        return True

    with full_disk(room=10_050), ThreadPoolExecutor(8) as threads:
        written = sum(threads.map(append, range(300)))
    assert written == 100 and path.read_bytes() == line * 100


def test_an_upload_is_refused_and_leaves_nothing(tmp_path: Path):
    async def body():
        async with keeping(tmp_path) as (_, client):
            unsure = client.with_options(max_retries=0)
            sent = (("in.jsonl", b"x" * size) for size in (10, 100_000))
            for file in sent:
                with full_disk(), pytest.raises(openai.InternalServerError) as refused:
                    await unsure.files.create(file=file, purpose="batch")
                assert refused.value.status_code == 507
                assert refused.value.code == "cannot_store"
            assert list((tmp_path / "files").iterdir()) == []
            assert (await client.files.create(file=("b", b"x"), purpose="batch")).bytes == 1

    scenario(body)


def test_a_batch_waits_for_room_and_loses_no_answer(tmp_path: Path, monkeypatch, caplog):
    async def body():
        monkeypatch.setattr(batch_work, "AWAY_SECONDS", 0.01)
        engine = saying(b"Hello!")
        async with keeping(tmp_path, engine) as (live, client):
            gate = Gate(engine)
            batch = await begin(client, [line(number) for number in range(5)])
            await ended(live, client, batch, "in_progress")
            with full_disk():
                gate.open()
                await live.until(lambda: "waits: the server cannot write" in caplog.text)
                assert (await client.batches.retrieve(batch.id)).request_counts.completed == 0
            batch = await ended(live, client, batch)
            assert batch.status == "completed" and batch.request_counts.completed == 5
            found = await lines_of(client, batch.output_file_id)
            assert found.keys() == {f"n{number}" for number in range(5)}

    scenario(body)


def test_a_response_that_cannot_be_kept_is_answered(tmp_path: Path, caplog):
    async def body():
        options = OpenAIOptions(folder=str(tmp_path), keep_responses=True)
        async with (
            running(saying(b"Hello!"), dialects=[OpenAI(options)]) as live,
            client_of(live) as client,
        ):
            with full_disk():
                answer = await client.responses.create(model=MODEL, input="hi")
            assert answer.output_text == "Hello!"
            assert f"response {answer.id} is not stored" in caplog.text
            with pytest.raises(openai.NotFoundError, match="was not stored"):
                await client.responses.retrieve(answer.id)

    scenario(body)
