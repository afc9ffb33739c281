"""`/score` and `/classify`: log-probabilities of given texts, without generating.

Both compute how likely texts are after a prompt; a classification converts the scores of its labels
to probabilities.
"""

from collections.abc import Sequence

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from jaxllama.errors import InvalidParameter
from jaxllama.limits import check_count
from jaxllama.scoring import (
    probabilities,
)
from jaxllama.serve.answering.models import ModelBody, check_adapted
from jaxllama.serve.answering.scores import Prefix, score_texts
from jaxllama.serve.answering.turns import Turn, as_turn
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import Caller, GenerationService


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
    """A prompt, many texts or a conversation, and labels to choose from after each question."""

    labels: list[str]
    prompt: str | list[int] | None = None
    texts: list[str] | None = None
    messages: list[Turn] | None = None
    questions: list[str] | None = None
    format: str | None = None  # name of an installed prompt format, for messages
    length_normalize: bool = False


class Labelled(msgspec.Struct):
    """Probability of one label."""

    label: str
    probability: float
    logprob: float


class ClassifiedText(msgspec.Struct):
    """The most likely label of one text after one question, and all labels."""

    text: int  # its place in the request; 0 for a prompt
    question: int  # its place in the request; 0 without questions
    label: str
    labels: list[Labelled]


class Classified(msgspec.Struct):
    """The most likely label, and all labels; with texts or questions, one result for each pair."""

    model: str
    label: str | UnsetType = UNSET
    labels: list[Labelled] | UnsetType = UNSET
    results: list[ClassifiedText] | UnsetType = UNSET


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
    """Answer POST /score with the log-probabilities of each continuation."""
    body, _ = await SCORE.read(request, service, ScoreBody)
    knobs: dict[str, str] = {}
    name = check_adapted(body.model, service.model, knobs)
    caller = request[CALLER]
    prefix = prefix_of(body, knobs.get("lora"))
    scores = await score_texts(prefix, body.continuations, "continuations", service, caller)
    found = [Scored(one.logprob, list(one.token_logprobs), list(one.tokens)) for one in scores]
    return one_json(Scores(name, found))


async def classify(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /classify with the most likely label and the probabilities of all labels."""
    body, _ = await CLASSIFY.read(request, service, ClassifyBody)
    knobs: dict[str, str] = {}
    name = check_adapted(body.model, service.model, knobs)
    if len(set(body.labels)) < len(body.labels):
        raise InvalidParameter("labels has the same label twice; name each once", "labels")
    lora = knobs.get("lora")
    if body.texts is None and body.questions is None:
        prefix = prefix_of(body, lora)
        found = await labelled(prefix, body, service, request[CALLER])
        return one_json(Classified(name, likeliest(found), found))
    texts, questions = pairs_of(body)
    results = []
    for text, prompt in enumerate(texts):
        for place, question in enumerate(questions):
            prefix = Prefix(prompt, lora=lora, question=question, format=body.format)
            found = await labelled(prefix, body, service, request[CALLER])
            results.append(ClassifiedText(text, place, likeliest(found), found))
    return one_json(Classified(name, results=results))


def pairs_of(body: ClassifyBody) -> tuple[list[str | list[int]], list[str | None]]:
    """Return the texts to classify, and the questions to ask about each of the texts.

    A single prompt counts as one text. Without questions in the body, the second list is [None].
    Raises InvalidParameter for a conversation, or if there are no texts.
    """
    if body.messages is not None:
        raise InvalidParameter("messages go without texts and questions", "messages")
    if (body.texts is None) == (body.prompt is None):
        raise InvalidParameter("expected either prompt or texts", "texts")
    texts: list[str | list[int]] = [*(body.texts or ())] if body.prompt is None else [body.prompt]
    questions: list[str | None] = [None] if body.questions is None else [*body.questions]
    for name, given in (("texts", texts), ("questions", questions)):
        if not given:
            raise InvalidParameter(f"{name} is empty; expected at least one text", name)
    check_count("queries", len(texts) * len(questions))
    return texts, questions


async def labelled(
    prefix: Prefix, body: ClassifyBody, service: GenerationService, caller: Caller
) -> list[Labelled]:
    """Return the probability of each label of the `body`, as continuation of a text.

    `prefix` is the text or conversation before the labels. The results come in the request's order.
    """
    scores = await score_texts(prefix, body.labels, "labels", service, caller)
    shares = probabilities(scores, length_normalize=body.length_normalize)
    return [
        Labelled(label, share, one.logprob)
        for label, share, one in zip(body.labels, shares, scores, strict=True)
    ]


def likeliest(found: Sequence[Labelled]) -> str:
    """Return the label with the highest probability in `found`."""
    return max(found, key=lambda one: one.probability).label


def prefix_of(body: ScoreBody | ClassifyBody, lora: str | None) -> Prefix:
    """Return the prompt or conversation of a body; `lora` is the adapter to score with, or None."""
    turns = None if body.messages is None else [as_turn(turn) for turn in body.messages]
    return Prefix(body.prompt, turns, lora=lora, format=body.format)
