"""`/v1/embeddings`: converts texts or token ids to one vector each.

The field `model` chooses: the served model gives vectors of length (norm) 1 from its hidden states,
the encoder gives the vectors that it was trained for.
"""

import asyncio
import base64
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import msgspec
import numpy as np
from aiohttp import web

from jaxllama.encoder import Encoder
from jaxllama.errors import InvalidParameter
from jaxllama.intake import Prompt
from jaxllama.scoring import Pooling, as_embedding
from jaxllama.serve.dialects.openai.completions import as_prompts
from jaxllama.serve.dialects.openai.shapes import Common, PromptField, check_model
from jaxllama.serve.endpoints import Endpoint, refuse_any
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import encode, one_json
from jaxllama.service import Caller, GenerationService, Model, Question, ServedEncoder
from jaxllama.service.asking import estimate_characters

TOKENS_AT_A_TIME = 4096  # of an encoder's question; then it is another client's turn


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
    """Answer with the vector of each text."""
    body, _ = await EMBEDDINGS.read(request, service, EmbeddingBody)
    served, caller = service.model.encoder, request[CALLER]
    if served is not None and body.model in served.names:
        refuse_any(body, body.model_only)
        name = body.model
        vectors, total = await vectors_of_encoder(body, served, service, caller)
    else:
        name = check_model(body.model, service.model)
        refuse_any(body, body.encoder_only)
        vectors, total = await vectors_of_model(body, service, caller)
    found = await asyncio.to_thread(encode_vectors, vectors, body)
    return one_json(EmbeddingList(name, found, EmbeddingUsage(total, total)))  # type: ignore[arg-type]


async def vectors_of_model(
    body: EmbeddingBody, service: GenerationService, caller: Caller
) -> tuple[Sequence[np.ndarray], int]:
    """Return vectors from the hidden states of the served model, and the tokens of all texts."""
    texts = as_prompts(body.input, "input", "inputs")
    all_ids = await service.off_loop(
        lambda model: [encode_input(model, text) for text in texts],
        caller,
        size=estimate_characters(texts),
    )
    total = count_tokens(all_ids, service)
    pooling = Pooling(body.pooling or Pooling.MEAN)
    questions = [embedding_question(ids) for ids in all_ids]
    found = await service.ask_engine(questions, caller)
    return [as_embedding(pooled, pooling) for pooled in found], total


async def vectors_of_encoder(
    body: EmbeddingBody, served: ServedEncoder, service: GenerationService, caller: Caller
) -> tuple[Sequence[np.ndarray], int]:
    """Return vectors of the encoder, and the tokens of all texts.

    The engine's thread computes them in the client's turn, many texts at a time, beside the slots.
    """
    encoder = served.encoder
    texts = as_prompts(body.input, "input", "inputs")
    to_ids = partial(encoder.ids, prompt_name=body.prompt_name, truncate=bool(body.truncate))
    all_ids = await service.off_loop(
        lambda _: [to_ids(text) for text in texts], caller, size=estimate_characters(texts)
    )
    total = count_tokens(all_ids, service)
    questions = [question_of(encoder, part) for part in parts_of(all_ids)]
    vectors = np.concatenate(await service.ask_engine(questions, caller))
    return list(encoder.finished(vectors, body.dimensions)), total


def question_of(encoder: Encoder, part: list[list[int]]) -> Question[np.ndarray]:
    """Return the question for the vectors of some texts; it needs no slot."""
    return Question(lambda _: encoder.encode_in_steps(part), sum(map(len, part)), slots=0)


def parts_of(all_ids: Sequence[list[int]]) -> list[list[list[int]]]:
    """Cut texts into runs of at most TOKENS_AT_A_TIME tokens, or one longer text."""
    parts: list[list[list[int]]] = []
    size = 0
    for ids in all_ids:
        if not parts or size + len(ids) > TOKENS_AT_A_TIME:
            parts.append([])
            size = 0
        parts[-1].append(ids)
        size += len(ids)
    return parts


def count_tokens(all_ids: Sequence[list[int]], service: GenerationService) -> int:
    """Return the tokens of all texts; raise InvalidParameter if they are too many."""
    total, most = sum(map(len, all_ids)), service.bounds.request_tokens
    if total > most:
        raise InvalidParameter(
            f"input has {total} tokens; this server allows {most} for one request", "input"
        )
    return total


def encode_input(model: Model, text: Prompt) -> list[int]:
    """Tokenize a text; raises an error if it exceeds the context."""
    ids = model.intake.ids(text)
    model.engine.config.check_length(len(ids), 0)
    return ids


def embedding_question(ids: list[int]) -> Question[tuple[np.ndarray, np.ndarray]]:
    """Build the question that asks the engine for the hidden states of one text."""
    return Question(lambda engine: engine.probes.embed(ids), len(ids))


def encode_vectors(vectors: Sequence[np.ndarray], body: EmbeddingBody) -> list[msgspec.Raw]:
    """Encode each `EmbeddingVector` as JSON; many vectors take long, so call it in a thread."""
    return [
        msgspec.Raw(encode(EmbeddingVector(index, encode_vector(vector, body))))
        for index, vector in enumerate(vectors)
    ]


def encode_vector(vector: np.ndarray, body: EmbeddingBody) -> list[float] | str:
    """Encode a vector in the requested `encoding_format`."""
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
