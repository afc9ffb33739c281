"""Endings: requests of several APIs, and how their answers end.

Used by the attacks that stop servers. An answer is "whole", or "told" if the server says with an
error that the rest will not come, or "cut" if it ends without a word. "unanswered" is a request
whose connection was closed before a response began, "refused" one that found no server.
"""

import json
import random
from typing import Any, NamedTuple

import aiohttp

from tests.chaos.asking import words

MODEL = "smollm2-135m"
TOLD = (429, 503)  # statuses of a server that is stopping or full


class Question(NamedTuple):
    """A request, and the bytes with which its whole answer ends; b"": the answer is one JSON."""

    path: str
    body: dict[str, Any]
    end: bytes = b""


def question(chance: random.Random) -> Question:
    """Choose a request: of one of several APIs, streamed or not, with a short or a long answer."""
    text, tokens = words(chance.choice((5, 60)), chance.random()), chance.choice((2, 40, 150))
    sizes = {"max_tokens": tokens, "ignore_eos": True}
    talk = {"messages": [{"role": "user", "content": text}], "model": MODEL}
    stream = {"stream": True}
    return chance.choice(
        (
            Question("/v1/completions", {"prompt": text, **sizes}),
            Question("/v1/chat/completions", {**talk, **sizes}),
            Question("/score", {"prompt": text, "continuations": [" one", " two"]}),
            Question("/v1/completions", {"prompt": text, **sizes, **stream}, b"data: [DONE]\n\n"),
            Question("/v1/chat/completions", {**talk, **sizes, **stream}, b"data: [DONE]\n\n"),
            Question("/v1/messages", {**talk, "max_tokens": tokens, **stream}, b'_stop"}\n\n'),
            Question("/api/chat", {**talk, **stream, "options": {"num_predict": tokens}}, b"}\n"),
        )
    )


async def ending(http: aiohttp.ClientSession, url: str, asked: Question) -> str:
    """Send a request and read its answer; return how it ended, or a status that is no refusal."""
    raw, status = b"", 0
    try:
        async with http.post(url + asked.path, json=asked.body) as response:
            status = response.status
            async for part in response.content.iter_any():
                raw += part
    except aiohttp.ClientConnectorError:
        return "refused"
    except (aiohttp.ClientError, OSError):
        return how(raw, None) if status else "unanswered"
    if status != 200:
        return "told" if status in TOLD and is_told(raw) else f"status {status}"
    return how(raw, asked)


def how(raw: bytes, asked: Question | None) -> str:
    """Return how an answer with status 200 ended; `asked` is None if its connection broke."""
    if is_told(raw):
        return "told"
    return "whole" if asked is not None and is_whole(raw, asked) else "cut"


def is_whole(raw: bytes, asked: Question) -> bool:
    """Say whether an answer has its end."""
    if asked.path == "/api/chat":  # its last line says so
        return b'"done":true' in last_line(raw).replace(b" ", b"")
    if asked.end:
        return raw.endswith(asked.end)
    try:
        json.loads(raw)
    except ValueError:
        return False
    return True


def is_told(raw: bytes) -> bool:
    """Say whether the last line of an answer is an error."""
    return b'"error"' in last_line(raw)


def last_line(raw: bytes) -> bytes:
    """Return the last line of an answer that is not empty and not the end mark of a stream."""
    lines = [each for each in raw.splitlines() if each.strip() and each != b"data: [DONE]"]
    return lines[-1] if lines else b""
