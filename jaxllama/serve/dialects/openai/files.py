"""`/v1/files`: the files of batches, sent by clients or written here.

Part of the OpenAI dialect.
"""

import asyncio
from collections.abc import Mapping
from typing import Literal

import msgspec
from aiohttp import BodyPartReader, web

from jaxllama.errors import HttpError, InvalidParameter
from jaxllama.serve.decode import note_ignored
from jaxllama.serve.dialects.openai.batch_work import BatchWork, owner_of
from jaxllama.serve.dialects.openai.file_store import FileObject, FileStore, Upload
from jaxllama.serve.dialects.openai.pages import read_page
from jaxllama.serve.endpoints import Endpoint, Serves
from jaxllama.serve.expect import send_continue
from jaxllama.serve.keys import CALLER, SETTINGS
from jaxllama.serve.model_choice import Uses
from jaxllama.serve.origin import check_origin
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService

PIECE = 256 << 10  # bytes of an upload to read at a time
LONGEST_FIELD = 1024  # bytes of a form field beside the file
MOST_PARTS = 16  # of a form


class FileList(msgspec.Struct):
    """Response with a part of the files."""

    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class FileDeleted(msgspec.Struct):
    """Confirmation that a file was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


UPLOAD = Endpoint(
    "POST",
    "/v1/files",
    "Keep a file of requests: a form with the fields purpose (batch) and file",
    answer=FileObject,
    uses=Uses.NOTHING,
)
FILES = Endpoint("GET", "/v1/files", "List your files", answer=FileList, uses=Uses.NOTHING)
FILE = Endpoint("GET", "/v1/files/{file}", "Describe a file", answer=FileObject, uses=Uses.NOTHING)
CONTENT = Endpoint(
    "GET", "/v1/files/{file}/content", "The content of a file", answer=str, uses=Uses.NOTHING
)
DELETE_FILE = Endpoint(
    "DELETE", "/v1/files/{file}", "Delete a file", answer=FileDeleted, uses=Uses.NOTHING
)


FILE_HANDLERS = {
    UPLOAD: "upload_file",
    FILES: "list_files",
    FILE: "describe_file",
    CONTENT: "read_file",
    DELETE_FILE: "delete_file",
}


class FileRoutes:
    """The handlers of the files in one store."""

    def __init__(self, files: FileStore, work: BatchWork) -> None:
        self._files, self._work = files, work

    @property
    def endpoints(self) -> Mapping[Endpoint, Serves]:
        """The endpoints, each with the function that answers its requests."""
        return {endpoint: getattr(self, name) for endpoint, name in FILE_HANDLERS.items()}

    async def upload_file(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer POST /v1/files: store the uploaded file, and return its description."""
        del service
        check_origin(request)
        if request.content_type != "multipart/form-data":
            raise HttpError(
                f"content type is {request.content_type[:100]!r}; expected multipart/form-data",
                415,
                "unsupported_media_type",
            )
        if (request.content_length or 0) > self._files.largest + (64 << 10):
            raise HttpError("the file is too large", 413, "file_too_large")
        await asyncio.to_thread(self._files.check_room, request.content_length or 0)
        await send_continue(request)
        try:
            return one_json(await self._read_form(request))
        except ValueError as error:  # of aiohttp, for a form that is none
            raise InvalidParameter(f"the form cannot be read: {error}") from error

    async def _read_form(self, request: web.Request) -> FileObject:
        """Read the request's multipart form, store its file, and return the file's description.

        The fields may come in any order. Raises InvalidParameter for a wrong form.
        """
        seconds = request.app[SETTINGS].body_seconds
        form = await request.multipart()
        fields: dict[str, str] = {}
        with self._files.receive(owner_of(request[CALLER])) as upload:
            for _ in range(MOST_PARTS):
                async with asyncio.timeout(seconds):
                    part = await form.next()
                if part is None:
                    break
                if not isinstance(part, BodyPartReader):
                    raise InvalidParameter("the form has a form inside; expected fields")
                if part.name == "file":
                    upload.name = part.filename or "file"
                    await receive(part, upload, seconds)
                    fields["file"] = upload.name
                else:
                    raw = await part.read_chunk(LONGEST_FIELD)
                    fields[part.name or ""] = raw.decode("utf-8", "replace")
            check_fields(fields)
            others = [name for name in fields if name not in ("file", "purpose")]
            if others and request.app[SETTINGS].strict:
                raise InvalidParameter(f"{others[0][:100]} is not supported", others[0][:100])
            note_ignored(request, others)
            return await asyncio.to_thread(upload.keep)

    async def list_files(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer GET /v1/files with a page of the caller's files."""
        del service
        page = read_page(request, most=10_000, usual=10_000)
        found = await asyncio.to_thread(self._files.all, owner_of(request[CALLER]))
        chosen = [file for file in found if page.purpose in (None, file.purpose)]
        files, has_more = page.cut(chosen)
        first, last = (files[0].id, files[-1].id) if files else (None, None)
        return one_json(FileList(files, first, last, has_more))

    async def describe_file(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer GET /v1/files/{file} with the description of a file."""
        del service
        return one_json(self._asked(request))

    async def read_file(
        self, request: web.Request, service: GenerationService
    ) -> web.StreamResponse:
        """Answer GET /v1/files/{file}/content with the content of a file."""
        del service
        path = self._files.content(self._asked(request).id)
        headers = {"Content-Type": "application/octet-stream", "Cache-Control": "no-store"}
        return web.FileResponse(path, headers=headers)

    async def delete_file(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer DELETE /v1/files/{file}: delete a file, unless it is a running batch's input."""
        del service
        file = self._asked(request)
        if self._work.is_reading(file.id):
            raise HttpError("a batch that is not over reads this file", 409, "file_in_use")
        await asyncio.to_thread(self._files.delete, file.id, owner_of(request[CALLER]))
        return one_json(FileDeleted(file.id))

    def _asked(self, request: web.Request) -> FileObject:
        return self._files.find(request.match_info["file"], owner_of(request[CALLER]))


async def receive(part: BodyPartReader, upload: Upload, seconds: float) -> None:
    """Copy a file from its part of a multipart form to `upload`, piece by piece.

    Raises TimeoutError if the next piece takes longer than `seconds` to arrive.
    """
    while True:
        async with asyncio.timeout(seconds):
            piece = await part.read_chunk(PIECE)
        if not piece:
            return
        await asyncio.to_thread(upload.write, piece)


def check_fields(fields: Mapping[str, str]) -> None:
    """Raise InvalidParameter if a form lacks `file` or `purpose`, or has a wrong `purpose`.

    `fields` maps the names of the form's fields to their values.
    """
    for name in ("purpose", "file"):
        if name not in fields:
            raise InvalidParameter(f"the form has no field {name}", name)
    if fields["purpose"] != "batch":
        raise InvalidParameter(
            f"purpose is {fields['purpose'][:100]!r}; this server keeps files for batches only: "
            f"expected batch",
            "purpose",
        )
