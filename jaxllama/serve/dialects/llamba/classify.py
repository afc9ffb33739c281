"""`/classify` of LLaMbA's API: choose one of several responses to a question about a text.

The path is ours as well: a body with `validResponses` is LLaMbA's. The options are numbered from 1,
and the answer is the number of the likeliest; a client that accepts JSON gets all probabilities.
"""

from typing import ClassVar

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.messages import Ending
from jaxllama.scoring import probabilities
from jaxllama.serve.answering.scores import Prefix, score_texts
from jaxllama.serve.endpoints import Endpoint, RequestShape
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService


class LlambaClassificationQuery(RequestShape, kw_only=True):
    """A text, a question about it, and the responses to choose from."""

    prompt: str
    question: str
    valid_responses: list[str] = msgspec.field(name="validResponses")

    told_by: ClassVar[str] = "validResponses"


class LlambaClassification(msgspec.Struct):
    """The chosen response with its number, and the probability of each."""

    label: int
    response: str
    probabilities: list[float]


CLASSIFY = Endpoint(
    "POST",
    "/classify",
    "Choose one of validResponses, in LLaMbA's form",
    body=LlambaClassificationQuery,
    answer=str,
)


async def classify(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /classify with the likeliest response's number, or with JSON on request."""
    body, _ = await CLASSIFY.read(request, service, LlambaClassificationQuery)
    count = len(body.valid_responses)
    if not count:
        raise InvalidParameter(
            "validResponses is empty; expected the responses to choose from", "validResponses"
        )
    # With the full stop, "1." is no beginning of "10.".
    labels = [f"{number}." for number in range(1, count + 1)]
    prefix = Prefix(messages=conversation_of(body), ending=Ending.LAST)
    scores = await score_texts(prefix, labels, "validResponses", service, request[CALLER])
    shares = probabilities(scores, length_normalize=False)
    best = max(range(count), key=shares.__getitem__)
    if "application/json" in request.headers.get("Accept", ""):
        return one_json(LlambaClassification(best + 1, body.valid_responses[best], shares))
    return web.Response(text=f"{best + 1}\n")


def conversation_of(body: LlambaClassificationQuery) -> list[dict[str, str]]:
    """Return the conversation that asks for the right option's number.

    Its last message, the assistant's, stops just before the number.
    """
    options = "\n".join(f"{number}. {text}" for number, text in enumerate(body.valid_responses, 1))
    task = (
        "Read the text above and answer the question about it with exactly one of the given "
        f"options.\n\nQuestion: {body.question}"
    )
    begun = (
        f"The question is: {body.question}\nThe options are:\n{options}\n"
        f"According to the text, the right one is option #"
    )
    return [
        {"role": "system", "content": body.prompt},
        {"role": "user", "content": task},
        {"role": "assistant", "content": begun},
    ]
