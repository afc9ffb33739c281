"""`/v1/batches`: many requests in a file, answered when there is time for them.

Part of the OpenAI dialect.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.serve.decode import check_names
from jaxllama.serve.dialects.openai.batch_store import GrowingKind, RequestBatch
from jaxllama.serve.dialects.openai.batch_work import BatchWork, owner_of
from jaxllama.serve.dialects.openai.pages import read_page
from jaxllama.serve.endpoints import Endpoint, RequestShape, Serves
from jaxllama.serve.keys import CALLER
from jaxllama.serve.model_choice import Uses
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService

MOST_BYTES = 4 << 20  # of one response with lines
LONGEST_START = 15  # digits


class BatchBody(RequestShape, kw_only=True):
    """Request: a file of requests for one endpoint."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
    output_expires_after: Any = None

    unsupported: ClassVar[Mapping[str, str]] = {
        "output_expires_after": "files are kept until they are deleted",
    }


class BatchList(msgspec.Struct):
    """Response with a part of the batches."""

    data: list[RequestBatch]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


CREATE_BATCH = Endpoint(
    "POST",
    "/v1/batches",
    "Answer the requests in a file",
    body=BatchBody,
    answer=RequestBatch,
    uses=Uses.NOTHING,
)
BATCHES = Endpoint("GET", "/v1/batches", "List your batches", answer=BatchList, uses=Uses.NOTHING)
BATCH = Endpoint(
    "GET", "/v1/batches/{batch}", "Describe a batch", answer=RequestBatch, uses=Uses.NOTHING
)
CANCEL_BATCH = Endpoint(
    "POST", "/v1/batches/{batch}/cancel", "Cancel a batch", answer=RequestBatch, uses=Uses.NOTHING
)
BATCH_OUTPUT = Endpoint(
    "GET",
    "/v1/batches/{batch}/output",
    "The answers of a batch so far, one a line, from the byte `start` on",
    answer=str,
    uses=Uses.NOTHING,
)
BATCH_ERRORS = Endpoint(
    "GET",
    "/v1/batches/{batch}/errors",
    "The failed requests of a batch so far, one a line, from the byte `start` on",
    answer=str,
    uses=Uses.NOTHING,
)


BATCH_HANDLERS = {
    CREATE_BATCH: "create_batch",
    BATCHES: "list_batches",
    BATCH: "describe_batch",
    CANCEL_BATCH: "cancel_batch",
    BATCH_OUTPUT: "read_output",
    BATCH_ERRORS: "read_errors",
}


class BatchRoutes:
    """The handlers of batches."""

    def __init__(self, work: BatchWork) -> None:
        self._work = work

    @property
    def endpoints(self) -> Mapping[Endpoint, Serves]:
        """The endpoints, each with the function that answers its requests."""
        return {endpoint: getattr(self, name) for endpoint, name in BATCH_HANDLERS.items()}

    async def create_batch(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer POST /v1/batches: start a batch, and return its description."""
        body, _ = await CREATE_BATCH.read(request, service, BatchBody)
        if body.endpoint not in self._work.handlers:
            raise InvalidParameter(
                f"endpoint is {body.endpoint[:100]!r}; expected one of "
                f"{', '.join(self._work.handlers)}",
                "endpoint",
            )
        caller = request[CALLER]
        batch = self._work.create(body.endpoint, body.input_file_id, body.metadata, caller)
        return one_json(batch)

    async def list_batches(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer GET /v1/batches with a page of the caller's batches."""
        del service
        page = read_page(request, most=100, usual=20)
        batches, has_more = page.cut(self._work.all(owner_of(request[CALLER])))
        first, last = (batches[0].id, batches[-1].id) if batches else (None, None)
        return one_json(BatchList(batches, first, last, has_more))

    async def describe_batch(
        self, request: web.Request, service: GenerationService
    ) -> web.Response:
        """Answer GET /v1/batches/{batch} with the description of a batch."""
        del service
        id_, owner = request.match_info["batch"], owner_of(request[CALLER])
        return one_json(self._work.find(id_, owner).batch)

    async def cancel_batch(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer POST /v1/batches/{batch}/cancel: cancel a batch, and return its description."""
        del service
        id_, owner = request.match_info["batch"], owner_of(request[CALLER])
        return one_json(self._work.cancel(id_, owner))

    async def read_output(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer GET /v1/batches/{batch}/output with the answers so far, one a line."""
        del service
        return await self._read_lines(request, "output")

    async def read_errors(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer GET /v1/batches/{batch}/errors with the failed requests so far, one a line."""
        del service
        return await self._read_lines(request, "errors")

    async def _read_lines(self, request: web.Request, kind: GrowingKind) -> web.Response:
        check_names(request, request.query, ("start",))
        start = request.query.get("start", "0")
        if not (start.isascii() and start.isdigit() and len(start) <= LONGEST_START):
            raise InvalidParameter(
                f"start is {start[:100]!r}; expected a number of bytes of whole lines", "start"
            )
        batch = self._work.find(request.match_info["batch"], owner_of(request[CALLER])).batch
        path = self._work.written(batch, kind)
        lines = await asyncio.to_thread(read_lines, path, int(start))
        headers = {"Content-Type": "application/octet-stream", "Cache-Control": "no-store"}
        return web.Response(body=lines, headers=headers)


def read_lines(path: Path, start: int) -> bytes:
    """Return the whole lines of a growing file that follow the first `start` bytes.

    At most MOST_BYTES are returned, or one line if it is longer; b"" if there is no whole line.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            found = file.read(MOST_BYTES)
            if b"\n" not in found:
                found += file.readline()
    except FileNotFoundError:
        return b""
    return found[: found.rfind(b"\n") + 1]
