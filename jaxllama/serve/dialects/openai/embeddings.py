"""`/v1/embeddings`: converts texts or token ids to one vector each, of length (norm) 1."""

import base64
from typing import ClassVar, Literal

import msgspec
import numpy as np
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.intake import Prompt
from jaxllama.scoring import Pooling, as_embedding
from jaxllama.serve.dialects.openai.completions import as_prompts
from jaxllama.serve.dialects.openai.shapes import Common, PromptField, check_model
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService, Model, Question
from jaxllama.service.asking import estimate_characters


class EmbeddingBody(Common, kw_only=True):
    """Request: texts, and options for their vectors."""

    input: PromptField
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["mean", "last"] | None = None
    dimensions: int | None = None

    unsupported: ClassVar[dict[str, str]] = {
        "dimensions": "vectors of this model cannot be cut short"
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
)


async def embed(request: web.Request, service: GenerationService) -> web.Response:
    """Answer with the vector of each text."""
    body, _ = await EMBEDDINGS.read(request, service, EmbeddingBody)
    name = check_model(body.model, service.model)
    texts = as_prompts(body.input, "input", "inputs")
    all_ids = await service.off_loop(
        lambda model: [encode_input(model, text) for text in texts],
        request[CALLER],
        size=estimate_characters(texts),
    )
    total = sum(map(len, all_ids))
    if total > service.bounds.request_tokens:
        raise InvalidParameter(
            f"input has {total} tokens; this server allows {service.bounds.request_tokens} for "
            f"one request",
            "input",
        )
    pooling = Pooling(body.pooling or Pooling.MEAN)
    questions = [embedding_question(ids) for ids in all_ids]
    found = [
        EmbeddingVector(index, encode_vector(as_embedding(pooled, pooling), body))
        for index, pooled in enumerate(await service.ask_engine(questions, request[CALLER]))
    ]
    usage = EmbeddingUsage(total, total)
    return one_json(EmbeddingList(name, found, usage))


def encode_input(model: Model, text: Prompt) -> list[int]:
    """Tokenize a text; raises an error if it exceeds the context."""
    ids = model.intake.ids(text)
    model.engine.config.check_length(len(ids), 0)
    return ids


def embedding_question(ids: list[int]) -> Question[tuple[np.ndarray, np.ndarray]]:
    """Build the question that asks the engine for the hidden states of one text."""
    return Question(lambda engine: engine.probes.embed(ids), len(ids))


def encode_vector(vector: np.ndarray, body: EmbeddingBody) -> list[float] | str:
    """Encode a vector in the requested `encoding_format`."""
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
