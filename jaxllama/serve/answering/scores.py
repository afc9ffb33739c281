"""Scores: how likely given texts are after a prompt.

Used by every dialect that scores or classifies. Knows no dialect's JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from jaxllama.completion import Score
from jaxllama.errors import InvalidParameter
from jaxllama.intake import Prompt
from jaxllama.messages import Ending, Messages
from jaxllama.request import AdapterUse
from jaxllama.scoring import (
    as_score,
    continuations,
    following,
    rounds,
    score,
    tokens_to_score,
)
from jaxllama.service import Caller, GenerationService, Model, Question
from jaxllama.service.asking import estimate_characters


@dataclass(frozen=True)
class Prefix:
    """The text that the scored texts follow: either a prompt or a conversation."""

    prompt: Prompt | None = None
    messages: Messages | None = None
    ending: Ending = Ending.ANSWER
    lora: str | None = None  # the loaded adapter that scores
    question: str | None = None  # follows the prompt
    format: str | None = None  # prompt format of the conversation; None: the model's own

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidParameter("expected either prompt or messages", "prompt")
        if self.question is not None and self.messages is not None:
            raise InvalidParameter("questions follow a prompt or texts, not messages", "questions")
        if self.format is not None and self.messages is None:
            raise InvalidParameter(
                "format is for conversations; send messages instead of prompt", "format"
            )


async def score_texts(
    prefix: Prefix,
    texts: Sequence[Prompt],
    name: str,
    service: GenerationService,
    caller: Caller,
) -> list[Score]:
    """Return how likely each text is after the prefix, in the order of `texts`.

    `prefix` holds a prompt or a conversation. `name` is the request's field of the texts, for
    errors. Raises InvalidParameter if the prefix and the texts together exceed the server's token
    limit for one request.
    """
    if not texts:
        raise InvalidParameter(f"{name} is empty; expected at least one text", name)

    def read(model: Model) -> tuple[list[int], list[list[int]], AdapterUse | None]:
        intake = model.intake
        if prefix.messages is not None:
            speaking = intake.with_format(prefix.format)
            ids = speaking.chat_ids(prefix.messages, ending=prefix.ending)
        else:
            ids = intake.ids(prefix.prompt or "")
        if prefix.question is not None:
            ids = [*ids, *following(intake, prefix.question)]
        return ids, continuations(intake, ids, texts, name), intake.adapter(prefix.lora)

    size = estimate_characters([prefix.prompt, prefix.messages, prefix.question, texts])
    ids, tails, adapter = await service.off_loop(read, caller, size=size)
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
        begin = partial(score, prompts=[ids] * len(now), tails=now, adapter=adapter)
        questions.append(Question(begin, tokens_to_score(ids, now)))
    found: dict[int, Score] = {}
    for part, answer in zip(parts, await service.ask_engine(questions, caller), strict=True):
        for index, logprobs in zip(part, answer, strict=True):
            found[index] = as_score(logprobs, tails[index])
    return [found[index] for index in range(len(tails))]
