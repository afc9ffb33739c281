"""OpenAI's API: one file for each family of endpoints; `shapes.py` has their common types."""

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from jaxllama.errors import ConfigError, JaxLlamaError
from jaxllama.serve.answering.problem import error_body
from jaxllama.serve.dialect import Dialect, DialectOptions
from jaxllama.serve.dialects.openai.batch_work import BatchWork
from jaxllama.serve.dialects.openai.batches import BatchRoutes
from jaxllama.serve.dialects.openai.chat import CHAT, chat
from jaxllama.serve.dialects.openai.completions import COMPLETIONS, complete
from jaxllama.serve.dialects.openai.embeddings import EMBEDDINGS, embed
from jaxllama.serve.dialects.openai.file_store import MIB, FileStore
from jaxllama.serve.dialects.openai.files import FileRoutes
from jaxllama.serve.dialects.openai.models import (
    DESCRIBE_MODEL,
    LIST_MODELS,
    describe_model,
    list_models,
)
from jaxllama.serve.dialects.openai.rerank import (
    RERANK,
    SCORE_PAIRS,
    rerank,
    score_texts_in_pairs,
)
from jaxllama.serve.dialects.openai.response_store import ResponseStore
from jaxllama.serve.dialects.openai.responses import RESPONSES, ResponseRoutes
from jaxllama.serve.endpoints import bind_models
from jaxllama.service.served_models import ServedModels

# The endpoints that a line of a batch may name.
IN_BATCHES = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS)

TEMPORARY_MIB = 256  # most MiB of all files in a temporary folder


class OpenAIOptions(DialectOptions, frozen=True):
    """Options of this dialect: where and how much it keeps."""

    folder: str = ""  # of files and batches; "": a temporary one, for as long as the server runs
    keep_responses: bool = False  # in the folder too, not in memory
    responses_mib: int = 64  # most MiB of stored responses
    folder_mib: int = 1024  # most MiB of all files
    file_mib: int = 100  # most MiB of one file
    batch_lines: int = 50_000  # most requests of one batch


class OpenAI(Dialect):
    """OpenAI's API: chats, completions, responses, embeddings, models and batches, below /v1."""

    name = "openai"
    options_type = OpenAIOptions
    prefixes = ("/v1",)

    def __init__(self, options: DialectOptions | None = None) -> None:
        """Make the handlers of all endpoints, with the operator's options; None: the defaults."""
        super().__init__(options)
        self._responses = ResponseStore(self.options.responses_mib * MIB)
        self.endpoints = {
            CHAT: chat,
            COMPLETIONS: complete,
            **ResponseRoutes(self._responses).endpoints,
            EMBEDDINGS: embed,
            RERANK: rerank,
            SCORE_PAIRS: score_texts_in_pairs,
            LIST_MODELS: list_models,
            DESCRIBE_MODEL: describe_model,
        }
        if self.options.keep_responses and not self.options.folder:
            raise ConfigError(
                "openai.keep_responses keeps responses in the folder for files; give openai.folder"
            )
        self._is_temporary = not self.options.folder
        most = self.options.folder_mib
        if self._is_temporary:
            self._folder, most = temporary_folder(), min(most, TEMPORARY_MIB)
        else:
            self._folder = Path(self.options.folder).expanduser()
        files = FileStore(
            self._folder / "files", most=most * MIB, largest=min(self.options.file_mib, most) * MIB
        )
        self._work = BatchWork(self._folder, files, most_lines=self.options.batch_lines)
        self.endpoints |= FileRoutes(files, self._work).endpoints
        self.endpoints |= BatchRoutes(self._work).endpoints

    def error_body(self, error: JaxLlamaError, /) -> dict[str, Any]:
        """Return the body of an error response."""
        return error_body(error)

    def routes(self, models: ServedModels, /) -> list[web.RouteDef]:
        """Return the routes of all endpoints, with handlers bound to the served models."""
        self._work.handlers = {
            endpoint.path: bind_models(endpoint, self.endpoints[endpoint], models)
            for endpoint in IN_BATCHES
        }
        return super().routes(models)

    @asynccontextmanager
    async def running(self, app: web.Application, /) -> AsyncIterator[None]:
        """Process batches (POST /v1/batches) in the background within the context.

        The context lasts as long as the server runs. The requests in a batch are answered by the
        handlers of this API; `app` is the server's application.
        """
        try:
            async with self._work.running(app, self):
                if self.options.keep_responses:
                    self._responses.open(self._folder / "responses")
                yield
        finally:
            if self._is_temporary:
                await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


def temporary_folder() -> Path:
    """Return the path of a new folder for temporary files; it does not exist yet."""
    return Path(tempfile.gettempdir()) / f"jaxllama-{secrets.token_hex(16)}"


ENDPOINTS = OpenAI().endpoints
