"""Worker: a process of its own in which a grammar is compiled first, because that may run away.

Started and asked by the compiler; it is killed when it takes more time or memory than a request
may cost. Run as a program this file is that process: it gets the vocabulary, then one grammar after
the other, as lines of JSON, and says what is wrong with each. Knows no model and no requests.
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

from llguidance import LLMatcher

from jaxllama.constraints.words import Words, limits

CPU_SECONDS = 1.0  # of one grammar
WALL_SECONDS = 10.0  # likewise, on a machine that is busy with other things
START_SECONDS = 60.0
MEMORY = 256 << 20  # bytes, beyond what the vocabulary takes


class Gone(Exception):
    """The process has ended, or had to be killed."""


class Worker:
    """The process, from outside; usable by one thread at a time."""

    def __init__(self, words: Words) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jaxllama.constraints.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is none of its business
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._ask(words.as_json(), START_SECONDS)

    def complaint(self, grammar: str) -> str:
        """What is wrong with a grammar, or nothing; Gone where it asks for too much."""
        return str(self._ask({"grammar": grammar}, WALL_SECONDS)["complaint"])

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            write(self._process.stdin, question)
            if not select.select([self._process.stdout], [], [], seconds)[0]:
                raise Gone(f"no answer in {seconds} s")
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            self.kill()
            raise Gone(f"the process ended: {error!r}") from error
        except Gone:
            self.kill()
            raise
        return answer


def serve(source: BinaryIO, target: BinaryIO) -> None:
    """The process: try what is sent until nobody is there any more."""
    tokenizer = Words.from_json(json.loads(source.readline())).tokenizer()
    write(target, {"complaint": ""})
    held = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in iter(source.readline, b""):
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
        matcher = LLMatcher(tokenizer, json.loads(line)["grammar"], log_level=0, limits=limits())
        if not matcher.is_error():
            matcher.compute_bitmask()
        signal.setitimer(signal.ITIMER_PROF, 0)
        write(target, {"complaint": matcher.get_error()})


def write(pipe: Any, message: dict[str, Any]) -> None:
    """Send one line."""
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.stdin.buffer, sys.stdout.buffer)
