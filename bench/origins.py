"""The benchmarks of the systems that this project comes from, by their own procedures.

Each is run on a model of the right sizes; the figures that its authors published, with their
hardware, stand beside ours. Random weights take as long as trained ones.
"""

import dataclasses
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import click
from crowd import random_prompt, request, tokens_of
from harness import Board, Peer, how_often, in_turn, repeated, script
from memory import MIB, resident
from subject import Loading, Subject, loading_options, subject_of
from write_gguf import ModelShape
from write_llama2c import STORIES_15M, STORIES_110M, stories_file

from jaxllama import LLM

GIB = 1 << 30
NEEDED_7B = 28 * GIB  # for writing a file of 13 GB, and for loading it
TAIL = 128  # tokens that ExLlama's benchmark generates
ACHIEVED = re.compile(r"achieved tok/s: ([0-9.]+)")
OPENMP = (b"GOMP_parallel", b"__kmpc_fork_call")  # what gcc and clang make of `#pragma omp`


@dataclass(frozen=True)
class Published:
    """A figure of the authors of another system, and the hardware they had."""

    value: float
    hardware: str


@dataclass(frozen=True)
class Task:
    """The settings of one run of a procedure."""

    board: Board
    loading: Loading
    times: int
    tokens: int | None = None
    length: int = 2048
    run: Path | None = None  # llama2.c's program
    text: Path | None = None

    def subject(self, default: str | None) -> Subject:
        """Return the model that was given, or the default of a procedure."""
        loading = dataclasses.replace(self.loading, model=self.loading.model or default)
        subject = subject_of(loading)
        self.board.environment = subject.environment()
        return subject

    def add(self, case: str, unit: str, ours: Sequence[float], *theirs: Published) -> None:
        """Record a figure: once beside each of the authors' if the model has their sizes."""
        if not theirs or self.loading.model is not None:
            self.board.add(case, unit, ours)
            return
        for each in theirs:
            peer = Peer("published", each.hardware)
            self.board.add(f"{case}, beside {each.hardware}", unit, ours, [each.value], peer)


def generate(llm: LLM, prompts: Iterable[Sequence[int]], tokens: int) -> list[float]:
    """Generate `tokens` tokens after all prompts together; return the time of each token."""
    for prompt in prompts:
        llm.engine.submit(request(prompt, tokens, {}))
    times: list[float] = []
    while not llm.engine.idle:
        found = tokens_of(llm.engine.step())
        times += [time.perf_counter()] * len(found)
    return times


# RLLaMA: one prompt up to 50 tokens, ms per token without the first.

RLLAMA_7B = (Published(552, "RLLaMA, Ryzen 3950X, f16"), Published(216, "RLLaMA, RTX 3090 Ti, f16"))


