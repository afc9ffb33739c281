"""Load: clients of OpenAI's or Ollama's API that stream answers and record what they receive.

Used by `serve.py`. All clients share one event loop. In a closed load, each client sends its next
request when it has its answer; in an open load, requests are sent at random times. Knows nothing of
the server's implementation.
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
OPENAI, OLLAMA = "openai", "ollama"
PATHS = {  # by API and whether conversations are sent
    (OPENAI, False): "/v1/completions",
    (OPENAI, True): "/v1/chat/completions",
    (OLLAMA, False): "/api/generate",
    (OLLAMA, True): "/api/chat",
}


@dataclass(frozen=True)
class LoadShape:
    """The sizes of the requests of a load, and their number."""

    prompt: int = 64  # words of the prompt, about one token each
    tokens: int = 64  # tokens of the answer
    api: str = OPENAI
    chat: bool = False
    eos: bool = False  # end tokens of the model end an answer
    requests: int = 3  # requests of each stream, one after the other
    duration: float = 20.0  # seconds of an open load
    seed: int = 0
    patience: float = 300.0  # seconds to wait for one answer

    def __str__(self) -> str:
        sizes = f"{self.prompt}+{self.tokens} tokens"
        return sizes if self.api == OPENAI else f"{sizes}, {self.api}"

    @property
    def path(self) -> str:
        """The path of the endpoint."""
        return PATHS[self.api, self.chat]

    def text(self, number: int) -> str:
        """Return the prompt with this number; no two prompts share a long prefix."""
        words = random.Random(f"{self.seed}, {number}").choices(WORDS, k=self.prompt)
        return " ".join(words)

    def body(self, model: str, number: int) -> dict[str, Any]:
        """Return the body of the request with this prompt number."""
        text = self.text(number)
        input_ = (
            {"messages": [{"role": "user", "content": text}]} if self.chat else {"prompt": text}
        )
        ending = {} if self.eos else {"ignore_eos": True}
        if self.api == OLLAMA:
            options = {"num_predict": self.tokens, "temperature": 0, **ending}
            return {"model": model, **input_, "options": options} | (
                {} if self.chat else {"raw": True}
            )
        counting = {"stream": True, "stream_options": {"include_usage": True}}
        sizes = {"max_tokens": self.tokens, "temperature": 0}
        return {"model": model, **input_, **sizes, **counting, **ending}


def load_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a load's shape; the function gets a `shape`."""

    def option(name: str, least: int, help_: str) -> Callable[..., Any]:
        default = getattr(LoadShape, name)
        kind = click.IntRange(min=least) if isinstance(default, int) else click.FloatRange(min=0.01)
        return click.option(f"--{name}", type=kind, default=default, show_default=True, help=help_)

    @option("prompt", 1, "Words of each prompt, about a token each.")
    @option("tokens", 1, "Tokens of each answer.")
    @option("requests", 1, "Requests of each stream, one after the other.")
    @option("duration", 0, "Seconds in which requests are sent, with --rate.")
    @option("seed", 0, "Seed of the prompts and of the times of requests.")
    @option("patience", 0, "Seconds that one answer may take.")
    @click.option(
        "--api",
        type=click.Choice([OPENAI, OLLAMA]),
        default=OPENAI,
        show_default=True,
        help="API to ask.",
    )
    @click.option("--chat", is_flag=True, help="Send conversations, not prompts.")
    @click.option("--eos", is_flag=True, help="Do not send ignore_eos: answers may end early.")
    @functools.wraps(function)
    def run(**given: Any) -> None:
        shape = LoadShape(**{name: given.pop(name) for name in LoadShape.__dataclass_fields__})
        function(shape=shape, **given)

    return run


@dataclass
class Answer:
    """One answer as its client received it; all times are of one clock."""

    due: float  # when the request was scheduled
    texts: list[str] = field(default_factory=list)  # the pieces of text
    moments: list[float] = field(default_factory=list)  # when each piece was received
    tokens: int = 0
    ended: float = 0.0
    error: str | None = None  # the kind of error, if the answer is not complete


@dataclass(frozen=True)
class Load:
    """The answers of all clients in one run."""

    answers: list[Answer]
    seconds: float
    cores: float  # processor time of the clients per second

    @property
    def whole(self) -> list[Answer]:
        """The answers that are complete."""
        return [answer for answer in self.answers if answer.error is None]


