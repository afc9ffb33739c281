"""LLaMbA's API: chats, completions, tokens, classification and large batches.

`shapes.py` has the types, `sampling.py` its samplers as knobs, `answering.py` the answers to one
query, `batch.py` to many, `classify.py` the classification.
"""

from typing import Literal

from aiohttp import web

from jaxllama.errors import JaxLlamaError
from jaxllama.serve.dialect import Dialect, DialectOptions
from jaxllama.serve.dialects.llamba.answering import LlambaAnswering
from jaxllama.serve.dialects.llamba.batch import BATCH, LlambaBatch
from jaxllama.serve.dialects.llamba.classify import CLASSIFY, classify
from jaxllama.serve.dialects.llamba.shapes import CHAT, COMPLETION, PING, TOKENIZE
from jaxllama.service import GenerationService


class LlambaOptions(DialectOptions, frozen=True):
    """Options of this dialect: the sampler of requests that do not ask for another."""

    sampler: Literal["standard", "quick", "llama"] = "standard"


async def ping(request: web.Request, service: GenerationService) -> web.Response:
    """Answer a health check with an empty body."""
    del request, service
    return web.Response()


class Llamba(Dialect):
    """LLaMbA's API: chat and text completions, tokenizing, classification, batches."""

    name = "llamba"
    options_type = LlambaOptions
    error_type = str

    def __init__(self, options: DialectOptions | None = None) -> None:
        """Make the handlers, which use the sampler that the operator's options name."""
        super().__init__(options)
        answering = LlambaAnswering(self.options.sampler)
        self.endpoints = {
            PING: ping,
            CHAT: answering.chat,
            COMPLETION: answering.complete,
            TOKENIZE: answering.tokenize,
            BATCH: LlambaBatch(answering).answer,
            CLASSIFY: classify,
        }

    def error_body(self, error: JaxLlamaError, /) -> str:
        """Return the text of an error."""
        return f"{error}\n"