def rllama(task: Task) -> None:
    """Continue a short prompt up to 50 tokens, as `--max-seq-len 50`."""
    if task.loading.model is None and available() < NEEDED_7B:
        raise click.ClickException(
            f"RLLaMA was measured with 7B in float16; a model of these sizes needs "
            f"{NEEDED_7B // GIB} GiB of free memory here; give another one with -m"
        )
    subject, length = task.subject("llama-7b-f16"), task.tokens or 50
    with task.board.doing(subject.name), subject.load(slots=1, length=length) as llm:
        prompt = llm.intake.ids("Computers are pretty complica", fits=False)[: length // 2]

        def per_token() -> float:
            times = generate(llm, [prompt], length - len(prompt))
            return (times[-1] - times[0]) / (len(times) - 1) * 1000

        (ours,) = in_turn(task.times, per_token)
    task.add(f"{subject.name}, {length} tokens", "ms/token", ours, *RLLAMA_7B)


# Rama and llama2.c: tokens per second of one text.

RAMA: dict[ModelShape, tuple[Published, ...]] = {
    STORIES_15M: (Published(480.81, "Rama, RTX 4090"), Published(346.75, "Rama, i9-13900KF")),
    STORIES_110M: (Published(201.08, "Rama, RTX 4090"), Published(86.0, "Rama, i9-13900KF")),
}


def rama(task: Task) -> None:
    """Generate 200 positions from the begin-of-text token, as `-s 200`."""
    shapes = list(RAMA)[:1] if task.board.short else list(RAMA)
    given = task.loading.model
    for path, published in (
        [(Path(given), ())] if given else [(stories_file(each), RAMA[each]) for each in shapes]
    ):
        subject, length = task.subject(str(path)), task.tokens or 200
        with task.board.doing(subject.name), subject.load(slots=1, length=length) as llm:
            begin = llm.intake.ids("a")[:1]

            threads = task.board.environment.threads
            peer = None if task.run is None else rate_of_run(task.run, path, length, threads)
            ours, theirs = in_turn(task.times, rate_of_text(llm, begin, length - 1), peer)
        case = f"{subject.name}, {length} tokens"
        if theirs and task.run is not None:
            used = f"{threads} threads" if has_openmp(task.run) else "1 thread"
            task.board.add(case, "tokens/s", ours, theirs, Peer("llama2.c", used))
        task.add(case if not theirs else f"{case}, published", "tokens/s", ours, *published)


def rate_of_text(llm: LLM, prompt: Sequence[int], tokens: int) -> Callable[[], float]:
    """Return a measure of the tokens per second of one text, without its first token."""

    def rate() -> float:
        times = generate(llm, [prompt], tokens)
        return (len(times) - 1) / (times[-1] - times[0])

    return rate


def has_openmp(program: Path) -> bool:
    """Say whether a program was compiled with -fopenmp; without, it has one thread."""
    called = program.read_bytes()
    return any(each in called for each in OPENMP)


def rate_of_run(program: Path, model: Path, length: int, threads: int) -> Callable[[], float]:
    """Return a measure of llama2.c's own program, which prints its rate.

    `threads` are those of a program that was compiled with -fopenmp.
    """
    beside = ["-z", str(model.with_name("tokenizer.bin"))]
    command = [str(program.resolve()), str(model), *beside, "-t", "0", "-n", str(length)]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}

    def rate() -> float:
        done = subprocess.run(command, env=env, capture_output=True, check=False)
        found = ACHIEVED.search(done.stderr.decode(errors="replace"))
        if done.returncode or not found:
            said = done.stderr[-200:].decode(errors="replace").strip()
            raise click.ClickException(f"{program} printed no rate: {said or 'nothing'}")
        return float(found[1])

    return rate


# llama-burn: 10 requests of 50 tokens in three strategies.

REQUESTS, ANSWER = 10, 50
STAGGER = 0.08  # seconds between two requests
LLAMA_BURN = {
    "one after the other": Published(20.0, "llama-burn, GPU not named"),
    "each when it comes": Published(6.5, "llama-burn, GPU not named"),
    "all together": Published(3.5, "llama-burn, GPU not named"),
}


def llama_burn(task: Task) -> None:
    """Answer 10 requests of 50 tokens: in turn, as they come 80 ms apart, and as one batch."""
    subject, tokens = task.subject("llama-1b-q4_0"), task.tokens or ANSWER
    with (
        task.board.doing(subject.name),
        subject.load(slots=REQUESTS, length=tokens + 32) as llm,
    ):
        prompts = [random_prompt(llm.config.vocab_size, 16, seed) for seed in range(REQUESTS)]

        def in_sequence() -> None:
            for prompt in prompts:
                generate(llm, [prompt], tokens)

        def arriving() -> None:
            started, left = time.perf_counter(), list(prompts)
            while left or not llm.engine.idle:
                due = started + STAGGER * (len(prompts) - len(left))
                if left and (llm.engine.idle or time.perf_counter() >= due):
                    time.sleep(max(0.0, due - time.perf_counter()))
                    llm.engine.submit(request(left.pop(0), tokens, {}))
                tokens_of(llm.engine.step())

        ways = (in_sequence, arriving, lambda: generate(llm, prompts, tokens))
        found = in_turn(task.times, *(timed(way) for way in ways))
    for (name, published), ours in zip(LLAMA_BURN.items(), found, strict=True):
        case = f"{subject.name}, {REQUESTS} requests of {tokens} tokens, {name}"
        task.add(case, "s", ours, published)


def timed(action: Callable[[], object]) -> Callable[[], float]:
    """Return a measure of the seconds that an action takes."""

    def measure() -> float:
        started = time.perf_counter()
        action()
        return time.perf_counter() - started

    return measure


# ExLlama: the rate of a long prompt, of tokens after it (worst) and after 4 tokens (best).

EXLLAMA = {
    "prompt": Published(10460, "ExLlama, RTX 4090, 7B GPTQ"),
    "worst": Published(133, "ExLlama, RTX 4090, 7B GPTQ"),
    "best": Published(160, "ExLlama, RTX 4090, 7B GPTQ"),
}


