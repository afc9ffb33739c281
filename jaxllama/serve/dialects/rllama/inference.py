"""The route of RLLaMA's API: a line per token, or per distribution with `no_token_sampling`.

An answer is JSON lines; a client that accepts application/json gets one array of the same objects.
"""

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
from aiohttp import web

from jaxllama.errors import InvalidParameter, PromptTooLong
from jaxllama.recording import peek_at_answer
from jaxllama.request import Token, TokenLogprobs
from jaxllama.serve.answering.defaults import with_defaults
from jaxllama.serve.dialects.rllama.pieces import DistributionWriter, spell
from jaxllama.serve.endpoints import Endpoint, RequestShape
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import JSON_LINES, ResponseStream
from jaxllama.service import Ask, GenerationService, Model, Question
from jaxllama.service.answers import Answers
from jaxllama.text.tokenizer import Tokenizer

LINES = replace(JSON_LINES, content_type="application/jsonl")
ROWS = 8  # distributions that are computed together: so many are in memory at a time
MAX_NEW_TOKENS, TOP_K = 1024, 20
NAMES = {"max_tokens": "max_new_tokens", "repetition_power": "repetition_penalty"}

Line = dict[str, dict[str, float | bool]]


class RllamaBody(RequestShape, kw_only=True):
    """Request: a prompt, and how to continue it."""

    prompt: str
    temperature: float | None = None  # 0 or less: not applied
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    stop_at_end_token: bool = True
    max_seq_len: int | None = None
    max_new_tokens: int | None = None
    no_token_sampling: bool = False


class TokenChance(msgspec.Struct, omit_defaults=True):
    """The probability of a token, the value of its only key in a line."""

    p: float
    is_end_token: bool = False


def endpoint_at(path: str) -> Endpoint:
    """Return the endpoint for POST requests at `path`, the path that the operator chose."""
    return Endpoint(
        "POST",
        path,
        "Continue a prompt, in RLLaMA's form: a line with a probability per token",
        body=RllamaBody,
        answer=list[dict[str, TokenChance]],
        events=(dict[str, TokenChance],),  # type: ignore[arg-type]
        framing=LINES,
        any_type=True,
    )


class RllamaInference:
    """The handler of the route."""

    def __init__(self, endpoint: Endpoint, max_seq_len: int) -> None:
        """Store the endpoint to answer, and the operator's limit.

        `max_seq_len` is the maximum number of tokens of prompt and answer together.
        """
        self._endpoint, self._max_seq_len = endpoint, max_seq_len
        self._writer: DistributionWriter | None = None

    async def answer(self, request: web.Request, service: GenerationService) -> web.StreamResponse:
        """Answer with the continuation of a prompt, in lines of JSON.

        There are no lines if the prompt leaves no room in the context.
        """
        body, _ = await self._endpoint.read(request, service, RllamaBody)
        ask = self._ask(body, service.model)
        try:
            async with service.open(ask, request[CALLER]) as answers:
                lines: AsyncIterator[Any] = (
                    self._distributions(answers, service, body)
                    if body.no_token_sampling
                    else lines_of(answers, service.model.intake.tokenizer, body)
                )
                return await write_lines(request, lines)
        except PromptTooLong:
            return await write_lines(request, no_lines())

    def _ask(self, body: RllamaBody, model: Model) -> Ask:
        """Convert a request to a generation task for the service."""
        if body.top_k is not None and body.top_k < 1:
            raise InvalidParameter(f"top_k is {body.top_k}; it must be at least 1", "top_k")
        seen = self._max_seq_len if body.max_seq_len is None else body.max_seq_len
        if seen < 1:
            raise InvalidParameter(f"max_seq_len is {seen}; it must be at least 1", "max_seq_len")
        given = {
            "temperature": body.temperature if (body.temperature or 0) > 0 else 1.0,
            "top_k": body.top_k,
            "top_p": body.top_p,
            "repetition_power": body.repetition_penalty,
            "max_tokens": body.max_new_tokens,
            "ignore_eos": True,  # end tokens have a line, too
            "logprobs": 0,
        }
        defaults = {"top_k": TOP_K, "top_p": 1.0, "max_tokens": MAX_NEW_TOKENS}
        return Ask(
            prompts=[body.prompt],
            knobs=with_defaults(model, given, defaults),
            names=NAMES,
            total=min(seen, self._max_seq_len),
        )

    async def _distributions(
        self, answers: Answers, service: GenerationService, body: RllamaBody
    ) -> AsyncIterator[bytes]:
        """Yield a JSON line for each token of the answer: the whole vocabulary's probabilities.

        `answers` has one answer; `body` says whether an end token ends it.
        """
        tokens = await tokens_of(answers, service.model.intake.tokenizer, body)
        request = answers.requests[0]
        for start in range(0, len(tokens), ROWS):
            known = tokens[: start + ROWS]
            begin = partial(peek_at_answer, request=request, tokens=known, first=start)
            question = Question(begin, len(request.prompt) + len(known))
            (logits,) = await service.ask_engine([question], answers.caller)
            work = partial(self._encode, logits=logits)
            for line in await service.off_loop(work, answers.caller):
                yield line

    def _encode(self, model: Model, logits: np.ndarray) -> list[bytes]:
        """Encode each row of logits as a JSON line with the probabilities of all tokens.

        `model` has the tokenizer. The first call is slow, as it prepares the texts of all tokens.
        Call it off the event loop.
        """
        if self._writer is None:
            self._writer = DistributionWriter(model.intake.tokenizer, model.intake.bank.vocab)
        return list(self._writer.lines(logits))


