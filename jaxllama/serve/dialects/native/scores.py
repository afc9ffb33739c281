"""`/score` and `/classify`: log-probabilities of given texts, without generating.

Both compute how likely texts are after a prompt; a classification converts the scores of its labels
to probabilities.
"""

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.scoring import (
    probabilities,
)
from jaxllama.serve.answering.models import ModelBody, check_adapted
from jaxllama.serve.answering.scores import Prefix, score_texts
from jaxllama.serve.answering.turns import Turn, as_turn
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService


class ScoreBody(ModelBody):
    """A prompt or a conversation, and continuations to score: texts or lists of token ids."""

    continuations: list[str | list[int]]
    prompt: str | list[int] | None = None
    messages: list[Turn] | None = None
    format: str | None = None  # name of an installed prompt format, for messages


class Scored(msgspec.Struct):
    """Log-probabilities (natural logarithms) of one continuation."""

    logprob: float
    token_logprobs: list[float]
    tokens: list[int]


class Scores(msgspec.Struct):
    """Scores of all continuations, in the order of the request."""

    model: str
    scores: list[Scored]


class ClassifyBody(ModelBody):
    """A prompt or a conversation, and labels to choose from."""

    labels: list[str]
    prompt: str | list[int] | None = None
    messages: list[Turn] | None = None
    format: str | None = None  # name of an installed prompt format, for messages
    length_normalize: bool = False


class Labelled(msgspec.Struct):
    """Probability of one label."""

    label: str
    probability: float
    logprob: float


class Classified(msgspec.Struct):
    """The most likely label, and all labels in the order of the request."""

    model: str
    label: str
    labels: list[Labelled]


SCORE = Endpoint(
    "POST", "/score", "Compute how likely texts are after a prompt", body=ScoreBody, answer=Scores
)
CLASSIFY = Endpoint(
    "POST",
    "/classify",
    "Choose the most likely label after a prompt",
    body=ClassifyBody,
    answer=Classified,
)


async def score(request: web.Request, service: GenerationService) -> web.Response:
    """Answer with the score of each continuation."""
    body, _ = await SCORE.read(request, service, ScoreBody)
    knobs: dict[str, str] = {}
    name = check_adapted(body.model, service.model, knobs)
    caller = request[CALLER]
    prefix = prefix_of(body, knobs.get("lora"))
    scores = await score_texts(prefix, body.continuations, "continuations", service, caller)
    found = [Scored(one.logprob, list(one.token_logprobs), list(one.tokens)) for one in scores]
    return one_json(Scores(name, found))


async def classify(request: web.Request, service: GenerationService) -> web.Response:
    """Answer with the most likely label and the probabilities of all."""
    body, _ = await CLASSIFY.read(request, service, ClassifyBody)
    knobs: dict[str, str] = {}
    name = check_adapted(body.model, service.model, knobs)
    if len(set(body.labels)) < len(body.labels):
        raise InvalidParameter("labels has the same label twice; name each once", "labels")
    prefix = prefix_of(body, knobs.get("lora"))
    scores = await score_texts(prefix, body.labels, "labels", service, request[CALLER])
    shares = probabilities(scores, length_normalize=body.length_normalize)
    found = [
        Labelled(label, share, one.logprob)
        for label, share, one in zip(body.labels, shares, scores, strict=True)
    ]
    best = max(found, key=lambda one: one.probability)
    return one_json(Classified(name, best.label, found))


def prefix_of(body: ScoreBody | ClassifyBody, lora: str | None) -> Prefix:
    """Return the prompt or the conversation of a body, for an adapter if one is named."""
    turns = None if body.messages is None else [as_turn(turn) for turn in body.messages]
    return Prefix(body.prompt, turns, lora=lora, format=body.format)
