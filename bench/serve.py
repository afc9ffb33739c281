"""Serving: figures for the clients of an OpenAI-compatible server, with many streams at a time."""

import gc
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise

import click
from crowd import tokens_of
from harness import Board, Peer, how_often, in_turn, repeated, script, seconds
from load import Answer, Clients, Load, LoadShape, load_options
from served import Served, model_of, server_options

from jaxllama import LLM
from jaxllama.intake import PreparedRequest

STREAMS = (1, 16, 64)
SHORT_STREAMS = (1, 16)
OVERHEAD_STREAMS = 16
MANY_CORES = 0.5  # processors of the clients; above, the clients may be the bottleneck

RunLoad = Callable[[Clients], Load]


@click.command()
@script("serve")
@repeated
@server_options
@load_options
@click.option(
    "--concurrency",
    multiple=True,
    type=click.IntRange(min=1),
    help="Streams of a closed load; may be given again.",
)
@click.option(
    "--rate",
    multiple=True,
    type=click.FloatRange(min=0.01),
    help="Requests per second of an open load; may be given again.",
)
@click.option("--overhead", is_flag=True, help="Measure the overhead of HTTP over the engine.")
def main(  # noqa: PLR0913 - an option for each kind of load
    *,
    board: Board,
    repetitions: int | None,
    served: Served,
    shape: LoadShape,
    concurrency: tuple[int, ...],
    rate: tuple[float, ...],
    overhead: bool,
) -> None:
    """Measure greedy answers streamed over HTTP.

    A closed load has --concurrency clients that send their next request when they have the answer;
    an open load has --rate requests a second at random times. With none of these nor --overhead,
    measures closed loads of several sizes and, if this command starts the server, the overhead at
    16 streams.
    """
    if overhead and served.subject is None:
        raise click.UsageError(
            "--overhead needs the server that this command starts; leave out --url."
        )
    times = how_often(board, repetitions)
    if not (concurrency or rate or overhead):
        concurrency = SHORT_STREAMS if board.short else STREAMS
        overhead = served.subject is not None
    if overhead:  # the server and an engine in this process share a GPU's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    board.environment = served.environment()
    context = 2 * shape.prompt + shape.tokens + 64  # a word may be more than a token
    with ExitStack() as opened:
        with board.doing("starting"):
            url = opened.enter_context(served.running(context))
        clients = [Clients(each, model_of(each), shape) for each in (url, served.peer) if each]
        loads: list[tuple[str, RunLoad]] = [
            *((many(count, "stream"), closed(count)) for count in concurrency),
            *((f"{each:g} requests/s come", open_(each)) for each in rate),
        ]
        for name, asked in loads:
            case = f"{clients[0].model}, {name}, {shape}"
            with board.doing(case):
                rounds = in_turn(times, *(measure_load(asked, each) for each in clients))
            record_loads(board, case, rounds, served.peer_name)
        if overhead and served.subject is not None:
            with board.doing("the engine alone"):
                llm = served.subject.load(slots=served.slots, length=context)
                compare_with_engine(board, clients[0], opened.enter_context(llm), times)


def closed(streams: int) -> RunLoad:
    """Return a function that runs a closed load of `streams` streams."""
    return lambda clients: clients.closed(streams)


def open_(rate: float) -> RunLoad:
    """Return a function that runs an open load of `rate` requests a second."""
    return lambda clients: clients.open(rate)


def measure_load(asked: RunLoad, clients: Clients) -> Callable[[], Load]:
    """Return a measure that runs a load with these clients."""
    return lambda: asked(clients)


def record_loads(
    board: Board, case: str, rounds: Sequence[Sequence[Load]], peer: str | None
) -> None:
    """Record the figures of all clients and the peer's; raise if no answer is complete."""
    for loads in rounds:
        if not any(load.whole for load in loads):
            kinds = ", ".join(errors(loads)) or "no request"
            raise click.ClickException(f"{case}: no answer came to its end ({kinds})")
    for name, (unit, figure) in FIGURES.items():
        found = [[figure(load) for load in loads if load.whole] for loads in rounds]
        ours, *others = [[value for value in values if not math.isnan(value)] for values in found]
        theirs = others[0] if others else []
        if ours:
            board.add(f"{case}{name}", unit, ours, theirs, Peer(peer) if peer else None)
    for loads, owner in zip(rounds, ("", f", {peer}"), strict=False):
        lost = errors(loads)
        board.add(f"{case}{owner}, lost", "requests", [lost.total()])
        for kind, count in sorted(lost.items()):
            board.add(f"{case}{owner}, lost: {kind}", "requests", [count])
    warn_of_clients(case, [load for loads in rounds for load in loads])


def errors(loads: Iterable[Load]) -> Counter[str]:
    """Count the incomplete answers of all rounds by kind of error."""
    return Counter(answer.error for load in loads for answer in load.answers if answer.error)


def warn_of_clients(case: str, loads: Iterable[Load]) -> None:
    """Print a warning if the clients used enough processor time to limit the figures."""
    cores = max(load.cores for load in loads)
    if cores > MANY_CORES:
        click.echo(
            f"{case}: the clients took {cores:.2f} of a core; they may be what is measured",
            err=True,
        )


# Figures.


def tokens_per_second(load: Load) -> float:
    """Return the tokens per second of all streams together."""
    return sum(answer.tokens for answer in load.whole) / load.seconds


