"""`/v1/completions`: texts or token ids in, what follows them out.

One file of the OpenAI dialect. `echo` puts the prompt before each answer, and its log-probabilities
before the answer's; with `max_tokens` 0 nothing is generated, which is how texts are scored.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from jaxllama.errors import InvalidParameter
from jaxllama.explain import Position
from jaxllama.intake import Prompt
from jaxllama.limits import LIMITS, check_count
from jaxllama.request import Event, Finished, Usage
from jaxllama.serve.dialects.openai import shapes
from jaxllama.serve.dialects.openai.constraints import ResponseFormat, held_to
from jaxllama.serve.dialects.openai.echo import Echo, echoes_of
from jaxllama.serve.dialects.openai.logprobs import OldLogprobs, OldStyle
from jaxllama.serve.dialects.openai.shapes import (
    Common,
    Details,
    Prompts,
    StreamOptions,
    TokenUsage,
    check_model,
)
from jaxllama.serve.dialects.openai.telling import ready_to_explain, tell
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import Ask, GenerationService, Model
from jaxllama.service.answers import Answers


class CompletionBody(Common, kw_only=True):
    """Prompts, and how to go on."""

    prompt: Prompts
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    explain: bool | None = None  # say what each sampler did to each token
    response_format: ResponseFormat | None = None
    suffix: str | None = None
    use_beam_search: bool | None = None

    unsupported: ClassVar[Mapping[str, str]] = {
        "suffix": "this model was not trained to fill gaps",
        "use_beam_search": "ask for best_of; beams are for Python and the command line",
    }


class Choice(msgspec.Struct):
    """One answer, or what is new of it."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: OldLogprobs | None = None


class Completion(msgspec.Struct):
    """All answers."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: TokenUsage
    object: Literal["text_completion"] = "text_completion"
    explanation: list[Position] | UnsetType = UNSET


class CompletionChunk(msgspec.Struct):
    """One event of a stream."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: TokenUsage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


COMPLETIONS = Endpoint(
    "POST",
    "/v1/completions",
    "Continue texts",
    body=CompletionBody,
    answer=Completion,
    events=(CompletionChunk,),
    takes_knobs=True,
    bounds={"max_tokens": replace(LIMITS["max_tokens"], low=0)},
)


