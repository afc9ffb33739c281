"""Batch work: answers the requests of batches, a few at a time, while the server runs.

Made by the OpenAI dialect. Every request takes its client's turn in the fair queue, so that a batch
delays no other client. What is not answered when the server ends is answered after the next start.
"""

import asyncio
import contextlib
import fcntl
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
from aiohttp import web

from jaxllama.errors import (
    CannotStore,
    ConfigError,
    EngineStopped,
    HttpError,
    InvalidParameter,
    JaxLlamaError,
    NotReady,
    QueueFull,
)
from jaxllama.serve.dialects.openai.batch_store import (
    BatchProblems,
    BatchStore,
    GrowingKind,
    KeptBatch,
    LineAnswer,
    LineError,
    LineProblem,
    OutputLine,
    RequestBatch,
    new_batch_id,
    no_batch,
)
from jaxllama.serve.dialects.openai.file_store import FileStore, KeptName, new_file_id
from jaxllama.serve.guard import Handler
from jaxllama.serve.inner import InnerRequest, answer_inside
from jaxllama.serve.keys import MODELS, ErrorForm
from jaxllama.serve.wire import encode
from jaxllama.service.answers import Caller
from jaxllama.service.served_models import ServedModels

logger = logging.getLogger(__name__)

SECONDS_PER_DAY = 24 * 60 * 60
AHEAD = 2  # requests of all batches that are under way at a time, per slot
MOST_BATCHES = 256  # kept at a time; the oldest that is over makes room
MOST_UNFINISHED = 16  # of one client
MOST_PROBLEMS = 50  # of one input file that are told
MOST_TRIES = 3  # of a request during which the engine stops
BUSY_SECONDS, AWAY_SECONDS = 0.1, 1.0  # until a request is tried again
LONGEST_CUSTOM_ID = 512


