"""`/v1/rerank` and `/v1/score`: how well documents answer a query, by likelihood.

Part of the OpenAI dialect, in the form that Jina, Cohere and vLLM share. The score of a document is
how likely the model is to ask the query about it: the mean probability (geometric, so from 0 to 1)
of the query's tokens after the document. No model is trained for it, and none is needed.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.serve.answering.models import ModelBody, check_adapted
from jaxllama.serve.answering.scores import Prefix, score_texts
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService

INSTRUCTION = "Write a question that the following text answers."


class RerankDocument(msgspec.Struct, forbid_unknown_fields=True):
    """A text to rank."""

    text: str


class RerankBody(ModelBody, kw_only=True):
    """Request: a query, and documents to rank."""

    query: str
    documents: list[str | RerankDocument]
    top_n: int | None = None  # None: all
    return_documents: bool = True
    format: str | None = None  # name of an installed prompt format


class RankedDocument(msgspec.Struct, omit_defaults=True):
    """A document's place in the request, and its score."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankUsage(msgspec.Struct):
    """Number of scored tokens: the tokens of the query, for each document."""

    total_tokens: int


class Reranked(msgspec.Struct):
    """Response: the documents, the most relevant first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: RerankUsage


class PairScoreBody(ModelBody, kw_only=True):
    """Request: a query (or one for each document), and documents to score."""

    text_1: str | list[str]
    text_2: str | list[str]
    format: str | None = None


class PairScore(msgspec.Struct):
    """The score of one pair."""

    index: int
    score: float
    object: Literal["score"] = "score"


class PairScores(msgspec.Struct):
    """Response: the scores of all pairs, in the order of the request."""

    id: str
    model: str
    data: list[PairScore]
    usage: RerankUsage
    object: Literal["list"] = "list"


RERANK = Endpoint(
    "POST", "/v1/rerank", "Rank documents by a query", body=RerankBody, answer=Reranked
)
SCORE_PAIRS = Endpoint(
    "POST",
    "/v1/score",
    "Score how well texts answer queries",
    body=PairScoreBody,
    answer=PairScores,
)


async def rerank(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /v1/rerank with the documents, the most relevant first."""
    body, _ = await RERANK.read(request, service, RerankBody)
    knobs: dict[str, str] = {}
    name = check_adapted(body.model, service.model, knobs)
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    pairs = [(body.query, text) for text in texts]
    names = ("query", "documents")
    scores, tokens = await score_pairs(request, service, pairs, names, body.format, knobs)
    ranked = [
        RankedDocument(
            index, score, RerankDocument(texts[index]) if body.return_documents else None
        )
        for index, score in enumerate(scores)
    ]
    ranked.sort(key=lambda one: -one.relevance_score)
    results = ranked[: body.top_n]
    return one_json(Reranked(f"rerank-{request[CALLER].id}", name, results, RerankUsage(tokens)))


async def score_texts_in_pairs(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /v1/score with the score of each pair of texts."""
    body, _ = await SCORE_PAIRS.read(request, service, PairScoreBody)
    knobs: dict[str, str] = {}
    name = check_adapted(body.model, service.model, knobs)
    texts = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    queries = [body.text_1] * len(texts) if isinstance(body.text_1, str) else body.text_1
    if len(queries) == 1:
        queries = queries * len(texts)
    if len(queries) != len(texts):
        raise InvalidParameter(
            f"text_1 has {len(queries)} texts and text_2 {len(texts)}; expected one in text_1, or "
            f"as many",
            "text_1",
        )
    pairs, names = list(zip(queries, texts, strict=True)), ("text_1", "text_2")
    scores, tokens = await score_pairs(request, service, pairs, names, body.format, knobs)
    data = [PairScore(index, score) for index, score in enumerate(scores)]
    return one_json(PairScores(f"score-{request[CALLER].id}", name, data, RerankUsage(tokens)))


async def score_pairs(
    request: web.Request,
    service: GenerationService,
    pairs: Sequence[tuple[str, str]],
    names: tuple[str, str],
    format_: str | None,
    knobs: dict[str, str],
) -> tuple[list[float], int]:
    """Return the score of each (query, document) pair, and the number of tokens scored.

    A score is the geometric mean of the probabilities of the query's tokens after the document.
    `names` are the names of the request's fields for queries and documents, for errors. `format_`
    is the prompt format; None: the model's own. `knobs["lora"]`, if present, names a LoRA adapter.
    Each pair is queued by itself, so that requests of other clients can run in between.
    """
    if not pairs:
        raise InvalidParameter(f"{names[1]} is empty; expected at least one text", names[1])
    for query, _ in pairs:
        if not query.strip():
            raise InvalidParameter(f"{names[0]} is empty; expected a text", names[0])
    scores, tokens = [], 0
    for query, text in pairs:
        turns = [{"role": "user", "content": f"{INSTRUCTION}\n\n{text}"}]
        prefix = Prefix(messages=turns, lora=knobs.get("lora"), format=format_)
        (found,) = await score_texts(prefix, [query], names[0], service, request[CALLER])
        scores.append(math.exp(found.logprob / len(found.tokens)))
        tokens += len(found.tokens)
    return scores, tokens