async def complete(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Continue texts."""
    body, knobs = await COMPLETIONS.read(request, service, CompletionBody)
    model = service.model
    check_model(body.model, model.name)
    check_options(body, knobs)
    held = held_to(body.response_format)
    knobs = held.beside(knobs)
    prompts = as_prompts(body.prompt)
    if body.explain:
        count = (body.best_of or body.n or 1) * len(prompts)
        knobs = ready_to_explain(knobs, stream=body.stream, answers=count)
    echoes = await echoes_of(prompts, knobs, service, request[CALLER]) if body.echo else []
    style = Style(body, model, echoes, tells=knobs.get("logprobs") is not None)
    if knobs.get("max_tokens") == 0:
        form = CompletionForm(style, request[CALLER].id, len(prompts))
        return one_json(form.whole())
    if style.spare and not style.tells:
        knobs["logprobs"] = 0  # the best is found by them

    def make(answers: Answers) -> CompletionForm:
        return CompletionForm(style, answers.id, len(answers.requests))

    ask = Ask(prompts=prompts, knobs=knobs, n=style.asked, names=held.names)
    return await tell(request, service, ask, make, stream=body.stream, explain=body.explain)


def check_options(body: CompletionBody, knobs: Mapping[str, object]) -> None:
    """Refuse combinations that mean nothing."""
    wanted = body.n or 1
    if body.stream_options is not None and not body.stream:
        raise InvalidParameter("stream_options needs stream to be true", "stream_options")
    if body.best_of is not None and body.best_of < wanted:
        raise InvalidParameter(
            f"best_of is {body.best_of}; it must be at least n, {wanted}", "best_of"
        )
    if body.best_of is not None and body.best_of > wanted and body.stream:
        raise InvalidParameter(
            "best_of cannot stream: which answer is best is known at the end", "best_of"
        )
    if knobs.get("max_tokens") == 0 and knobs.get("negative_prompt") is not None:
        raise InvalidParameter(
            "negative_prompt moves answers, and max_tokens is 0: nothing is generated; texts are "
            "scored without it",
            "negative_prompt",
        )
    if knobs.get("max_tokens") == 0 and (not body.echo or body.stream or wanted > 1):
        raise InvalidParameter(
            "max_tokens is 0; that needs echo, and neither stream nor n: nothing is generated",
            "max_tokens",
        )


def as_prompts(prompt: Prompts, name: str = "prompt", limit: str = "prompts") -> list[Prompt]:
    """The prompts of a request: one text or list of ids, or several."""
    if isinstance(prompt, str):
        return [prompt]
    texts = [each for each in prompt if isinstance(each, str)]
    lists = [each for each in prompt if isinstance(each, list)]
    ids = [each for each in prompt if isinstance(each, int)]
    if ids and len(ids) == len(prompt):
        return [ids]
    if not prompt or len(prompt) not in (len(texts), len(lists)):
        raise InvalidParameter(
            f"{name} is an empty or a mixed list; expected texts, token ids, or lists of token ids",
            name,
        )
    check_count(limit, len(prompt))
    return [*texts, *lists]


class Style:
    """What is common to all answers of a request."""

    def __init__(
        self, body: CompletionBody, model: Model, echoes: Sequence[Echo], *, tells: bool
    ) -> None:
        self.model, self.echoes, self.tells = model, echoes, tells
        self.wanted = body.n or 1  # of each prompt
        self.asked = body.best_of or self.wanted
        options = body.stream_options
        self.counts = bool(options and options.include_usage)

    @property
    def spare(self) -> int:
        """Answers to each prompt that will not be told."""
        return self.asked - self.wanted

    def echo(self, index: int) -> Echo | None:
        """What is told before an answer."""
        return self.echoes[index // self.asked] if self.echoes else None


class CompletionForm:
    """The answers to prompts, as texts."""

    says_done = True

    def __init__(self, style: Style, id_: str, count: int) -> None:
        self._id, self._style = f"cmpl-{id_}", style
        self._created = int(time.time())
        self._writers = [Writer(style, index) for index in range(count)]

    def begin(self) -> Iterator[CompletionChunk]:
        """The prompts, if they are told back."""
        for index in range(len(self._writers)):
            echo = self._style.echo(index)
            if echo is not None:
                yield self._chunk(Choice(index, echo.text, logprobs=echo.logprobs))

    def take(self, index: int, event: Event) -> Iterator[CompletionChunk]:
        """What is new of one answer."""
        found = self._writers[index].hear(event)
        if event.text or found is not None:
            yield self._chunk(Choice(index, event.text, logprobs=found))
        if isinstance(event, Finished):
            yield self._chunk(Choice(index, "", shapes.ending_of(event.reason)))

    def end(self) -> Iterator[CompletionChunk]:
        """What it cost, if that was asked."""
        if self._style.counts:
            name = self._style.model.name
            yield CompletionChunk(self._id, self._created, name, [], usage=self._usage())

    def whole(self) -> Completion:
        """The best answers to each prompt, in order."""
        style, told = self._style, []
        for first in range(0, len(self._writers), style.asked):
            group = self._writers[first : first + style.asked]
            if style.spare:
                group.sort(key=Writer.worth, reverse=True)
            told += group[: style.wanted]
        choices = [
            Choice(index, writer.text, writer.ending, writer.logprobs if style.tells else None)
            for index, writer in enumerate(told)
        ]
        return Completion(self._id, self._created, style.model.name, choices, self._usage())

    def _usage(self) -> TokenUsage:
        usages = [writer.usage for writer in self._writers]
        if any(usages):
            return shapes.sum_up(usages, self._style.asked)
        prompt = sum(len(echo.ids) for echo in self._style.echoes)
        return TokenUsage(prompt, 0, prompt, Details(0))

    def _chunk(self, choice: Choice) -> CompletionChunk:
        usage = None if self._style.counts else UNSET
        name = self._style.model.name
        return CompletionChunk(self._id, self._created, name, [choice], usage=usage)


class Writer:
    """One answer, as it comes."""

    def __init__(self, style: Style, index: int) -> None:
        echo = style.echo(index)
        self.usage: Usage | None = None
        self.ending: Literal["stop", "length"] = "length"
        self.logprobs = OldLogprobs()
        if echo is not None and echo.logprobs is not None:
            self.logprobs.extend(echo.logprobs)
        self._texts = [echo.text] if echo else []
        self._old_style = OldStyle(style.model.intake.tokenizer, sum(map(len, self._texts)))
        self._tells = style.tells
        self._values: list[float] = []

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._texts)

    def hear(self, event: Event) -> OldLogprobs | None:
        """Keep what is new; its log-probabilities, if they are told."""
        self._texts.append(event.text)
        if isinstance(event, Finished):
            self.usage, self.ending = event.usage, shapes.ending_of(event.reason)
            return None
        if event.logprobs is None:
            return None
        self._values.append(event.logprobs.logprob)
        if not self._tells:
            return None
        found = OldLogprobs()
        self._old_style.add(found, event.token, event.logprobs)
        self.logprobs.extend(found)
        return found

    def worth(self) -> float:
        """How likely the model finds it, per token."""
        return sum(self._values) / max(len(self._values), 1)