def requests_per_second(load: Load) -> float:
    """Return the complete answers per second of all streams together."""
    return len(load.whole) / load.seconds


def firsts(load: Load) -> list[float]:
    """Return the seconds until the first piece of text of each answer."""
    return [answer.moments[0] - answer.due for answer in load.whole if answer.moments]


def gaps(load: Load) -> list[float]:
    """Return the seconds between successive pieces of text of each answer."""
    return [late - early for answer in load.whole for early, late in pairwise(answer.moments)]


def wholes(load: Load) -> list[float]:
    """Return the seconds until each answer was complete."""
    return [answer.ended - answer.due for answer in load.whole]


def percentile(percent: float, values: Callable[[Load], list[float]]) -> Callable[[Load], float]:
    """Return a function that computes a percentile of a load's times, in milliseconds.

    The percentile of no times is NaN.
    """

    def figure(load: Load) -> float:
        ordered = sorted(values(load))
        if not ordered:
            return math.nan
        return 1000 * ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]

    return figure


FIGURES: dict[str, tuple[str, Callable[[Load], float]]] = {
    "": ("tokens/s", tokens_per_second),
    ", answers": ("requests/s", requests_per_second),
    ", first token, p50": ("ms", percentile(50, firsts)),
    ", first token, p99": ("ms", percentile(99, firsts)),
    ", between tokens, p50": ("ms", percentile(50, gaps)),
    ", between tokens, p99": ("ms", percentile(99, gaps)),
    ", whole answer, p50": ("ms", percentile(50, wholes)),
    ", whole answer, p99": ("ms", percentile(99, wholes)),
}


# The overhead of HTTP.


def compare_with_engine(board: Board, clients: Clients, llm: LLM, times: int) -> None:
    """Measure the same answers over HTTP and from an engine in this process, in turn.

    Every round has new prompts, so that both compute them: how much of a prompt is cached depends
    on the order of the requests.
    """
    case = f"{clients.model}, {many(OVERHEAD_STREAMS, 'stream')}, {clients.shape}, HTTP"
    rounds = prompts_that_no_other_load_sends()
    loads: list[Load] = []
    alone = EngineAlone(llm, clients.shape)

    def over_http() -> float:
        numbers = next(rounds)
        loads.append(clients.once(numbers))
        lost = errors(loads[-1:])
        if lost:
            raise click.ClickException(f"{case}: requests were lost ({', '.join(lost)})")
        alone.prompts = [clients.shape.text(number) for number in numbers]
        return loads[-1].seconds

    def by_the_engine() -> float:
        spent = alone.run()
        if whole_texts(loads[-1].answers) != alone.texts:
            raise click.ClickException(f"{case}: the answers are not those of the engine alone")
        return spent

    gc.collect()
    gc.freeze()  # collections of the loaded objects would stop the clients
    ours, theirs = in_turn(times, over_http, by_the_engine)
    board.add(case, "s", ours, theirs, Peer("the engine alone"))
    board.add(f"{case} adds", "%", [max(0.0, median_percentage(ours, theirs) - 100)])
    works = [load.cores * load.seconds for load in loads[1:]]
    board.add(f"{case} adds, clients' own work", "%", [median_percentage(works, theirs)])
    warn_of_clients(case, loads)


def prompts_that_no_other_load_sends() -> Iterator[range]:
    """Yield ranges of new prompt numbers: negative ones, which no other load uses."""
    end = 0
    while True:
        end -= OVERHEAD_STREAMS
        yield range(end, end + OVERHEAD_STREAMS)


def median_percentage(ones: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the percentages of the first values in the second."""
    return statistics.median(100 * one / two for one, two in zip(ones, others, strict=True))


class EngineAlone:
    """The engine in this process, with the same requests as the server."""

    def __init__(self, llm: LLM, shape: LoadShape) -> None:
        self.llm, self.is_chat = llm, shape.chat
        self.prompts: Sequence[str] = ()
        self.knobs = {
            "max_tokens": shape.tokens,
            "temperature": 0.0,
            "ignore_eos": not shape.eos,
        }
        self.texts: list[str] = []  # of the last run

    def run(self) -> float:
        """Generate all answers; return the seconds from the first submission to the last end."""
        ready = [self.ready(prompt) for prompt in self.prompts]
        texts: dict[int, list[str]] = {}

        def work() -> None:
            engine = self.llm.engine
            for request, tail in ready:
                texts[engine.submit(request, tail).id] = []
            while not engine.idle:
                events = engine.step()
                tokens_of(events)
                for event in events:
                    texts[event.id].append(event.text)

        spent = seconds(work)
        self.texts = ["".join(parts) for parts in texts.values()]
        return spent

    def ready(self, prompt: str) -> PreparedRequest:
        """Return the engine's request for a prompt, made as in the server."""
        if self.is_chat:
            return self.llm.intake.chat([{"role": "user", "content": prompt}], self.knobs)
        return self.llm.intake.completion(prompt, self.knobs)


def whole_texts(answers: Iterable[Answer]) -> list[str]:
    """Return the whole texts of answers."""
    return ["".join(answer.texts) for answer in answers]


def many(count: int, what: str) -> str:
    """Return a count with its noun, in the plural if needed."""
    return f"{count} {what}{'s' * (count > 1)}"


if __name__ == "__main__":
    main()
