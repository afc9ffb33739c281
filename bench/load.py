"""Load: clients of an OpenAI-compatible server, and what each of them saw.

Used by `serve.py`. All clients live in one event loop; closed, each asks again once it has its
answer, or open, they come when they come. Knows nothing of whose server it is.
"""

import asyncio
import functools
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import click
import msgspec

WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world"),
    *("school", "state", "family", "student", "group", "country", "problem", "hand", "part"),
    *("place", "case", "week", "company", "system", "program", "question", "work", "night"),
    *("point", "home", "water", "room", "mother", "area", "money", "story", "fact", "month"),
)
DONE = b"[DONE]"


@dataclass(frozen=True)
class Shape:
    """What is asked, and how often."""

    prompt: int = 64  # words, of about one token each
    tokens: int = 64
    chat: bool = False
    eos: bool = False  # the model's own end tokens end an answer
    requests: int = 3  # of each stream in a row
    duration: float = 20.0  # of an open load
    seed: int = 0
    patience: float = 300.0  # for one answer

    def __str__(self) -> str:
        return f"{self.prompt}+{self.tokens} tokens"

    @property
    def path(self) -> str:
        """The endpoint."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def text(self, number: int) -> str:
        """A prompt of its own for each number, which no cache knows the beginning of."""
        words = random.Random(f"{self.seed}, {number}").choices(WORDS, k=self.prompt)
        return " ".join(words)

    def body(self, model: str, number: int) -> dict[str, Any]:
        """A whole request."""
        text = self.text(number)
        asked = {"messages": [{"role": "user", "content": text}]} if self.chat else {"prompt": text}
        ending = {} if self.eos else {"ignore_eos": True}
        counting = {"stream": True, "stream_options": {"include_usage": True}}
        sizes = {"max_tokens": self.tokens, "temperature": 0}
        return {"model": model, **asked, **sizes, **counting, **ending}


def shaped(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a shape; the function is called with a `shape`."""

    def option(name: str, least: int, help_: str) -> Callable[..., Any]:
        default = getattr(Shape, name)
        kind = click.IntRange(min=least) if isinstance(default, int) else click.FloatRange(min=0.01)
        return click.option(f"--{name}", type=kind, default=default, show_default=True, help=help_)

    @option("prompt", 1, "Words of each prompt, about a token each.")
    @option("tokens", 1, "Tokens of each answer.")
    @option("requests", 1, "Requests of each stream, one after the other.")
    @option("duration", 0, "Seconds in which requests come, with --rate.")
    @option("seed", 0, "Of the prompts and when they come.")
    @option("patience", 0, "Seconds that one answer may take.")
    @click.option("--chat", is_flag=True, help="Ask /v1/chat/completions, not /v1/completions.")
    @click.option("--eos", is_flag=True, help="Do not send ignore_eos: answers may end early.")
    @functools.wraps(function)
    def run(**given: Any) -> None:
        shape = Shape(**{name: given.pop(name) for name in Shape.__dataclass_fields__})
        function(shape=shape, **given)

    return run


@dataclass
class Answer:
    """What one client saw; all moments of one clock."""

    due: float  # when it was to be asked
    texts: list[str] = field(default_factory=list)  # its pieces
    moments: list[float] = field(default_factory=list)  # when each piece came
    tokens: int = 0
    ended: float = 0.0
    error: str | None = None  # its kind


@dataclass(frozen=True)
class Load:
    """What all clients saw."""

    answers: list[Answer]
    seconds: float
    cores: float  # that the clients themselves took

    @property
    def whole(self) -> list[Answer]:
        """The answers that came to their end."""
        return [answer for answer in self.answers if answer.error is None]


