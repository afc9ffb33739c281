"""`/basilisk/infer`: the continuation of a prompt, with its tokens and the reason of its end."""

from typing import Any

import msgspec
from aiohttp import web

from jaxllama.errors import HttpError, InvalidParameter, PromptTooLong
from jaxllama.request import Event, Finished, FinishReason, Token
from jaxllama.serve.answering.defaults import with_defaults
from jaxllama.serve.dialects.basilisk.encoding import encode, fragments_of
from jaxllama.serve.dialects.basilisk.options import BasiliskDefaults
from jaxllama.serve.endpoints import Endpoint, RequestShape
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import Ask, GenerationService, Model

REASONS = {FinishReason.LENGTH: 0, FinishReason.END_TOKEN: 1, FinishReason.STOP_STRING: 2}
# Our knob -> the field of a request, for errors.
NAMES = {
    "max_tokens": "max_new_tokens",
    "stop": "stopping_strings",
    "repetition_window": "repetition_penalty_sustain",
    "repetition_decay": "repetition_penalty_decay",
}


class BasiliskInferBody(RequestShape, kw_only=True):
    """Request: a prompt, and how to continue it.

    The penalty of repetitions has two names each: those of basilisk's README and of its code.
    """

    prompt: str
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    token_repetition_penalty_max: float | None = None
    token_repetition_penalty_sustain: int | None = None
    token_repetition_penalty_decay: int | None = None
    repetition_penalty: float | None = None
    repetition_penalty_sustain: int | None = None
    repetition_penalty_decay: int | None = None
    positional_repetition_penalty: float | None = None
    positional_repeat_inhibit: list[list[int]] | None = None
    min_length: int | None = None
    max_new_tokens: int | None = None
    stopping_strings: list[str] | None = None
    special_convert: bool = False
    seed: int | None = None  # ours


class BasiliskAnswer(msgspec.Struct):
    """The answer: its text, its tokens with the text of each, and why it ended.

    `stop_reason` is 0 for a limit, 1 for an end token and 2 for a stopping string.
    """

    text: str
    tokens: list[int]
    fragments: list[str]
    stop_reason: int


INFER = Endpoint(
    "POST",
    "/basilisk/infer",
    "Continue a prompt, in basilisk's form",
    body=BasiliskInferBody,
    answer=BasiliskAnswer,
    any_type=True,
)


class BasiliskInferring:
    """The handler of /basilisk/infer, with the operator's defaults."""

    def __init__(self, defaults: BasiliskDefaults) -> None:
        self._defaults = msgspec.structs.asdict(defaults)

    async def infer(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer POST /basilisk/infer with the continuation of a prompt, in one piece."""
        body, _ = await INFER.read(request, service, BasiliskInferBody)
        prompt = body.prompt.strip()
        ids = await service.off_loop(
            lambda model: encode(model, prompt, special_convert=body.special_convert),
            request[CALLER],
            size=len(prompt),
        )
        if not ids:
            raise InvalidParameter("prompt is empty; expected text", "prompt")
        ask = Ask(prompts=[ids], knobs=self._knobs(body, service.model), names=NAMES)
        try:
            async with service.open(ask, request[CALLER]) as answers:
                events = [event async for _, event in answers]
                found = await service.off_loop(
                    lambda model: answer_of(model, events), request[CALLER]
                )
        except PromptTooLong as error:
            context = service.model.engine.config.context
            raise HttpError(
                f"prompt length and generation limit must be less than {context}: {error}",
                400,
                PromptTooLong.code,
            ) from error
        return one_json(found)

    def _knobs(self, body: BasiliskInferBody, model: Model) -> dict[str, Any]:
        """Return the sampling knobs of a request; those not given have the operator's defaults."""
        own = self._defaults
        penalty = one_of(body, "token_repetition_penalty_max", "repetition_penalty")
        sustain = one_of(body, "token_repetition_penalty_sustain", "repetition_penalty_sustain")
        decay = one_of(body, "token_repetition_penalty_decay", "repetition_penalty_decay")
        given: dict[str, Any] = {
            "temperature": body.temperature,
            "top_k": body.top_k,
            "top_p": body.top_p,
            "min_p": body.min_p,
            "repetition_penalty": penalty,
            "repetition_window": sustain,
            "repetition_decay": decay,
            "positional_repetition_penalty": body.positional_repetition_penalty,
            "positional_repeat_inhibit": body.positional_repeat_inhibit,
            "min_length": body.min_length,
            "max_tokens": body.max_new_tokens,
            "stop": body.stopping_strings,
            "seed": body.seed,
        }
        defaults: dict[str, Any] = {
            "temperature": own["temperature"],
            "top_k": own["top_k"],
            "top_p": own["top_p"],
            "min_p": own["min_p"],
            "repetition_penalty": own["repetition_penalty"],
            "repetition_window": own["repetition_penalty_sustain"],
            "repetition_decay": own["repetition_penalty_decay"],
            "positional_repetition_penalty": own["positional_repetition_penalty"],
            "min_length": own["min_length"],
            "max_tokens": own["max_new_tokens"],
            "stop": ["\n"],
            "top_p_strict": True,  # the token that crosses top_p is dropped
            "repetition_sign_blind": True,
        }
        return mended(with_defaults(model, given, defaults))


def mended(knobs: dict[str, Any]) -> dict[str, Any]:
    """Replace values by which basilisk's clients switch a knob off; change and return `knobs`.

    A positional penalty of 0 is removed, top_p 0 becomes top_k 1, and min_length is limited to
    max_tokens.
    """
    if knobs.get("positional_repetition_penalty") == 0:  # a client's default; off
        del knobs["positional_repetition_penalty"]
    if knobs.get("top_p") == 0:  # only the likeliest token is left
        knobs |= {"top_p": 1.0, "top_k": 1}
    if "max_tokens" in knobs and "min_length" in knobs:
        most = knobs["max_tokens"]
        if isinstance(most, int) and isinstance(knobs["min_length"], int):
            knobs["min_length"] = min(knobs["min_length"], most)
    return knobs


def one_of(body: BasiliskInferBody, documented: str, coded: str) -> Any:
    """Return the value of a field that has two names; None if neither is given.

    `documented` and `coded` are the names in basilisk's documentation and in its code. Raises
    InvalidParameter if both are given and differ.
    """
    first, second = getattr(body, documented), getattr(body, coded)
    if first is not None and second is not None and first != second:
        raise InvalidParameter(
            f"{documented} is {first} and {coded} is {second}; they mean the same: send one",
            documented,
        )
    return first if first is not None else second


def answer_of(model: Model, events: list[Event]) -> BasiliskAnswer:
    """Build the whole answer from the events of a generation."""
    ids = [event.token for event in events if isinstance(event, Token)]
    end = events[-1]
    reason = REASONS.get(end.reason, -1) if isinstance(end, Finished) else -1
    text = "".join(event.text for event in events)
    return BasiliskAnswer(text, ids, fragments_of(model.intake.tokenizer, ids), reason)
