"""Reading instead of writing: `/score` and `/classify`.

Both ask how likely texts are after a prompt; a classification makes probabilities of that.
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
    """What could follow a prompt or a conversation: texts, or lists of token ids."""

    continuations: list[str | list[int]]
    prompt: str | list[int] | None = None
    messages: list[Turn] | None = None


class Scored(msgspec.Struct):
    """How likely the model finds one continuation: natural logarithms."""

    logprob: float
    token_logprobs: list[float]
    tokens: list[int]


class Scores(msgspec.Struct):
    """One score for each continuation, in order."""

    model: str
    scores: list[Scored]


class ClassifyBody(ModelBody):
    """Which label follows a prompt or a conversation best."""

    labels: list[str]
    prompt: str | list[int] | None = None
    messages: list[Turn] | None = None
    length_normalize: bool = False


class Labelled(msgspec.Struct):
    """How likely one label is."""

    label: str
    probability: float
    logprob: float


class Classified(msgspec.Struct):
    """The likeliest label, and all of them in order."""

    model: str
    label: str
    labels: list[Labelled]


SCORE = Endpoint("POST", "/score", "How likely texts are", body=ScoreBody, answer=Scores)
CLASSIFY = Endpoint(
    "POST", "/classify", "Which label fits best", body=ClassifyBody, answer=Classified
)


async def score(request: web.Request, service: GenerationService) -> web.Response:
    """How likely each continuation is."""
    body, _ = await SCORE.read(request, service, ScoreBody)
    name = check_model(body.model, service.model)
    caller = request[CALLER]
    scores = await score_texts(body, body.continuations, "continuations", service, caller)
    found = [Scored(one.logprob, list(one.token_logprobs), list(one.tokens)) for one in scores]
    return one_json(Scores(name, found))


async def classify(request: web.Request, service: GenerationService) -> web.Response:
    """Which label is the likeliest."""
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
    """The score of each text after the prompt, which is computed once."""
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