async def lines_of(answers: Answers, tokenizer: Tokenizer, body: RllamaBody) -> AsyncIterator[Line]:
    """Yield {text: {"p": probability}} for each token of the answer.

    The probability is the one with which the token was drawn. `answers` has one answer. `body` says
    whether an end token ends it; the value of that token has `is_end_token`, too.
    """
    async for _, event in answers:
        if not isinstance(event, Token):
            continue
        is_end = body.stop_at_end_token and event.token in tokenizer.end_ids
        value: dict[str, Any] = {"p": chance_of(event.logprobs)}
        if is_end:
            value["is_end_token"] = True
        yield {spell(tokenizer.piece(event.token, special=True)): value}
        if is_end:
            return


def chance_of(logprobs: TokenLogprobs | None) -> float:
    """Return the probability with which a token was drawn, after the samplers; 0 if unknown.

    `logprobs` are the token's log-probabilities.
    """
    return 0.0 if logprobs is None else min(1.0, math.exp(logprobs.sampled))


async def tokens_of(answers: Answers, tokenizer: Tokenizer, body: RllamaBody) -> list[int]:
    """Return the token ids of the answer, including the end token if one ends it.

    `answers` has one answer; `body` says whether an end token ends it.
    """
    found: list[int] = []
    async for _, event in answers:
        if isinstance(event, Token):
            found.append(event.token)
            if body.stop_at_end_token and event.token in tokenizer.end_ids:
                break
    return found


async def no_lines() -> AsyncIterator[bytes]:
    """Return an empty iterator, for an answer that does not fit into the context."""
    return
    yield b""


async def write_lines(request: web.Request, lines: AsyncIterator[Any]) -> web.StreamResponse:
    """Send lines of JSON as they come, or as one JSON array if the client accepts JSON.

    A line is encoded JSON (bytes), or an object to encode. Returns the response, which is sent.
    """
    wants_array = "application/json" in request.headers.get("Accept", "")
    framing = replace(LINES, content_type="application/json") if wants_array else LINES
    before = b"[" if wants_array else b""
    async with ResponseStream(request, framing) as stream:
        async for line in lines:
            raw = line if isinstance(line, bytes) else msgspec.json.encode(line)
            await stream.send(before + raw + (b"" if wants_array else b"\n"))
            before = b"," if wants_array else b""
        await stream.finish([{b"[": b"[]", b",": b"]"}.get(before, b"")] if wants_array else [])
    return stream.response
