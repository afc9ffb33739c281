"""`/v1/embeddings`: converts texts or token ids to one vector each.

The field `model` chooses: the served model gives vectors of length (norm) 1 from its hidden states,
the encoder gives the vectors that it was trained for.
"""

import asyncio
import base64
from collections.abc import Sequence
from typing import ClassVar, Literal

import msgspec
import numpy as np
from aiohttp import web

from jaxllama.scoring import Pooling
from jaxllama.serve.answering.models import check_model
from jaxllama.serve.answering.prompts import PromptField, as_prompts
from jaxllama.serve.answering.vectors import vectors_of_encoder, vectors_of_model
from jaxllama.serve.dialects.openai.shapes import Common
from jaxllama.serve.endpoints import Endpoint, refuse_any
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import encode, one_json
from jaxllama.service import GenerationService


class EmbeddingBody(Common, kw_only=True):
    """Request: texts, and options for their vectors."""

    input: PromptField
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["mean", "last"] | None = None
    dimensions: int | None = None
    truncate: bool | None = None
    prompt_name: str | None = None

    # Fields that only one kind of model takes -> reason.
    encoder_only: ClassVar[dict[str, str]] = {
        "dimensions": "vectors of this model cannot be cut short",
        "truncate": "only an embedding model cuts texts",
        "prompt_name": "only an embedding model has named prompts",
    }
    model_only: ClassVar[dict[str, str]] = {
        "pooling": "an embedding model has its own way to make a vector",
    }


class EmbeddingVector(msgspec.Struct):
    """The vector of one text: numbers, or the base64 of their float32 bytes."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct):
    """Number of tokens of a request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    """Response with the vectors of all texts."""

    model: str
    data: list[EmbeddingVector]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


EMBEDDINGS = Endpoint(
    "POST",
    "/v1/embeddings",
    "Turn texts into vectors",
    body=EmbeddingBody,
    answer=EmbeddingList,
    takes_encoder=True,
)


async def embed(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /v1/embeddings with the vector of each text."""
    body, _ = await EMBEDDINGS.read(request, service, EmbeddingBody)
    served, caller = service.model.encoder, request[CALLER]
    texts = as_prompts(body.input, "input", "inputs")
    if served is not None and body.model in served.names:
        refuse_any(body, body.model_only)
        name = body.model
        vectors, total = await vectors_of_encoder(
            texts,
            served,
            service,
            caller,
            prompt_name=body.prompt_name,
            truncate=bool(body.truncate),
            dimensions=body.dimensions,
        )
    else:
        name = check_model(body.model, service.model)
        refuse_any(body, body.encoder_only)
        vectors, total = await vectors_of_model(
            texts, service, caller, pooling=Pooling(body.pooling or Pooling.MEAN)
        )
    found = await asyncio.to_thread(encode_vectors, vectors, body)
    return one_json(EmbeddingList(name, found, EmbeddingUsage(total, total)))  # type: ignore[arg-type]


def encode_vectors(vectors: Sequence[np.ndarray], body: EmbeddingBody) -> list[msgspec.Raw]:
    """Return the JSON object of each vector for the response, in the encoding that `body` asks for.

    Many vectors take long, so call it in a thread.
    """
    return [
        msgspec.Raw(encode(EmbeddingVector(index, encode_vector(vector, body))))
        for index, vector in enumerate(vectors)
    ]


def encode_vector(vector: np.ndarray, body: EmbeddingBody) -> list[float] | str:
    """Return a vector as a list of floats, or as base64 of float32 if `body` asks for it."""
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
