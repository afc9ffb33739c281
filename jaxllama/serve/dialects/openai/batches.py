"""`/v1/batches`: many requests in a file, answered when there is time for them.

Part of the OpenAI dialect.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.serve.dialects.openai.batch_store import RequestBatch
from jaxllama.serve.dialects.openai.batch_work import BatchWork, owner_of
from jaxllama.serve.dialects.openai.pages import read_page
from jaxllama.serve.endpoints import Endpoint, RequestShape, Serves
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService


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
    "POST", "/v1/batches", "Answer the requests in a file", body=BatchBody, answer=RequestBatch
)
BATCHES = Endpoint("GET", "/v1/batches", "List your batches", answer=BatchList)
BATCH = Endpoint("GET", "/v1/batches/{batch}", "Describe a batch", answer=RequestBatch)
CANCEL_BATCH = Endpoint("POST", "/v1/batches/{batch}/cancel", "Cancel a batch", answer=RequestBatch)


BATCH_HANDLERS = {
    CREATE_BATCH: "create_batch",
    BATCHES: "list_batches",
    BATCH: "describe_batch",
    CANCEL_BATCH: "cancel_batch",
}


class BatchRoutes:
    """The handlers of batches."""

    def __init__(self, work: BatchWork) -> None:
        self._work = work

    @property
    def endpoints(self) -> Mapping[Endpoint, Serves]:
        """The endpoints and their handlers."""
        return {endpoint: getattr(self, name) for endpoint, name in BATCH_HANDLERS.items()}

    async def create_batch(self, request: web.Request, service: GenerationService) -> web.Response:
        """Start a batch."""
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
        """Answer with a part of the caller's batches."""
        del service
        page = read_page(request, most=100, usual=20)
        batches, has_more = page.cut(self._work.all(owner_of(request[CALLER])))
        first, last = (batches[0].id, batches[-1].id) if batches else (None, None)
        return one_json(BatchList(batches, first, last, has_more))

    async def describe_batch(
        self, request: web.Request, service: GenerationService
    ) -> web.Response:
        """Answer with the description of a batch."""
        del service
        id_, owner = request.match_info["batch"], owner_of(request[CALLER])
        return one_json(self._work.find(id_, owner).batch)

    async def cancel_batch(self, request: web.Request, service: GenerationService) -> web.Response:
        """Cancel a batch."""
        del service
        id_, owner = request.match_info["batch"], owner_of(request[CALLER])
        return one_json(self._work.cancel(id_, owner))
