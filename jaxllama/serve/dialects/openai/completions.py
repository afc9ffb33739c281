"""`/v1/completions`: generates continuations of texts or token ids.

Part of the OpenAI dialect. `echo` puts the prompt before each answer, and its log-probabilities
before the answer's; with `max_tokens` 0 nothing is generated: clients score texts this way.
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
from jaxllama.limits import LIMITS
from jaxllama.request import Event, Finished, Token, Usage
from jaxllama.serve.answering.constraints import ResponseFormat, knobs_of_request
from jaxllama.serve.answering.models import check_adapted
from jaxllama.serve.answering.prompts import PromptField, as_prompts
from jaxllama.serve.answering.stops import ClientStops, as_list
from jaxllama.serve.answering.writing import explainable_knobs, write_answer
from jaxllama.serve.dialects.openai import shapes
from jaxllama.serve.dialects.openai.beam_answers import BeamOptions, find_beams
from jaxllama.serve.dialects.openai.echo import Echo, make_echoes
from jaxllama.serve.dialects.openai.logprobs import LogprobsWriter, OldLogprobs
from jaxllama.serve.dialects.openai.shapes import (
    Common,
    Counts,
    Details,
    StreamOptions,
    TokenUsage,
    ids_of,
)
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import Ask, Caller, GenerationService, Model
from jaxllama.service.answers import Answers
from jaxllama.text.tokenizer import Tokenizer


class CompletionBody(Common, kw_only=True):
    """Request: prompts, and options for the answers."""

    prompt: PromptField
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    return_token_ids: bool | None = None  # vLLM's field: of the prompt and of each answer
    explain: bool | None = None  # report the effect of each sampler on each token
    response_format: ResponseFormat | None = None
    format: str | None = None  # make each prompt a user's message in this prompt format
    suffix: str | None = None
    use_beam_search: bool | None = None  # return the likeliest answers; best_of is the width
    beam_length: int | None = None  # ExLlama's search, which looks so many tokens ahead
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None

    unsupported: ClassVar[Mapping[str, str]] = {
        "suffix": "this model was not trained to fill gaps",
    }


class CompletionChoice(msgspec.Struct):
    """One answer of a response, or its new part in a stream."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: OldLogprobs | None = None
    stop_reason: str | int | UnsetType | None = UNSET  # given with finish_reason
    token_ids: list[int] | UnsetType = UNSET  # with the end token, if one was drawn
    prompt_token_ids: list[int] | UnsetType = UNSET  # in the first chunk of each answer
    score: float | UnsetType = UNSET  # of a beam: by which the answers are ranked


class TextCompletion(msgspec.Struct):
    """Response with all answers."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: TokenUsage
    object: Literal["text_completion"] = "text_completion"
    explanation: list[Position] | UnsetType = UNSET


class CompletionChunk(msgspec.Struct):
    """One event of a stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: TokenUsage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


COMPLETIONS = Endpoint(
    "POST",
    "/v1/completions",
    "Continue texts",
    body=CompletionBody,
    answer=TextCompletion,
    events=(CompletionChunk,),
    takes_knobs=True,
    bounds={"max_tokens": replace(LIMITS["max_tokens"], low=0)},
)


