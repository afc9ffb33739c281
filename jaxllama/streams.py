"""Streams: the open answers of one engine, for callers that share a thread.

Iterating one stream steps the engine for all of them; events of the other streams wait there. Used
by LLM; the server follows generations from its own thread through the bridge.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from jaxllama.beams import first_of_each_stem
from jaxllama.completion import Completion, Delta
from jaxllama.engine.engine import Engine
from jaxllama.engine.generation import Generation
from jaxllama.errors import EngineStopped, GenerationFailed, InvalidParameter, JaxLlamaError
from jaxllama.intake import PreparedRequest, stream_of
from jaxllama.limits import check
from jaxllama.request import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    TextTail,
    Token,
    TokenLogprobs,
)

OnError = Callable[[int, JaxLlamaError], None]

QUEUED_PER_SLOT = 4  # requests that are tokenized and queued at a time, per slot


class Streams:
    """Steps the engine and gives its events to the open streams."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[int, AnswerStream] = {}
        self._closed = False

    def open(self, ready: PreparedRequest) -> "AnswerStream":
        """Queue a checked request and return its stream."""
        return self._follow(*ready)

    def pump(self) -> None:
        """Step the engine once and give each stream its events.

        Raises EngineStopped if the engine has nothing to do: no event would ever come.
        """
        if self._engine.idle:
            raise EngineStopped(
                "the engine has nothing to do, so this call would wait for ever; expected a "
                "request that runs: the model was closed, or a slot was borrowed and never freed"
            )
        for event in self._engine.step():
            stream = self._open.get(event.id)
            if stream is not None:
                stream.arrived.append(event)

    def pump_until_free(self) -> None:
        """Step the engine until a slot is free."""
        while self._engine.slots.full:
            self.pump()

    def whole(self, ready: PreparedRequest) -> Completion:
        """Run one request to its end and return its completion."""
        stream = self.open(ready)
        for _ in stream:
            pass
        return stream.completion

    def each(
        self, requests: Iterable[Callable[[], PreparedRequest]], on_error: OnError | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Run many requests and yield (index, completion) as they finish, in any order.

        `requests` holds functions that make one request each. A function is called only shortly
        before its request can run, so that few requests wait. The error of a failed request is
        raised, or passed to `on_error` with its index, and the other requests continue.
        """

        def failed(index: int, error: JaxLlamaError) -> None:
            if on_error is None:
                raise error
            on_error(index, error)

        source = enumerate(requests)
        live: dict[int, AnswerStream] = {}
        more = True
        try:
            while live or more:
                more = more and self._top_up(live, source, failed)
                if live and not any(stream.arrived for stream in live.values()):
                    self.pump()
                for index, outcome in take_ended(live):
                    if isinstance(outcome, JaxLlamaError):
                        failed(index, outcome)
                    else:
                        yield index, outcome
        finally:
            self._close_all(live.values())

    def several(
        self, firsts: Iterable[Callable[[], PreparedRequest]], n: int | None, best_of: int | None
    ) -> Iterator[list[Completion]]:
        """Yield a list of `n` answers (None: one) for each request, in order.

        With `best_of` above `n`, that many answers are generated, and the `n` with the highest mean
        log-probability are returned, best first. `firsts` holds functions that make the requests.
        """
        n = 1 if n is None else n
        check("n", n)
        check("best_of", best_of)
        if best_of is not None and best_of < n:
            raise InvalidParameter(f"best_of is {best_of}; it must be at least n, {n}", "best_of")
        count = best_of or n
        hides: list[bool] = []  # per prompt: log-probabilities serve only the ranking

        def repeated() -> Iterator[Callable[[], PreparedRequest]]:
            for first in firsts:
                request, tail = first()
                hides.append(count > n and request.top_logprobs is None)
                if hides[-1]:
                    request = replace(request, top_logprobs=0)
                yield from (partial(stream_of, (request, tail), i) for i in range(count))

        found = dict(self.each(repeated()))
        for prompt, hidden in enumerate(hides):
            answers = [found[prompt * count + i] for i in range(count)]
            if count > n:
                answers = sorted(answers, key=lambda each: -each.mean_logprob)[:n]
            yield [replace(each, logprobs=None) for each in answers] if hidden else answers

    def likeliest(
        self, prompts: Sequence[tuple[int, ...]], count: int
    ) -> list[tuple[tuple[int, float], ...]]:
        """Return the `count` likeliest next tokens of each prompt, with log-probabilities.

        Each is a pair of token id and log-probability. Prompts that differ only in the last token
        share cached tokens: the first prompt of each such group is queued before all others, so
        that no prompt overwrites a slot whose KV cache another prompt still needs.
        """
        opened: dict[int, AnswerStream] = {}
        try:
            for index in first_of_each_stem(prompts):
                one = GenerationRequest(prompts[index], 1, temperature=0.0, top_logprobs=count)
                opened[index] = self._follow(one, None)
            for stream in opened.values():
                for _ in stream:
                    pass
        finally:
            self._close_all(opened.values())
        found = [opened[index].completion.logprobs or () for index in range(len(prompts))]
        return [logprobs[0].top for logprobs in found]

    def forget(self, stream: "AnswerStream") -> None:
        """Drop a stream: later events of its answer are ignored."""
        self._open.pop(stream.id, None)

    def cancel(self, stream: "AnswerStream") -> None:
        """Cancel an answer and receive its last events, if the engine still has them."""
        self._engine.cancel(stream.generation)
        with suppress(GenerationFailed):  # it failed before: `AnswerStream.completion` raises that
            while not stream.drain() and not self._engine.idle:
                self.pump()

    def close(self) -> None:
        """Cancel all answers and refuse new ones; streams keep the events they have received."""
        self._close_all(list(self._open.values()))
        self._closed = True

    def _close_all(self, streams: Iterable["AnswerStream"]) -> None:
        """Cancel several answers, all of them before the engine runs another step."""
        for stream in streams:
            self._engine.cancel(stream.generation)
        for stream in streams:
            stream.close()

    def _follow(self, request: GenerationRequest, tail: TextTail | None) -> "AnswerStream":
        if self._closed:
            raise EngineStopped("the model is closed; load it again to generate")
        stream = AnswerStream(self, request, self._engine.submit(request, tail))
        self._open[stream.id] = stream
        return stream

    def _top_up(
        self,
        live: "dict[int, AnswerStream]",
        source: Iterator[tuple[int, Callable[[], PreparedRequest]]],
        failed: OnError,
    ) -> bool:
        """Add streams to `live` until enough are queued; return False once `source` is exhausted.

        `source` yields pairs: an index, which is the stream's key in `live`, and a function that
        makes the request. `failed` is called with the index and error of a request that cannot be
        queued.
        """
        while len(live) < QUEUED_PER_SLOT * self._engine.config.slots:
            item = next(source, None)
            if item is None:
                return False
            index, ready = item
            try:
                live[index] = self.open(ready())
            except JaxLlamaError as error:
                failed(index, error)
        return True


class AnswerStream:
    """One open answer: iterate it for Deltas, then read `completion`; `close` cancels it."""

    def __init__(
        self, streams: Streams, request: GenerationRequest, generation: Generation
    ) -> None:
        self.generation = generation
        self.arrived: deque[Event] = deque()
        self._streams = streams
        self._request = request
        self._parts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._finished: Finished | None = None

    @property
    def id(self) -> int:
        """Return the id of the generation."""
        return self.generation.id

    def __iter__(self) -> Iterator[Delta]:
        try:
            while self._finished is None:
                if not self.arrived:
                    self._streams.pump()
                yield from self._take()
        finally:
            self.close()

    @property
    def completion(self) -> Completion:
        """Return the whole answer; raise its error, or InvalidParameter before the stream ends."""
        end = self._finished
        if end is None:
            raise InvalidParameter("the stream has not ended; iterate it to its end first")
        if end.error is not None:
            raise end.error
        has_logprobs = self._request.top_logprobs is not None
        return Completion(
            text="".join(self._parts),
            tokens=tuple(self._tokens),
            finish_reason=end.reason,
            usage=end.usage,
            seed=self._request.seed,
            logprobs=tuple(self._logprobs) if has_logprobs else None,
            stop=end.stop,
        )

    def close(self) -> None:
        """Cancel the answer if it has not ended; the text received so far stays readable."""
        if self._finished is None:
            self._streams.cancel(self)
        self._streams.forget(self)

    def drain(self) -> bool:
        """Process the events that have arrived; return True if the answer has ended."""
        for _ in self._take():
            pass
        return self._finished is not None

    def _take(self) -> Iterator[Delta]:
        """Yield the events that have arrived, as deltas; raise the error of a failed answer."""
        while self.arrived:  # one at a time: a caller that stops leaves the rest here
            event = self.arrived.popleft()
            self._parts.append(event.text)
            if isinstance(event, Token):
                self._tokens.append(event.token)
                if event.logprobs is not None:
                    self._logprobs.append(event.logprobs)
                yield Delta(event.text, event.token, event.logprobs)
                continue
            self._finished = event
            self._streams.forget(self)
            if event.text:
                yield Delta(event.text)
            if event.reason is FinishReason.FAILED:
                raise event.error or GenerationFailed("the generation failed")


def take_ended(live: dict[int, AnswerStream]) -> Iterator[tuple[int, Completion | JaxLlamaError]]:
    """Remove ended streams from `live`; yield (index, completion or error) of each."""
    for index, stream in list(live.items()):
        try:
            if stream.drain():
                del live[index]
                yield index, stream.completion
        except JaxLlamaError as error:
            live.pop(index, None)
            yield index, error
