"""`/api/embed` and the older `/api/embeddings`: vectors of texts.

Part of the Ollama dialect. The field `model` chooses the served model or the encoder beside it.
"""

import time
from collections.abc import Sequence

import msgspec
import numpy as np
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.limits import check_count
from jaxllama.serve.answering.nested import read_options
from jaxllama.serve.answering.vectors import vectors_of_encoder, vectors_of_model
from jaxllama.serve.dialects.ollama.shapes import (
    LOADING_OPTIONS,
    NANOSECONDS,
    OllamaBody,
    apply_keep_alive,
    check_name,
)
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService
from jaxllama.service.served_models import LATEST


class EmbedBody(OllamaBody, kw_only=True):
    """Request: texts to embed."""

    input: str | list[str] | None = None
    truncate: bool | None = None  # None: true
    dimensions: int | None = None


class EmbedAnswer(msgspec.Struct):
    """The vectors of all texts."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OldEmbedBody(OllamaBody, kw_only=True):
    """Request: one text to embed."""

    prompt: str


class OldEmbedAnswer(msgspec.Struct):
    """The vector of a text."""

    embedding: list[float]


EMBED = Endpoint(
    "POST",
    "/api/embed",
    "Turn texts into vectors, in Ollama's form",
    body=EmbedBody,
    answer=EmbedAnswer,
    takes_encoder=True,
    any_type=True,
)
OLD_EMBED = Endpoint(
    "POST",
    "/api/embeddings",
    "Turn a text into a vector, in Ollama's older form",
    body=OldEmbedBody,
    answer=OldEmbedAnswer,
    takes_encoder=True,
    any_type=True,
)


async def embed(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /api/embed with the vector of each text."""
    body, _ = await EMBED.read(request, service, EmbedBody)
    apply_keep_alive(request, body.keep_alive)
    began = time.monotonic()
    texts = [body.input] if isinstance(body.input, str) else body.input or []
    vectors, tokens = await vectors_of(
        request,
        service,
        body,
        texts,
        truncate=body.truncate is not False,
        dimensions=body.dimensions,
    )
    nanoseconds = round((time.monotonic() - began) * NANOSECONDS)
    return one_json(EmbedAnswer(body.model, as_lists(vectors), nanoseconds, 0, tokens))


async def embed_one(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /api/embeddings with the vector of one text."""
    body, _ = await OLD_EMBED.read(request, service, OldEmbedBody)
    apply_keep_alive(request, body.keep_alive)
    vectors, _ = await vectors_of(request, service, body, [body.prompt], truncate=True)
    return one_json(OldEmbedAnswer(as_lists(vectors)[0]))


async def vectors_of(
    request: web.Request,
    service: GenerationService,
    body: OllamaBody,
    texts: Sequence[str],
    *,
    truncate: bool,
    dimensions: int | None = None,
) -> tuple[Sequence[np.ndarray], int]:
    """Return the embedding vector of each text, and the number of tokens in all texts.

    The model or encoder that `body` names computes the vectors. `truncate`: cut texts that are too
    long, instead of refusing them. `dimensions` is the length of the vectors, which only an
    encoder can shorten; None: full length.
    """
    read_options(request, body.options or {}, (), unheeded=LOADING_OPTIONS)
    check_count("inputs", len(texts))
    model, caller = service.model, request[CALLER]
    name = body.model.removesuffix(LATEST)
    is_encoder = model.encoder is not None and name in model.encoder.names
    if not is_encoder:
        check_name(body.model, model)
        if dimensions is not None:
            raise InvalidParameter(
                "dimensions is not supported: vectors of this model cannot be cut short",
                "dimensions",
            )
    if not texts:
        return [], 0
    if model.encoder is not None and is_encoder:
        return await vectors_of_encoder(
            texts, model.encoder, service, caller, truncate=truncate, dimensions=dimensions
        )
    return await vectors_of_model(texts, service, caller, truncate=truncate)


def as_lists(vectors: Sequence[np.ndarray]) -> list[list[float]]:
    """Convert vectors to lists of numbers."""
    return [vector.tolist() for vector in vectors]