async def complete(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Answer POST /v1/completions: continuations of prompts, as one body or as a stream."""
    body, knobs = await COMPLETIONS.read(request, service, CompletionBody)
    model = service.model
    name = check_adapted(body.model, model, knobs)
    check_options(body, knobs)
    constraint = knobs_of_request(body.response_format)
    knobs = constraint.merge(knobs)
    prompts = as_prompts(body.prompt)
    asked = knobs
    if body.format is not None:
        prompts, knobs = await in_format(body.format, prompts, knobs, service, request[CALLER])
    if body.use_beam_search:
        return one_json(await search_beams(request, service, body, prompts, knobs))
    if body.explain:
        count = (body.best_of or body.n or 1) * len(prompts)
        knobs = explainable_knobs(knobs, stream=body.stream, answers=count)
    echoes = await make_echoes(prompts, knobs, service, request[CALLER]) if body.echo else []
    shows_logprobs = knobs.get("logprobs") is not None
    style = CompletionOptions(
        body, name, model.intake.tokenizer, echoes, asked, shows_logprobs=shows_logprobs
    )
    if knobs.get("max_tokens") == 0:
        form = CompletionForm(style, request[CALLER].id, [tuple(echo.ids) for echo in echoes])
        return one_json(form.whole())
    if style.spare and not style.shows_logprobs:
        knobs["logprobs"] = 0  # needed to find the best answers

    def make(answers: Answers) -> CompletionForm:
        return CompletionForm(style, answers.id, [one.prompt for one in answers.requests])

    ask = Ask(prompts=prompts, knobs=knobs, n=style.generated, names=constraint.names)
    return await write_answer(request, service, ask, make, stream=body.stream, explain=body.explain)


async def in_format(
    name: str,
    prompts: Sequence[Prompt],
    knobs: Mapping[str, object],
    service: GenerationService,
    caller: Caller,
) -> tuple[list[Prompt], dict[str, object]]:
    """Render each prompt as a user's message; return the token ids, and the changed `knobs`.

    `knobs` are the request's parameters. `name` is the prompt format, whose stop strings are added
    to the parameter `stop`. Raises InvalidParameter for prompts of token ids.
    """
    texts = [each for each in prompts if isinstance(each, str)]
    if len(texts) < len(prompts):
        raise InvalidParameter(
            "format makes a message of each prompt; token ids are none: send texts", "format"
        )
    speaking = service.model.intake.with_format(name)

    def render(model: Model) -> list[Prompt]:
        del model
        turns = [[{"role": "user", "content": text}] for text in texts]
        return [speaking.chat_ids(each) for each in turns]

    found = await service.off_loop(render, caller, size=sum(map(len, texts)))
    stops = [*as_list(knobs.get("stop")), *speaking.format.stop]
    return found, {**knobs, **({"stop": stops} if speaking.format.stop else {})}


async def search_beams(
    request: web.Request,
    service: GenerationService,
    body: CompletionBody,
    prompts: Sequence[Prompt],
    knobs: Mapping[str, object],
) -> TextCompletion:
    """Return the response with the likeliest answers to each prompt, found by beam search.

    The answers come prompt by prompt, best first. `knobs` are the request's parameters. Raises
    InvalidParameter for options of the `body` that a beam search does not have.
    """
    for name in ("stream", "echo", "explain", "format"):
        if getattr(body, name):
            raise InvalidParameter(f"{name} is not supported with use_beam_search", name)
    count = body.n or 1
    options = BeamOptions(
        body.best_of or count,
        1.0 if body.length_penalty is None else body.length_penalty,
        body.early_stopping or False,
        body.beam_length,
    )
    found = await find_beams(prompts, knobs, options, service, request[CALLER])
    tokenizer, stops = service.model.intake.tokenizer, as_list(knobs.get("stop_ids"))
    choices: list[CompletionChoice] = []
    for beams in found:
        for answer in beams.answers[:count]:
            last = answer.tokens[-1]
            is_whole = last in beams.rules.end_ids
            choice = CompletionChoice(
                len(choices),
                tokenizer.decode(answer.tokens[:-1] if is_whole else answer.tokens, start=False),
                "stop" if is_whole else "length",
                stop_reason=last if is_whole and last in stops else None,
                score=answer.score,
            )
            if body.return_token_ids:
                choice.token_ids = list(answer.tokens)
                choice.prompt_token_ids = list(beams.prompt)
            choices.append(choice)
    usage = shapes.sum_up([beams.usage for beams in found], 1)
    caller, name = request[CALLER], check_adapted(body.model, service.model, dict(knobs))
    return TextCompletion(f"cmpl-{caller.id}", int(time.time()), name, choices, usage)


def check_options(body: CompletionBody, knobs: Mapping[str, object]) -> None:
    """Raise InvalidParameter for options of a request that contradict each other.

    `knobs` are the fields of the request for the engine and the samplers.
    """
    count = body.n or 1
    ranks = ("length_penalty", "early_stopping")
    for name in (*ranks, "beam_length"):
        if getattr(body, name) is not None and not body.use_beam_search:
            raise InvalidParameter(f"{name} needs use_beam_search to be true", name)
    for name in (*ranks, "n"):
        if getattr(body, name) not in (None, 1) and body.beam_length is not None:
            raise InvalidParameter(
                f"{name} has no effect with beam_length: that search finds one answer; remove "
                f"{name} (best_of is the number of beams)",
                name,
            )
    if body.stream_options is not None and not body.stream:
        raise InvalidParameter("stream_options needs stream to be true", "stream_options")
    if body.best_of is not None and body.best_of < count:
        raise InvalidParameter(
            f"best_of is {body.best_of}; it must be at least n, {count}", "best_of"
        )
    if body.best_of is not None and body.best_of > count and body.stream:
        raise InvalidParameter(
            "best_of cannot stream: which answer is best is known at the end", "best_of"
        )
    if knobs.get("max_tokens") == 0 and knobs.get("negative_prompt") is not None:
        raise InvalidParameter(
            "negative_prompt has no effect if max_tokens is 0: nothing is generated, and texts are "
            "scored without it; remove negative_prompt",
            "negative_prompt",
        )
    if knobs.get("max_tokens") == 0 and (not body.echo or body.stream or count > 1):
        raise InvalidParameter(
            "max_tokens is 0; that needs echo, and neither stream nor n: nothing is generated",
            "max_tokens",
        )


class CompletionOptions:
    """Options common to all answers of a request."""

    def __init__(
        self,
        body: CompletionBody,
        name: str,
        tokenizer: Tokenizer,
        echoes: Sequence[Echo],
        knobs: Mapping[str, object],
        *,
        shows_logprobs: bool,
    ) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.echoes, self.shows_logprobs = echoes, shows_logprobs
        self.returned = body.n or 1  # answers to return for each prompt
        self.generated = body.best_of or self.returned
        self.options = body.stream_options
        self.stops, self.shows_ids = ClientStops(knobs), bool(body.return_token_ids)

    @property
    def spare(self) -> int:
        """Number of answers to each prompt that are generated but not returned (best_of)."""
        return self.generated - self.returned

    def echo(self, index: int) -> Echo | None:
        """Return the echo of the prompt of answer `index`; None if none was requested."""
        return self.echoes[index // self.generated] if self.echoes else None


class CompletionForm:
    """Converts the answers to prompts to OpenAI's completions or chunks."""

    says_done = True

    def __init__(
        self, style: CompletionOptions, id_: str, prompts: Sequence[tuple[int, ...]]
    ) -> None:
        """Prepare to convert the answers to one request.

        `style` has the options of all answers, `id_` is the id of the response, and `prompts` has
        the token ids of each answer's prompt.
        """
        self._id, self._style = f"cmpl-{id_}", style
        self._created, self._generated = int(time.time()), 0
        self._writers = [CompletionAnswer(style, index) for index in range(len(prompts))]
        self._prompts = prompts
        self._counts = Counts(style.options, sum(map(len, prompts[:: style.generated])))

    def begin(self) -> Iterator[CompletionChunk]:
        """Yield a chunk for each answer with the echo or token ids of its prompt, if requested."""
        for index in range(len(self._writers)):
            echo = self._style.echo(index)
            choice = CompletionChoice(index, "")
            if echo is not None:
                choice.text, choice.logprobs = echo.text, echo.logprobs
            if self._style.shows_ids:
                choice.prompt_token_ids = list(self._prompts[index])
            if echo is not None or self._style.shows_ids:
                yield self._chunk(choice)

    def take(self, index: int, event: Event) -> Iterator[CompletionChunk]:
        """Collect an event of answer `index`, and yield the chunks that a stream sends for it."""
        writer, shows_ids = self._writers[index], self._style.shows_ids
        found = writer.receive(event)
        self._generated += isinstance(event, Token)
        if isinstance(event, Finished):
            if event.text:
                yield self._chunk(CompletionChoice(index, event.text))
            choice = CompletionChoice(index, "", writer.ending, stop_reason=writer.stop_reason)
        elif event.text or found is not None or shows_ids:
            choice = CompletionChoice(index, event.text, logprobs=found)
        else:
            return
        if shows_ids:
            choice.token_ids = ids_of(event)
        yield self._chunk(choice)

    def end(self) -> Iterator[CompletionChunk]:
        """Yield a chunk with the token counts if the request asked for it."""
        if self._counts.at_end:
            name = self._style.name
            yield CompletionChunk(self._id, self._created, name, [], usage=self._usage())

    def whole(self) -> TextCompletion:
        """Return the body of a response that is not streamed.

        It has `n` answers to each prompt, in the order of the prompts. If more were generated, the
        best `n` are returned.
        """
        style, chosen = self._style, []
        for first in range(0, len(self._writers), style.generated):
            group = self._writers[first : first + style.generated]
            if style.spare:
                group.sort(key=CompletionAnswer.mean_logprob, reverse=True)
            chosen += [(writer, self._prompts[first]) for writer in group[: style.returned]]
        choices = [
            CompletionChoice(
                index,
                writer.text,
                writer.ending,
                writer.logprobs if style.shows_logprobs else None,
                writer.stop_reason,
                writer.token_ids if style.shows_ids else UNSET,
                list(prompt) if style.shows_ids else UNSET,
            )
            for index, (writer, prompt) in enumerate(chosen)
        ]
        return TextCompletion(self._id, self._created, style.name, choices, self._usage())

    def _usage(self) -> TokenUsage:
        usages = [writer.usage for writer in self._writers]
        if any(usages):
            return shapes.sum_up(usages, self._style.generated)
        prompt = sum(len(echo.ids) for echo in self._style.echoes)
        return TokenUsage(prompt, 0, prompt, Details(0))

    def _chunk(self, choice: CompletionChoice) -> CompletionChunk:
        usage = self._counts.so_far(self._generated)
        name = self._style.name
        return CompletionChunk(self._id, self._created, name, [choice], usage=usage)


class CompletionAnswer:
    """Collects one answer from its events: text, log-probabilities, reason of its end."""

    def __init__(self, style: CompletionOptions, index: int) -> None:
        echo = style.echo(index)
        self.usage: Usage | None = None
        self.ending: Literal["stop", "length"] = "length"
        self.stop_reason: str | int | None = None
        self.token_ids: list[int] = []
        self.logprobs = OldLogprobs()
        if echo is not None and echo.logprobs is not None:
            self.logprobs.extend(echo.logprobs)
        self._texts = [echo.text] if echo else []
        self._logprobs_writer = LogprobsWriter(style.tokenizer, sum(map(len, self._texts)))
        self._shows_logprobs, self._stops = style.shows_logprobs, style.stops
        self._values: list[float] = []

    @property
    def text(self) -> str:
        """The text so far, after the echo of the prompt if there is one."""
        return "".join(self._texts)

    def receive(self, event: Event) -> OldLogprobs | None:
        """Add an event to the answer; return the event's log-probabilities if requested."""
        self._texts.append(event.text)
        self.token_ids += ids_of(event)
        if isinstance(event, Finished):
            self.usage, self.ending = event.usage, shapes.ending_of(event.reason)
            self.stop_reason = self._stops.met(event)
            return None
        if event.logprobs is None:
            return None
        self._values.append(event.logprobs.logprob)
        if not self._shows_logprobs:
            return None
        found = OldLogprobs()
        self._logprobs_writer.add(found, event.token, event.logprobs)
        self.logprobs.extend(found)
        return found

    def mean_logprob(self) -> float:
        """Return the mean log-probability of the tokens, by which the best answer is chosen."""
        return sum(self._values) / max(len(self._values), 1)
