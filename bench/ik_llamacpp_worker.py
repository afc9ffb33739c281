"""The peer's process: starts a llama-server and measures it through its own HTTP API.

Started by `ik_llamacpp.py`, which sends calls through a pipe. Imports nothing but the standard
library, and knows nothing of jaxllama.
"""

import atexit
import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from child import free_port, stop
from peer_worker import PeerError, seconds, serve

CACHE_PADDING = 256  # the server rounds the cache of a slot up to this
START_SECONDS = 600.0  # until a model is loaded
POLL_SECONDS = 0.05
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
GREEDY = {"temperature": 0.0, "repeat_penalty": 1.0, "ignore_eos": True}


class LlamaServer:
    """A llama-server with one slot for each sequence of a given length."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        sequences: int,
        length: int,
        threads: int,
        options: Sequence[str],
    ) -> None:
        self.sequences = sequences
        self.prompt: list[int] = []
        each = -(-(length + 1) // CACHE_PADDING) * CACHE_PADDING
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        sizes = {"-c": sequences * each, "-np": sequences, "-t": threads, "-tb": threads}
        arguments = [str(text) for pair in sizes.items() for text in pair]
        self.folder = tempfile.TemporaryDirectory()  # removed with this object
        self.log = Path(self.folder.name, "log")
        with self.log.open("wb") as written:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port), *arguments, *options],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
            )
        atexit.register(stop, self.process)
        self._wait_until_ready()
        self.callers = ThreadPoolExecutor(sequences)

    def vocab(self) -> int:
        """Return the number of tokens in the model's vocabulary."""
        return int(self._ask("/v1/models")["data"][0]["meta"]["n_vocab"])

    def prompt_rate(self, tokens: Sequence[int]) -> float:
        """Measure the tokens per second of a prompt into an empty cache, by the server's clock."""
        timings = self._complete(0, tokens, 1, cached=False)["timings"]
        if timings["prompt_n"] != len(tokens):
            raise PeerError(f"computed {timings['prompt_n']} of {len(tokens)} prompt tokens")
        return float(1000 * len(tokens) / timings["prompt_ms"])

    def fill(self, tokens: Sequence[int]) -> None:
        """Put the same prompt into every slot."""
        self.prompt = list(tokens)
        self._decode(1)

    def decode_rate(self, depth: int, count: int) -> float:
        """Measure the tokens per second of `count` tokens in every slot, after the same prompt.

        Each slot still has the prompt in its cache and computes only its last token again.
        """
        del depth  # the slots keep the whole prompt
        return count * self.sequences / seconds(lambda: self._decode(count))

    def _decode(self, count: int) -> None:
        """Decode in all slots together."""
        for answer in self.callers.map(
            lambda slot: self._complete(slot, self.prompt, count, cached=True),
            range(self.sequences),
        ):
            if answer["tokens_predicted"] != count:
                raise PeerError(f"decoded {answer['tokens_predicted']} tokens instead of {count}")

    def _complete(self, slot: int, tokens: Sequence[int], count: int, *, cached: bool) -> Any:
        """Run one greedy completion in a slot."""
        asked = {"prompt": list(tokens), "n_predict": count, "id_slot": slot}
        return self._ask("/completion", {**asked, "cache_prompt": cached, **GREEDY})

    def _ask(self, path: str, body: object = None) -> Any:
        """Get an answer, or post a body for one; raise PeerError if there is none."""
        encoded = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            self.url + path, encoded, {"Content-Type": "application/json"}
        )
        try:
            with DIRECT.open(asked) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise PeerError(f"{path} says {error.code}: {error.read().decode()}") from error
        except OSError as error:
            raise PeerError(f"{path} does not answer: {error}{self._last_words()}") from error

    def _wait_until_ready(self) -> None:
        """Wait until the model is loaded; raise PeerError if the server ends before."""
        limit = time.monotonic() + START_SECONDS
        while time.monotonic() < limit:
            if self.process.poll() is not None:
                raise PeerError(f"ends with code {self.process.returncode}{self._last_words()}")
            try:
                self._ask("/health")
            except PeerError:  # it does not listen yet, or it is still loading
                time.sleep(POLL_SECONDS)
            else:
                return
        raise PeerError(f"is not ready after {START_SECONDS:.0f} s{self._last_words()}")

    def _last_words(self) -> str:
        """Return the last line of the server's log, after a colon; empty without one."""
        lines = self.log.read_text(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        return f": {said[-1]}" if said else ""


MAKERS: dict[str, Callable[..., Any]] = {"model": LlamaServer}


def main() -> None:
    """Run the calls of the pipe; the server ends with this process."""
    serve(MAKERS)
