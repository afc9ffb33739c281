"""RLLaMA's API: one route, whose path is an option, with a line of JSON per token.

`inference.py` answers, `pieces.py` spells tokens and distributions.
"""

import asyncio
import os
import signal
from typing import Annotated

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter, JaxLlamaError
from jaxllama.serve.dialect import Dialect, DialectOptions
from jaxllama.serve.dialects.rllama.inference import RllamaInference, endpoint_at
from jaxllama.service import GenerationService

# What RLLaMA says of a wrong field; of anything else it says that the JSON is invalid.
SENTENCES = {
    "temperature": "Temperature must be a number.",
    "top_k": "Top-k must be greater than 0.",
    "top_p": "Top-p must be a number.",
    "repetition_penalty": "Repetition penalty must be a number.",
}
INVALID = "Invalid JSON."

Count = Annotated[int, msgspec.Meta(ge=1)]


class RllamaOptions(DialectOptions, frozen=True):
    """Options of this dialect, named as RLLaMA's `--inference-server-...` and `--max-seq-len`."""

    path: str = "/rllama/v1/inference"
    max_concurrent_inferences: Count = 5
    max_seq_len: Count = 1024  # most tokens of prompt and answer together
    exit_after_one_query: bool = False


class Rllama(Dialect):
    """RLLaMA's API: POST /rllama/v1/inference, a line of JSON with a probability per token."""

    name = "rllama"
    options_type = RllamaOptions
    error_type = str

    def __init__(self, options: DialectOptions | None = None) -> None:
        """Make the endpoint at the path that `options` give; None: the default options."""
        super().__init__(options)
        endpoint = endpoint_at(self.options.path)
        self._inference = RllamaInference(endpoint, self.options.max_seq_len)
        self._places = asyncio.Semaphore(self.options.max_concurrent_inferences)
        self.endpoints = {endpoint: self.infer}

    async def infer(self, request: web.Request, service: GenerationService) -> web.StreamResponse:
        """Answer POST /rllama/v1/inference with the continuation of a prompt.

        The operator may choose another path. If the maximum number of requests is already being
        answered, waits for one to end. With the option exit_after_one_query, the server ends after
        the answer.
        """
        async with self._places:
            response = await self._inference.answer(request, service)
        if self.options.exit_after_one_query:
            loop = asyncio.get_running_loop()
            loop.call_soon(os.kill, os.getpid(), signal.SIGTERM)
        return response

    def error_body(self, error: JaxLlamaError, /) -> str:
        """Return the text of an error: RLLaMA's sentence for a wrong field, and what was wrong."""
        if not isinstance(error, InvalidParameter):
            return f"{error}\n"
        return f"{SENTENCES.get(error.field or '', INVALID)}\n{error}\n"
