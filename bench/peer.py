"""A peer: another engine on the same model file, in a process of its own.

Used by the scripts with --peer, through a class for each engine. A peer has several settings; all
are tried, and the fastest that works is measured. Knows nothing of the engines.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Self

import click
from child import importing_bench

TRIALS = 3  # runs of each setting; the first one warms up
STOP_SECONDS = 10.0


class PeerDied(Exception):
    """The peer's process ended during a call; the message is the signal or exit code."""


class PeerRefused(click.ClickException):
    """The peer reported an error; the message is the peer's."""


@dataclass(frozen=True)
class WorkerProgram:
    """The program of a peer's process: code that calls `peer_worker.serve`, and its Python."""

    start: str
    python: str = sys.executable


class Worker:
    """A child process with one object of a peer, such as a model."""

    def __init__(
        self, program: WorkerProgram, kind: str, *arguments: object, **named: object
    ) -> None:
        ours, theirs = Pipe()
        self.connection: Connection[Any, Any] = ours
        with theirs:
            handle = theirs.fileno()
            self.process = subprocess.Popen(
                [program.python, "-c", program.start, str(handle)],
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

        Raises PeerDied if the process ends, and PeerRefused if the peer reports an error.
        """
        try:
            self.connection.send((name, arguments, named))
            error, answer = self.connection.recv()
        except (EOFError, OSError) as lost:
            raise PeerDied(cause_of_death(self.process.wait())) from lost
        if error is not None:
            raise PeerRefused(error)
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


class PeerModel:
    """One model in a peer, with a cache for a number of sequences of a given length.

    Starts a process for each setting: a name, and the arguments with which the worker makes its
    model. The first rate is measured with all settings; only the fastest one is kept.
    """

    name: str  # of the engine, in messages

    def __init__(
        self,
        program: WorkerProgram,
        settings: Mapping[str, Mapping[str, object]],
        *arguments: object,
        **named: object,
    ) -> None:
        self.workers: dict[str, Worker] = {}
        self.failures: dict[str, str] = {}
        try:
            for setting, own in settings.items():
                with self._noting_failures(setting):
                    self.workers[setting] = Worker(program, "model", *arguments, **named, **own)
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
        """The measured setting, and the settings that failed."""
        failed = "".join(f"; with {name} it {how}" for name, how in self.failures.items())
        return f"{' or '.join(self.workers)}{failed}"

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
        if not self.is_chosen:
            trials = [self._each(name, *arguments) for _ in range(TRIALS)]
            best = {each: max(trial[each] for trial in trials[1:]) for each in self.workers}
            self._keep(max(best, key=lambda setting: float(best[setting])))
        (rate,) = self._each(name, *arguments).values()
        return float(rate)

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
            with self._noting_failures(setting):
                found[setting] = worker.call(name, *arguments)
        if not found:
            raise click.ClickException(f"{self.name} cannot be measured{self.setting}")
        return found

    @contextmanager
    def _noting_failures(self, setting: str) -> Iterator[None]:
        """Within the context, note that a setting failed, and how, instead of raising it."""
        try:
            yield
        except PeerDied as death:
            self._drop(setting, f"dies of {death}")
        except PeerRefused as refusal:
            self._drop(setting, f"fails: {refusal}")

    def _drop(self, setting: str, how: str) -> None:
        """Note how a setting failed and end its process."""
        self.failures[setting] = how
        if worker := self.workers.pop(setting, None):
            worker.close()