class Clients:
    """Clients of one server; every request has a new prompt."""

    def __init__(self, url: str, model: str, shape: LoadShape) -> None:
        self.url, self.model, self.shape = url, model, shape
        self.sent = 0

    def closed(self, streams: int) -> Load:
        """Run a number of streams, each of which sends one request after the other."""

        async def ask_all(http: aiohttp.ClientSession) -> list[Answer]:
            async def stream() -> list[Answer]:
                return [await self.ask(http, self.next()) for _ in range(self.shape.requests)]

            answers = await asyncio.gather(*(stream() for _ in range(streams)))
            return [each for one in answers for each in one]

        return measured(ask_all)

    def open(self, rate: float) -> Load:
        """Send requests at random times, `rate` per second, without waiting for earlier answers."""

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
        """Send one request for each prompt number, all at the same time."""

        async def ask_all(http: aiohttp.ClientSession) -> list[Answer]:
            return await asyncio.gather(*(self.ask(http, number) for number in numbers))

        return measured(ask_all)

    def next(self) -> int:
        """Return the number of a new prompt."""
        self.sent += 1
        return self.sent

    async def ask(
        self, http: aiohttp.ClientSession, number: int, due: float | None = None
    ) -> Answer:
        """Send one request and return its answer; a failure sets the answer's error."""
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
                    await READERS[self.shape.api](answer).read(response.content)
        except TimeoutError:
            answer.error = "timed out"
        except msgspec.DecodeError:
            answer.error = "not an event"
        except (aiohttp.ClientError, OSError) as error:
            answer.error = type(error).__name__
        answer.ended = time.perf_counter()
        return answer


class StreamedDelta(msgspec.Struct):
    """The new text of a chat message."""

    content: str | None = None


class StreamChoice(msgspec.Struct):
    """The new text of one choice, in the form of either endpoint."""

    text: str | None = None
    delta: StreamedDelta | None = None


class StreamedUsage(msgspec.Struct):
    """The number of generated tokens, as the server counts them."""

    completion_tokens: int


class StreamEvent(msgspec.Struct):
    """One event of a stream."""

    choices: list[StreamChoice] = []
    usage: StreamedUsage | None = None
    error: Any = None


class EventReader:
    """Reads the events of one stream into an answer."""

    decode = msgspec.json.Decoder(StreamEvent).decode

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.is_done = False

    async def read(self, content: aiohttp.StreamReader) -> None:
        """Read the stream to its end; count the pieces of text if the server counts no tokens."""
        rest = b""
        async for part in content.iter_any():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                self.add_line(line)
        self.answer.tokens = self.answer.tokens or len(self.answer.moments)
        if not self.is_done and self.answer.error is None:
            self.answer.error = "cut off"

    def add_line(self, line: bytes) -> None:
        """Add the event of one line to the answer."""
        if not line.startswith(b"data:"):
            return
        raw = line[5:].strip()
        if raw == DONE:
            self.is_done = True
            return
        event = self.decode(raw)
        if event.error is not None:
            self.answer.error = "error event"
        if event.usage is not None:
            self.answer.tokens = event.usage.completion_tokens
        for choice in event.choices:
            self.add_text(choice.text or (choice.delta.content if choice.delta else None))

    def add_text(self, text: str | None) -> None:
        """Add a piece of text, and when it came; nothing if it is empty."""
        if text:
            self.answer.moments.append(time.perf_counter())
            self.answer.texts.append(text)


class OllamaLine(msgspec.Struct):
    """One line of a stream of Ollama's API."""

    response: str | None = None
    message: StreamedDelta | None = None
    done: bool = False
    eval_count: int = 0
    error: Any = None


class LineReader(EventReader):
    """Reads the lines of Ollama's API into an answer."""

    decode_line = msgspec.json.Decoder(OllamaLine).decode

    def add_line(self, line: bytes) -> None:
        """Add one line to the answer."""
        found = self.decode_line(line)
        if found.error is not None:
            self.answer.error = "error event"
        self.add_text(found.response or (found.message.content if found.message else None))
        if found.done:
            self.is_done, self.answer.tokens = True, found.eval_count


READERS: dict[str, type[EventReader]] = {OPENAI: EventReader, OLLAMA: LineReader}


def measured(
    ask_all: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, list[Answer]]],
) -> Load:
    """Run the clients; return their answers, the seconds and the processor time."""

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
    """Yield the times of requests: a Poisson process whose first request is at time 0."""
    chance, moment = random.Random(seed), 0.0
    while moment < duration:
        yield moment
        moment += chance.expovariate(rate)
