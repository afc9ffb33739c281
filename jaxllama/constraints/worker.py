"""GrammarWorker: a process that compiles each grammar and follows it a few steps before its use.

Started and asked by the compiler. Run as a program, this file is that process: it receives the
vocabulary, then one grammar after the other, as lines of JSON. It answers each grammar with an
error message, "" if the grammar is sound. It tries each grammar in a fork, which the system ends
when it takes more time or memory than a request may cost. Knows no model and no requests.
"""

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from llguidance import LLMatcher, LLTokenizer

from jaxllama.constraints.words import TokenBytes, limits
from jaxllama.errors import WorkerDied

CPU_SECONDS = 1.0  # of one grammar
WALL_SECONDS = 10.0  # of one grammar, on a machine that is busy with other things
START_SECONDS = 60.0
MEMORY = 256 << 20  # bytes, in addition to the vocabulary
REHEARSED = 8  # steps of an answer for which a grammar is followed before it is accepted
# Signals from outside of the process, which the grammar did not cause.
OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


class TooCostly(Exception):
    """A grammar took more time or memory than allowed."""


class GrammarWorker:
    """A handle on the worker process; usable by one thread at a time."""

    def __init__(self, words: TokenBytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jaxllama.constraints.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal must not reach it
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            self._ask(words.as_json(), START_SECONDS)
        except TooCostly as error:
            raise WorkerDied(
                f"the process that compiles grammars does not start: {error}"
            ) from error

    @property
    def alive(self) -> bool:
        """Say whether the process still runs."""
        return self._process.poll() is None

    def complaint(self, grammar: str) -> str:
        """Return llguidance's error in a grammar, "" if it has none.

        Raises TooCostly if compiling takes too much time or memory, WorkerDied if the process has
        ended.
        """
        return str(self._ask({"grammar": grammar}, WALL_SECONDS)["complaint"])

    def kill(self) -> None:
        """Kill the process and close its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # closing flushes unsent data, which fails
                    pipe.close()

    def _ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            write(self._process.stdin, question)
        except OSError as error:
            raise WorkerDied(f"the process that compiles grammars has ended: {error}") from error
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self.kill()
            raise TooCostly(f"no answer in {seconds} s")
        try:
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            self.kill()
            raise WorkerDied(f"the process that compiles grammars has ended: {error!r}") from error
        code = answer.get("ended", 0)
        if code in OUTSIDE:
            raise WorkerDied(f"a fork that compiles a grammar was ended by signal {-code}")
        if code:
            raise TooCostly(f"the fork ended with code {code}")
        return answer


def serve(source: BinaryIO, target: BinaryIO) -> None:
    """Run the worker process: compile each grammar from `source`, and write its error to `target`.

    The first line of `source` is the vocabulary, each further line a grammar. Ends when `source`
    is closed. Each grammar is compiled in a fork: if it exceeds a limit, only the fork ends.
    """
    tokenizer = TokenBytes.from_json(json.loads(source.readline())).tokenizer()
    write(target, {"complaint": ""})
    held = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in iter(source.readline, b""):
        process = os.fork()
        if not process:
            try_grammar(tokenizer, json.loads(line)["grammar"], target)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code:
            write(target, {"ended": code})


def try_grammar(tokenizer: LLTokenizer, grammar: str, target: BinaryIO) -> NoReturn:
    """Compile one grammar in this forked process, write its error ("" if none), and exit.

    The error goes to `target` as JSON; if compiling takes too much time, the process is killed by a
    signal.
    """
    try:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
        rehearse(matcher)
        signal.setitimer(signal.ITIMER_PROF, 0)
        write(target, {"complaint": matcher.get_error()})
        os._exit(0)
    finally:
        os._exit(1)


def rehearse(matcher: LLMatcher) -> None:
    """Follow a grammar for a few tokens, so that the matcher notes errors that appear only then."""
    for _ in range(REHEARSED):
        if matcher.is_error() or matcher.is_stopped():
            return
        bits = matcher.compute_bitmask()
        if matcher.is_error():
            return
        tokens = matcher.compute_ff_tokens()[:REHEARSED] or first_allowed(bits)
        if matcher.is_error() or not tokens:
            return
        matcher.consume_tokens(tokens)


def first_allowed(bits: bytes) -> list[int]:
    """Return a list with the lowest token that the mask `bits` allows, [] if it allows none."""
    place = next((place for place, byte in enumerate(bits) if byte), None)
    if place is None:
        return []
    return [8 * place + next(bit for bit in range(8) if bits[place] >> bit & 1)]


def write(pipe: Any, message: dict[str, Any]) -> None:
    """Write one message to a pipe as a line of JSON, and flush it."""
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.stdin.buffer, sys.stdout.buffer)