def exllama(task: Task) -> None:
    """Measure a prompt that fills the context but 128 tokens, and 128 tokens after it and alone."""
    subject, tail = task.subject("llama-7b-q4_0"), task.tokens or TAIL
    with task.board.doing(subject.name), subject.load(slots=1, length=task.length) as llm:
        size, seeds = task.length - tail, count(1)

        def rates() -> tuple[float, ...]:
            started = time.perf_counter()
            long = generate(llm, [random_prompt(llm.config.vocab_size, size, next(seeds))], tail)
            short = generate(llm, [random_prompt(llm.config.vocab_size, 4, next(seeds))], tail)
            after = ((len(each) - 1) / (each[-1] - each[0]) for each in (long, short))
            return size / (long[0] - started), *after

        (found,) = in_turn(task.times, rates)
        for (name, published), ours in zip(EXLLAMA.items(), zip(*found, strict=True), strict=True):
            case = f"{subject.name}, {task.length} tokens, {name}"
            task.add(case, "tokens/s", ours, published)
        if Path("/proc/self/status").exists():
            task.board.add(f"{subject.name}, memory", "MiB", [resident("VmRSS") / MIB])
        if task.text is not None:
            value = llm.perplexity(task.text.read_text(encoding="utf-8")).value
            task.board.add(f"{subject.name}, {task.text.name}", "perplexity", [value])


# LLaMbA: 100 chats with one question, 100 tokens each, with its sampler and with llama.cpp's.

CHATS = 100
SYSTEMS = {
    "short answers": "Answer in one word.",
    "middling answers": "Answer in one sentence.",
    "long answers": "Answer at length, with many details.",
}
SAMPLERS: dict[str, dict[str, object]] = {
    "its Standard sampler": {
        "temperature": 0.0,
        "temperature_noise": 1.7,
        "repetition_penalty": 1.1,
    },
    "llama.cpp's chain": {
        "temperature": 0.8,
        "repetition_penalty": 1.1,
        "top_p": 0.9,
        "min_p": 0.1,
    },
}


def llamba(task: Task) -> None:
    """Answer 100 equal chats together, with up to 100 tokens each; tokens of all per second."""
    subject, most = task.subject(None), task.tokens or 100
    chats = 4 if task.board.short else CHATS
    with task.board.doing(subject.name), subject.load(slots=32, length=most + 128) as llm:
        for sampler, knobs in SAMPLERS.items():
            for answers, system in SYSTEMS.items():
                messages = [
                    {"role": "system", "content": system},
                    {"role": "user", "content": "What is a good way to spend a rainy day?"},
                ]
                items = [(messages, {"max_tokens": most, **knobs})] * chats

                def rate(items: list = items) -> float:  # type: ignore[type-arg]
                    started = time.perf_counter()
                    found = [each.usage.generated for _, each in llm.chat_each(items)]
                    return sum(found) / (time.perf_counter() - started)

                (ours,) = in_turn(task.times, rate)
                case = f"{subject.name}, {chats} chats, {answers}, {sampler}"
                task.board.add(case, "tokens/s", ours)


def available() -> int:
    """Return the bytes of memory that are free for a new program; a great number elsewhere."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return NEEDED_7B
    line = next(each for each in path.read_text().splitlines() if each.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


ORIGINS: dict[str, Callable[[Task], None]] = {
    "rllama": rllama,
    "rama": rama,
    "exllama": exllama,
    "llama-burn": llama_burn,
    "llamba": llamba,
}


@click.command()
@script("origins")
@repeated
@loading_options
@click.argument("origin", type=click.Choice(list(ORIGINS)))
@click.option("--tokens", type=click.IntRange(min=4), help="Tokens of a text [default: theirs].")
@click.option(
    "--length",
    type=click.IntRange(min=16),
    default=2048,
    show_default=True,
    help="Context of ExLlama's benchmark.",
)
@click.option(
    "--run",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="rama: llama2.c's program (gcc -Ofast [-fopenmp] run.c -lm), measured in turn on the "
    "same file.",
)
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="exllama: also measure the perplexity of this text.",
)
def main(
    *,
    board: Board,
    repetitions: int | None,
    loading: Loading,
    origin: str,
    **given: object,
) -> None:
    """Repeat the benchmark of ORIGIN, on a model of the sizes that its authors measured.

    Their published figures stand beside ours, unless another model is given with -m. They were
    measured on other hardware: the ratio compares both.
    """
    ORIGINS[origin](Task(board, loading, how_often(board, repetitions), **given))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
