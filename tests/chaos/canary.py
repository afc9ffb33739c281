"""Canaries: requests of another client during an attack, whose answers must not change."""

import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tests.chaos.asking import Client

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
PROMPT = "The lighthouse keeper wrote in his book that"
Question = tuple[str, dict[str, Any]]
QUESTIONS: list[Question] = [
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 24, "temperature": 0.9, "seed": 7}),
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 16, "temperature": 0, "logprobs": 3}),
    (
        "/v1/completions",
        {"prompt": PROMPT, "max_tokens": 24, "seed": 5, "regex": "[a-z ]{10,30}", "n": 2},
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "Name a colour."}],
            "max_tokens": 24,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 11,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "A number as JSON."}],
            "max_tokens": 24,
            "temperature": 0.7,
            "seed": 3,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "number", "schema": SCHEMA},
            },
        },
    ),
    ("/score", {"prompt": PROMPT, "continuations": [" the sea", " a storm was near"]}),
    ("/v1/embeddings", {"input": [PROMPT], "encoding_format": "base64"}),
]
STREAMED = 2  # the first questions, which are also sent as streaming requests
KEPT = ("choices", "scores", "data")  # compared fields of an answer; the others hold ids and times
REFUSED = (429, 503)
SECONDS = 300.0


class Canaries:
    """Sends every question once to learn the right answers, then repeatedly in the background."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.right: dict[int, str] = {}
        self.changed: list[str] = []
        self.outcomes: Counter[str] = Counter()

    @property
    def figures(self) -> dict[str, Any]:
        """Counts of the answers by outcome, and the first changed answers."""
        return {"canaries": dict(self.outcomes), "canaries_changed": self.changed[:5]}

    @property
    def hold(self) -> dict[str, bool]:
        """The promises: no answer changes, some are right, none fails but by a refusal."""
        return {
            "no canary changes": not self.changed,
            "canaries are answered": self.outcomes["right"] > 0,
            "no canary fails": not self.outcomes.keys() - {"right", "refused"},
        }

    async def learn(self) -> None:
        """Record the right answers of a server without other load; raise if one fails."""
        for number in range(len(QUESTIONS) + STREAMED):
            outcome, answer = await self._ask(number)
            if outcome:
                raise RuntimeError(f"canary {number} fails on a quiet server: {outcome}")
            self.right[number] = answer

    @contextlib.asynccontextmanager
    async def singing(self, streams: int = 3) -> AsyncIterator[None]:
        """Within the context, send questions all the time in several streams.

        Waits at the end until each stream has finished its question.
        """
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for stream in range(streams):
                group.create_task(self._sing(stream, over))
            try:
                yield
            finally:
                over.set()

    async def _sing(self, number: int, over: asyncio.Event) -> None:
        """Send one question after the other and count the outcomes."""
        while not over.is_set():
            number = (number + 1) % len(self.right)
            outcome, answer = await self._ask(number)
            if outcome:
                self.outcomes[outcome] += 1
                await asyncio.sleep(0.2)
            elif answer == self.right[number]:
                self.outcomes["right"] += 1
            else:
                self.outcomes["changed"] += 1
                self.changed.append(f"canary {number}: {answer[:200]}")

    async def _ask(self, number: int) -> tuple[str, str]:
        """Send one question; return its failure (empty for none) and its answer."""
        try:
            async with asyncio.timeout(SECONDS):
                if number >= len(QUESTIONS):
                    return "", await self._streamed(QUESTIONS[number - len(QUESTIONS)][1])
                status, answer = await self.client.ask(*QUESTIONS[number])
        except TimeoutError:
            return "timed out", ""
        except aiohttp.ClientError as error:  # from a stream: other requests return a status
            status, answer = getattr(error, "status", 0), str(error).encode()
        if status != 200:
            return "refused" if status in REFUSED else f"status {status}", ""
        whole = json.loads(answer)
        return "", json.dumps({name: whole[name] for name in KEPT if name in whole})

    async def _streamed(self, body: dict[str, Any]) -> str:
        """Return a digest of a stream's texts, reasons and log-probabilities.

        It does not depend on how the text is cut into events.
        """
        text, rest = "", []
        async for event in self.client.stream(body):
            if "choices" not in event:
                raise aiohttp.ClientPayloadError(f"an event without choices: {event}")
            for choice in event["choices"]:
                text += choice.get("text") or ""
                rest.append((choice.get("finish_reason"), tokens_of(choice.get("logprobs"))))
        found = [each for each in rest if any(each)]
        flat = [token for _, tokens in found for token in tokens]
        reasons = [reason for reason, _ in found if reason]
        told = json.dumps([text, reasons, flat])
        return f"{text!r} {hashlib.sha256(told.encode()).hexdigest()}"


def tokens_of(logprobs: dict[str, Any] | None) -> list[Any]:
    """Return the log-probabilities of an event's tokens."""
    return list((logprobs or {}).get("token_logprobs") or [])