class InputLine(msgspec.Struct, forbid_unknown_fields=True):
    """A line of an input file: a request."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class StreamPeek(msgspec.Struct):
    """Whether a request asks for a stream."""

    stream: Any = None


class BatchWork:
    """All batches of a server, and the tasks that answer them."""

    def __init__(self, folder: Path, files: FileStore, *, most_lines: int) -> None:
        self._folder, self._files, self._most_lines = folder, files, most_lines
        self._store = BatchStore(folder / "batches")
        self._kept: dict[str, KeptBatch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.handlers: dict[str, Handler] = {}  # path -> what answers a line of a batch
        self._dialect: ErrorForm | None = None
        self._app: web.Application | None = None
        self._room = asyncio.Semaphore(AHEAD)

    @contextlib.asynccontextmanager
    async def running(self, app: web.Application, dialect: ErrorForm) -> AsyncIterator[None]:
        """Within the context, lock the folder of batches, and process those that have not ended.

        At the end, the tasks that process them are stopped. `app` is the server's application;
        `dialect`, the HTTP API, makes the bodies of errors.
        """
        self._app, self._dialect = app, dialect
        with taken(self._folder):
            self._files.open()
            self._kept = {kept.batch.id: kept for kept in self._store.open()}
            starting = asyncio.create_task(self._start_all(), name="batches")
            try:
                yield
            finally:
                starting.cancel()
                for task in self._tasks.values():
                    task.cancel()
                await asyncio.gather(starting, *self._tasks.values(), return_exceptions=True)

    # For the endpoints.

    def create(
        self, endpoint: str, input_file: str, metadata: dict[str, str] | None, kept_for: Caller
    ) -> RequestBatch:
        """Start a batch on a file that the caller has uploaded, and return its description.

        `endpoint` is the path that answers its requests, `input_file` the id of the file,
        `metadata` the client's own notes, and `kept_for` the caller who owns the batch. Raises
        HttpError if the input file does not exist, or if there are too many batches.
        """
        owner = owner_of(kept_for)
        self._files.find(input_file, owner)
        unfinished = sum(not kept.batch.is_over for kept in self._owned(owner))
        if unfinished >= MOST_UNFINISHED:
            raise HttpError(
                f"{unfinished} batches of yours are not over, as many as may be; wait for one, or "
                f"cancel one",
                429,
                "too_many_batches",
            )
        self._make_room()
        now = int(time.time())
        batch = RequestBatch(
            id=new_batch_id(),
            endpoint=endpoint,
            input_file_id=input_file,
            completion_window="24h",
            created_at=now,
            expires_at=now + SECONDS_PER_DAY,
            metadata=metadata,
        )
        kept = KeptBatch(batch, owner, kept_for.client)
        self._store.save(kept)
        self._kept[batch.id] = kept
        self._start(kept)
        return batch

    def find(self, id_: str, owner: str) -> KeptBatch:
        """Return the batch `id_`; raise HttpError 404 if `owner` has none by this id.

        `owner` is the name of a client with an API key, or "" for all clients without a key.
        """
        kept = self._kept.get(id_)
        if kept is None or kept.owner != owner:
            raise no_batch(id_)
        return kept

    def all(self, owner: str) -> list[RequestBatch]:
        """Return an owner's batches, newest first.

        `owner` is the name of a client with an API key, or "" for all clients without a key.
        """
        return [kept.batch for kept in reversed(self._owned(owner))]

    def cancel(self, id_: str, owner: str) -> RequestBatch:
        """Cancel a batch; its answers so far stay.

        `owner` is the name of a client with an API key, or "" for all clients without a key.
        Raises HttpError 404 if the owner has no such batch, and 409 if it has ended.
        """
        kept = self.find(id_, owner)
        batch = kept.batch
        if batch.is_over or batch.status == "finalizing":
            raise HttpError(
                f"the batch is {batch.status} and cannot be cancelled", 409, "batch_is_over"
            )
        if batch.status != "cancelling":
            batch.status, batch.cancelling_at = "cancelling", int(time.time())
            if id_ in self._tasks:
                self._tasks[id_].cancel()
            self._start(kept)
            self._store.save(kept)
        return batch

    def written(self, batch: RequestBatch, kind: GrowingKind) -> Path:
        """Return the path of the file with a batch's answers so far, or with its errors.

        `kind` is "output" for the answers, "errors" for the errors. The file may not exist yet.
        """
        growing = self._store.growing(batch, kind)
        id_ = batch.output_file_id if kind == "output" else batch.error_file_id
        # The id is noted before the file gets it.
        return growing if id_ is None or growing.exists() else self._files.content(id_)

    def is_reading(self, file: str) -> bool:
        """Say whether the file with this id is the input of a batch that has not ended."""
        return any(
            kept.batch.input_file_id == file and not kept.batch.is_over
            for kept in self._kept.values()
        )

    def _owned(self, owner: str) -> list[KeptBatch]:
        return [kept for kept in self._kept.values() if kept.owner == owner]

    def _make_room(self) -> None:
        """Forget the oldest batch that has ended, if there are too many.

        Raises HttpError if all of them are still running.
        """
        while len(self._kept) >= MOST_BATCHES:
            oldest = next((kept for kept in self._kept.values() if kept.batch.is_over), None)
            if oldest is None:
                raise HttpError(f"there are {MOST_BATCHES} batches", 429, "too_many_batches")
            self._store.forget(oldest)
            del self._kept[oldest.batch.id]

    # The work.

    @property
    def _models(self) -> ServedModels:
        assert self._app is not None
        return self._app[MODELS]

    async def _start_all(self) -> None:
        await self._models.ready.wait()
        self._room = asyncio.Semaphore(AHEAD * self._models.slots)
        for kept in list(self._kept.values()):
            if not kept.batch.is_over and kept.batch.id not in self._tasks:
                self._start(kept)

    def _start(self, kept: KeptBatch) -> None:
        before = self._tasks.get(kept.batch.id)
        self._tasks[kept.batch.id] = asyncio.create_task(self._run(kept, before))

    async def _run(self, kept: KeptBatch, before: asyncio.Task[None] | None) -> None:
        """Process one batch to its end.

        `before` is an earlier task on the same batch, which must end first; None: there is none.
        """
        batch = kept.batch
        try:
            if before is not None:
                await asyncio.wait((before,))
            await self._models.ready.wait()
            if batch.status == "validating":
                await self._validate(kept)
            if batch.status == "in_progress":
                await self._answer_all(kept)
            if not batch.is_over:
                await self._until_stored(batch, partial(self._finish, kept))
            logger.info("batch %s is %s", batch.id, batch.status)
        except Exception as error:
            logger.exception("batch %s failed", batch.id)
            problem = LineProblem("internal_error", f"the batch cannot go on: {error}")
            fail(batch, [problem])
            with contextlib.suppress(CannotStore):
                self._store.save(kept)

    async def _validate(self, kept: KeptBatch) -> None:
        """Check all lines of the input file; the batch fails if any of them is wrong."""
        batch = kept.batch
        count, problems = await asyncio.to_thread(self._problems, batch)
        if batch.status != "validating":
            return
        batch.request_counts.total = count
        if problems:
            fail(batch, problems[:MOST_PROBLEMS])
        else:
            batch.status, batch.in_progress_at = "in_progress", int(time.time())
        self._store.save(kept)

    def _problems(self, batch: RequestBatch) -> tuple[int, list[LineProblem]]:
        """Return the number of lines in the batch's input file, and the errors in them."""
        found: list[LineProblem] = []
        seen: set[str] = set()
        number = 0
        for number, line in enumerate(self._lines(batch), 1):
            try:
                given = read_line(line, batch.endpoint)
                if given.custom_id in seen:
                    raise InvalidParameter(
                        f"custom_id {given.custom_id[:100]!r} was used before; expected one of "
                        f"its own for each line",
                        "custom_id",
                    )
                seen.add(given.custom_id)
            except InvalidParameter as error:
                found.append(LineProblem("invalid_line", str(error), error.field, number))
                if len(found) == MOST_PROBLEMS:
                    break
            if number > self._most_lines:
                words = f"the file has more than {self._most_lines} lines; send several batches"
                return number, [LineProblem("too_many_lines", words)]
        if not number:
            found.append(LineProblem("empty_file", "the file has no lines"))
        return number, found

    def _lines(self, batch: RequestBatch) -> Iterator[bytes]:
        """Yield the lines of the batch's input file that are not empty."""
        with self._files.content(batch.input_file_id).open("rb") as lines:
            for line in lines:
                if line.strip():
                    yield line

    async def _answer_all(self, kept: KeptBatch) -> None:
        """Answer the requests that are not done, several at a time, in the order of the file."""
        batch = kept.batch
        done, counts = await asyncio.to_thread(self._store.done, batch)
        batch.request_counts = counts
        lines = enumerate(self._lines(batch))
        async with asyncio.TaskGroup() as group:
            while True:
                await self._room.acquire()
                found = await asyncio.to_thread(next_undone, lines, done)
                if found is None or time.time() > batch.expires_at:
                    self._room.release()
                    break
                task = group.create_task(self._answer(kept, *found))
                task.add_done_callback(lambda _: self._room.release())

    async def _answer(self, kept: KeptBatch, number: int, line: bytes) -> None:
        """Answer one request of a batch, and append the answer to the batch's files.

        `line` is the JSON text of the request. `number` is its place in the input file, from 0.
        """
        given = read_line(line, kept.batch.endpoint)
        caller = Caller(client=kept.client, route=f"BATCH {given.url}")
        status, body = await self._try_until_answered(given, caller)
        counts, is_good = kept.batch.request_counts, status < 400  # noqa: PLR2004 - of HTTP
        answer = LineAnswer(status, caller.id, msgspec.Raw(body))
        written = OutputLine(line_id(kept.batch, number), given.custom_id, answer)
        kind: GrowingKind = "output" if is_good else "errors"
        append = partial(self._store.append, kept.batch, kind, written)
        await self._until_stored(kept.batch, append)
        counts.completed += is_good
        counts.failed += not is_good

    async def _until_stored(self, batch: RequestBatch, store: Callable[[], None]) -> None:
        """Call `store` in a thread; if the disk is full, call it again until there is room.

        If the task is cancelled, a call that has begun is still completed, so that no line is cut.
        `batch` is the batch that waits, for the log.
        """
        has_warned = False
        while True:
            try:
                await asyncio.shield(asyncio.to_thread(store))
                return
            except CannotStore as error:
                if not has_warned:
                    logger.warning("batch %s waits: %s", batch.id, error)
                has_warned = True
                await asyncio.sleep(AWAY_SECONDS)

    async def _try_until_answered(self, given: InputLine, caller: Caller) -> tuple[int, bytes]:
        """Return the HTTP status and the body of the answer to one request of a batch.

        Tries again while the queue is full or the server is not ready, and a few times after the
        engine stopped. Other errors become the answer. `given` is the request's line in the input
        file, `caller` the sender.
        """
        assert self._app is not None
        assert self._dialect is not None
        tries = 0
        while True:
            request = InnerRequest(self._app, caller, self._dialect, bytes(given.body))
            try:
                return await answer_inside(self.handlers[given.url], request)
            except QueueFull:
                await asyncio.sleep(BUSY_SECONDS)
            except NotReady:
                await asyncio.sleep(AWAY_SECONDS)
            except EngineStopped as error:
                tries += 1
                if tries == MOST_TRIES:
                    return self._refusal(error)
                await asyncio.sleep(AWAY_SECONDS)
            except JaxLlamaError as error:
                return self._refusal(error)
            except Exception:
                logger.exception("request %s of a batch failed", caller.id)
                return self._refusal(JaxLlamaError("internal error"))

    def _refusal(self, error: JaxLlamaError) -> tuple[int, bytes]:
        assert self._dialect is not None
        return self._dialect.error_status(error), encode(self._dialect.error_body(error))

    def _finish(self, kept: KeptBatch) -> None:
        """Move the answers and errors into the file store, and set the final status of the batch.

        Can be called again if the server crashed during a call: the id of a file is saved in the
        batch's description before the file is moved.
        """
        batch, now = kept.batch, int(time.time())
        is_late = False
        if batch.status in ("in_progress", "cancelling") and batch.finalizing_at is None:
            done, batch.request_counts = self._store.done(batch)
            is_late = batch.status == "in_progress" and self._note_expired(batch, done)
            batch.finalizing_at = now
            batch.expired_at = now if is_late else None
            batch.status = "finalizing" if batch.status == "in_progress" else batch.status
        for kind in ("output", "errors"):
            self._keep_written(kept, kind)
        if batch.status == "cancelling":
            batch.status, batch.cancelled_at = "cancelled", now
        elif batch.expired_at is not None:
            batch.status = "expired"
        else:
            batch.status, batch.completed_at = "completed", now
        self._store.save(kept)

    def _keep_written(self, kept: KeptBatch, kind: GrowingKind) -> None:
        """Move a batch's growing file of answers, or errors, into the file store, if it exists."""
        batch, path = kept.batch, self._store.growing(kept.batch, kind)
        if not path.exists():
            return
        given = batch.output_file_id if kind == "output" else batch.error_file_id
        id_ = given or new_file_id()
        if kind == "output":
            batch.output_file_id = id_
        else:
            batch.error_file_id = id_
        self._store.save(kept)
        name = f"{batch.id}_{kind}.jsonl"
        self._files.adopt(path, id_, KeptName(name, kept.owner, "batch_output"))

    def _note_expired(self, batch: RequestBatch, done: set[int]) -> bool:
        """Write an error line for each request that is not in `done`; say if there were any.

        `done` has the numbers of the requests that need no such line.
        """
        error = LineError("batch_expired", "the batch ended before this request was answered")
        is_late = False
        for number, line in enumerate(self._lines(batch)):
            if number not in done:
                is_late = True
                custom_id = read_line(line, batch.endpoint).custom_id
                left = OutputLine(line_id(batch, number), custom_id, None, error)
                self._store.append(batch, "errors", left)
                batch.request_counts.failed += 1
        return is_late


