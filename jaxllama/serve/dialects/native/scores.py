"""`/score` and `/classify`: log-probabilities of given texts, without generating.

Both compute how likely texts are after a prompt; a classification converts the scores of its labels
to probabilities.
"""

from collections.abc import Sequence
from functools import partial

import msgspec
from aiohttp import web

from jaxllama.completion import Score
from jaxllama.errors import InvalidParameter
from jaxllama.intake import Prompt
from jaxllama.scoring import (
    as_score,
    continuations,
    probabilities,
    rounds,
    tokens_to_weigh,
    weigh,
)
from jaxllama.serve.dialects.openai.chat import as_turn
from jaxllama.serve.dialects.openai.chat_shapes import Turn
from jaxllama.serve.dialects.openai.shapes import ModelBody, check_model
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import Caller, GenerationService, Model, Question
from jaxllama.service.asking import estimate_characters


class ScoreBody(ModelBody):
    """A prompt or a conversation, and continuations to score: texts or lists of token ids."""

    continuations: list[str | list[int]]
    prompt: str | list[int] | None = None
    messages: list[Turn] | None = None


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
    name = check_model(body.model, service.model)
    caller = request[CALLER]
    scores = await score_texts(body, body.continuations, "continuations", service, caller)
    found = [Scored(one.logprob, list(one.token_logprobs), list(one.tokens)) for one in scores]
    return one_json(Scores(name, found))


async def classify(request: web.Request, service: GenerationService) -> web.Response:
    """Answer with the most likely label and the probabilities of all."""
    body, _ = await CLASSIFY.read(request, service, ClassifyBody)
    name = check_model(body.model, service.model)
    if len(set(body.labels)) < len(body.labels):
        raise InvalidParameter("labels has the same label twice; name each once", "labels")
    scores = await score_texts(body, body.labels, "labels", service, request[CALLER])
    shares = probabilities(scores, length_normalize=body.length_normalize)
    found = [
        Labelled(label, share, one.logprob)
        for label, share, one in zip(body.labels, shares, scores, strict=True)
    ]
    best = max(found, key=lambda one: one.probability)
    return one_json(Classified(name, best.label, found))


async def score_texts(
    body: ScoreBody | ClassifyBody,
    texts: Sequence[Prompt],
    name: str,
    service: GenerationService,
    caller: Caller,
) -> list[Score]:
    """Score each text after the prompt; the prompt is computed once. `name` is for errors."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidParameter("expected either prompt or messages", "prompt")
    if not texts:
        raise InvalidParameter(f"{name} is empty; expected at least one text", name)

    def read(model: Model) -> tuple[list[int], list[list[int]]]:
        intake = model.intake
        is_chat = body.messages is not None
        ids = intake.chat_ids(turns) if is_chat else intake.ids(body.prompt or "")
        return ids, continuations(intake, ids, texts, name)

    turns = [as_turn(turn) for turn in body.messages or ()]
    size = estimate_characters([body.prompt, turns, texts])
    ids, tails = await service.off_loop(read, caller, size=size)
    total = sum(map(len, tails)) + len(ids)
    if total > service.bounds.request_tokens:
        raise InvalidParameter(
            f"prompt and {name} have {total} tokens; this server allows "
            f"{service.bounds.request_tokens} for one request",
            name,
        )
    parts = rounds(tails)
    questions = []
    for part in parts:
        now = [tails[index] for index in part]
        begin = partial(weigh, prompts=[ids] * len(now), tails=now)
        questions.append(Question(begin, tokens_to_weigh(ids, now)))
    found: dict[int, Score] = {}
    for part, answer in zip(parts, await service.ask_engine(questions, caller), strict=True):
        for index, logprobs in zip(part, answer, strict=True):
            found[index] = as_score(logprobs, tails[index])
    return [found[index] for index in range(len(tails))]
