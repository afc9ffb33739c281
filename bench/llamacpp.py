"""The peer: llama.cpp on the same files, in its own process.

Used by the scripts with --peer. llama.cpp can keep weights in extra buffers, in an order for its
fastest kernels; on some processors with AMX its native build dies of an illegal instruction with
them. So both settings are tried, and the faster one that works is measured.
"""

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
from child import importing_bench

START = "import llamacpp_worker; llamacpp_worker.main()"
SETTINGS = {"extra buffers": True, "plain buffers": False}
TRIALS = 2  # runs of each setting; the first one warms up
STOP_SECONDS = 10.0
SUPPORTED = {  # the knobs of jaxllama for which llama.cpp has samplers
    *("temperature", "top_k", "top_p", "min_p", "logit_bias"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
}


class PeerDied(Exception):
    """The peer's process ended during a call; the message is the signal or exit code."""


class Worker:
    """A child process with one model or one chain of samplers of llama.cpp."""

    def __init__(self, kind: str, *arguments: object, **named: object) -> None:
        if importlib.util.find_spec("llama_cpp") is None:
            raise click.UsageError(
                "--peer llama.cpp needs llama-cpp-python; install the extra: "
                'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install "jaxllama[bench]"'
            )
        ours, theirs = Pipe()
        self.connection: Connection[Any, Any] = ours
        with theirs:
            handle = theirs.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, str(handle)],
                pass_fds=[handle],
                env=importing_bench(),
            )
        try:
            self.call(kind, *arguments, **named)
        except BaseException:
            self.close()
            raise

    def call(self, name: str, *arguments: object, **named: object) -> Any:
        """Call a method of the object in the process and return its result.

        Raises PeerDied if the process ends, and ClickException if llama.cpp reports an error.
        """
        try:
            self.connection.send((name, arguments, named))
            error, answer = self.connection.recv()
        except (EOFError, OSError) as lost:
            raise PeerDied(cause_of_death(self.process.wait())) from lost
        if error is not None:
            raise click.ClickException(error)
        return answer

    def close(self) -> None:
        """Close the pipe, wait for the process to end, and kill it if it does not end in time."""
        self.connection.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def cause_of_death(code: int) -> str:
    """Return the name of the signal that ended a process, or its exit code."""
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


class LlamaCppPeer:
    """One model of llama.cpp with a cache for a number of sequences of a given length.

    Starts a process for each setting. The first rate is measured with all settings; only the
    fastest one is kept.
    """

    def __init__(
        self, path: Path, *, sequences: int, length: int, threads: int, flash: bool = True
    ) -> None:
        sizes = {"sequences": sequences, "length": length, "threads": threads, "flash": flash}
        self.workers: dict[str, Worker] = {}
        self.deaths: dict[str, str] = {}
        try:
            for setting, extra in SETTINGS.items():
                with self._noting_deaths(setting):
                    worker = Worker("model", str(path), **sizes, extra_buffers=extra)
                    self.workers[setting] = worker
            self.vocab = int(self._each("vocab").popitem()[1])
        except BaseException:
            self.close()
            raise
        self.is_chosen = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()

    @property
    def setting(self) -> str:
        """The measured setting, and the settings with which llama.cpp died."""
        died = "".join(f"; with {name} it dies of {how}" for name, how in self.deaths.items())
        return f"{' or '.join(self.workers)}{died}"

    def prompt_rate(self, tokens: Sequence[int]) -> float:
        """Measure the tokens per second of a prompt into an empty cache."""
        return self._rate("prompt_rate", list(tokens))

    def fill(self, tokens: Sequence[int]) -> None:
        """Put the same prompt into every sequence."""
        self._each("fill", list(tokens))

    def decode_rate(self, depth: int, count: int) -> float:
        """Measure the tokens per second of `count` tokens per sequence, then drop the tokens."""
        return self._rate("decode_rate", depth, count)

    def _rate(self, name: str, *arguments: object) -> float:
        """Measure a rate; the first call measures all settings and keeps the fastest."""
        rates = self._each(name, *arguments)
        if not self.is_chosen:
            for _ in range(TRIALS - 1):
                rates = self._each(name, *arguments)
            self._keep(max(rates, key=lambda setting: float(rates[setting])))
        return float(max(rates.values()))

    def _keep(self, best: str) -> None:
        """End every process but the one with this setting."""
        for setting in self.workers.keys() - {best}:
            self.workers.pop(setting).close()
        self.is_chosen = True

    def _each(self, name: str, *arguments: object) -> dict[str, Any]:
        """Call a method with each setting that still works; return the results by setting.

        Raises ClickException if no setting works.
        """
        found = {}
        for setting, worker in list(self.workers.items()):
            with self._noting_deaths(setting):
                found[setting] = worker.call(name, *arguments)
        if not found:
            raise click.ClickException(f"llama.cpp cannot be measured{self.setting}")
        return found

    @contextmanager
    def _noting_deaths(self, setting: str) -> Iterator[None]:
        """Within the context, note a PeerDied with its setting instead of raising it."""
        try:
            yield
        except PeerDied as death:
            self.deaths[setting] = str(death)
            if worker := self.workers.pop(setting, None):
                worker.close()


class LlamaCppSamplers:
    """Chains of llama.cpp's samplers, one per row, applied to the rows of logits in turn."""

    def __init__(self, knobs: Mapping[str, Any], rows: np.ndarray, history: Sequence[int]) -> None:
        self.worker = Worker("chain", dict(knobs), rows, list(history))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.close()

    def sample(self) -> list[int]:
        """Return a token for every row."""
        return list(self.worker.call("sample"))

    def seconds(self) -> float:
        """Measure the seconds of choosing a token for every row."""
        return float(self.worker.call("seconds"))