def owner_of(caller: Caller) -> str:
    """Return the owner of the files that a caller uploads or creates.

    It is the name of a client with an API key; "" for all callers without a key, who share files.
    """
    return caller.client if caller.client.startswith("key-") else ""


def fail(batch: RequestBatch, problems: list[LineProblem]) -> None:
    """Set the status of a batch to failed, with the time and the problems."""
    batch.errors = BatchProblems(problems)
    batch.status, batch.failed_at = "failed", int(time.time())


def line_id(batch: RequestBatch, number: int) -> str:
    """Return the id of the output line for request `number` of the input file, from 0."""
    return f"batch_req_{batch.id.removeprefix('batch_')}_{number}"


def next_undone(lines: Iterator[tuple[int, bytes]], done: set[int]) -> tuple[int, bytes] | None:
    """Return the next of the numbered `lines` whose number is not in `done`; None at the end."""
    return next(((number, line) for number, line in lines if number not in done), None)


def read_line(line: bytes, endpoint: str) -> InputLine:
    """Decode a line of an input file; raise InvalidParameter if it is wrong.

    `endpoint` is the path that all requests of the batch must have.
    """
    try:
        given = msgspec.json.decode(line, type=InputLine)
        stream = msgspec.json.decode(given.body, type=StreamPeek).stream
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidParameter(
            f'{error}; expected {{"custom_id", "method": "POST", "url", "body"}}'
        ) from error
    if given.url != endpoint:
        raise InvalidParameter(
            f"url is {given.url[:100]!r}; expected the batch's endpoint, {endpoint!r}", "url"
        )
    if not 0 < len(given.custom_id) <= LONGEST_CUSTOM_ID:
        raise InvalidParameter(
            f"custom_id has {len(given.custom_id)} characters; expected 1 to {LONGEST_CUSTOM_ID}",
            "custom_id",
        )
    if stream:
        raise InvalidParameter("body.stream is true, but a batch cannot stream", "body.stream")
    return given


@contextlib.contextmanager
def taken(folder: Path) -> Iterator[None]:
    """Within the context, lock a folder for this server; create the folder if needed.

    Raises ConfigError if that fails or another server has locked it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"the folder for files, {folder}, cannot be used: {error.strerror}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"the folder for files, {folder}, is used by another server; choose another"
            ) from error
        yield