class Clients:
    """Clients of one server; every prompt they send is a new one."""

    def __init__(self, url: str, model: str, shape: Shape) -> None:
        self.url, self.model, self.shape = url, model, shape
        self.sent = 0

    def closed(self, streams: int) -> Load:
        """So many streams, each of which asks again and again."""

        async def ask_all(http: aiohttp.ClientSession) -> list[Answer]:
            async def stream() -> list[Answer]:
                return [await self.ask(http, self.next()) for _ in range(self.shape.requests)]

            told = await asyncio.gather(*(stream() for _ in range(streams)))
            return [each for one in told for each in one]

        return measured(ask_all)

    def open(self, rate: float) -> Load:
        """Requests that come by chance, so many each second, whatever became of those before."""

        async def ask_all(http: aiohttp.ClientSession) -> list[Answer]:
            began = time.perf_counter()

            async def one(after: float, number: int) -> Answer:
                await asyncio.sleep(began + after - time.perf_counter())
                return await self.ask(http, number, began + after)

            shape = self.shape
            moments = list(arrivals(rate, shape.duration, shape.seed))
            return await asyncio.gather(*(one(after, self.next()) for after in moments))

        return measured(ask_all)

    def once(self, numbers: range) -> Load:
        """One request for each prompt, all at the same time."""

        async def ask_all(http: aiohttp.ClientSession) -> list[Answer]:
            return await asyncio.gather(*(self.ask(http, number) for number in numbers))

        return measured(ask_all)

    def next(self) -> int:
        """The number of a new prompt."""
        self.sent += 1
        return self.sent

    async def ask(
        self, http: aiohttp.ClientSession, number: int, due: float | None = None
    ) -> Answer:
        """One request and its answer; whatever goes wrong is a kind of error."""
        answer = Answer(time.perf_counter() if due is None else due)
        try:
            body = self.shape.body(self.model, number)
            async with (
                asyncio.timeout(self.shape.patience),
                http.post(f"{self.url}{self.shape.path}", json=body) as response,
            ):
                if response.status != 200:
                    answer.error = f"HTTP {response.status}"
                else:
                    await Listener(answer).listen(response.content)
        except TimeoutError:
            answer.error = "timed out"
        except msgspec.DecodeError:
            answer.error = "not an event"
        except (aiohttp.ClientError, OSError) as error:
            answer.error = type(error).__name__
        answer.ended = time.perf_counter()
        return answer


class Delta(msgspec.Struct):
    """What is new of a message."""

    content: str | None = None


class Choice(msgspec.Struct):
    """What is new of an answer, in either endpoint's form."""

    text: str | None = None
    delta: Delta | None = None


class Usage(msgspec.Struct):
    """What it came to."""

    completion_tokens: int


class Event(msgspec.Struct):
    """One event of a stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class Listener:
    """Reads one stream of events."""

    decode = msgspec.json.Decoder(Event).decode

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.is_done = False

    async def listen(self, content: aiohttp.StreamReader) -> None:
        """All of it; a server that does not count tokens has its pieces counted."""
        rest = b""
        async for part in content.iter_any():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    self.hear(line[5:].strip())
        self.answer.tokens = self.answer.tokens or len(self.answer.moments)
        if not self.is_done and self.answer.error is None:
            self.answer.error = "cut off"

    def hear(self, raw: bytes) -> None:
        """One event."""
        if raw == DONE:
            self.is_done = True
            return
        event = self.decode(raw)
        if event.error is not None:
            self.answer.error = "error event"
        if event.usage is not None:
            self.answer.tokens = event.usage.completion_tokens
        for choice in event.choices:
            text = choice.text or (choice.delta.content if choice.delta else None)
            if text:
                self.answer.moments.append(time.perf_counter())
                self.answer.texts.append(text)


def measured(
    ask_all: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, list[Answer]]],
) -> Load:
    """What clients saw, and what they took of the processor."""

    async def run() -> list[Answer]:
        connector, limits = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=limits) as http:
            return await ask_all(http)

    processor = time.process_time()
    answers = asyncio.run(run())
    processor = time.process_time() - processor
    taken = max(answer.ended for answer in answers) - min(answer.due for answer in answers)
    return Load(answers, taken, processor / taken)


def arrivals(rate: float, duration: float, seed: int) -> Iterator[float]:
    """When requests come: a Poisson process, its first request at once."""
    chance, moment = random.Random(seed), 0.0
    while moment < duration:
        yield moment
        moment += chance.expovariate(rate)
