"""The peer's process: OpenVINO GenAI's pipeline for many requests, in an environment of its own.

Started by `openvino_peer.py`, which sends calls through a pipe. The clock runs as for jaxllama:
from submitting a prompt to its first token, and from the time when all sequences have their first
token until one has its last. Knows nothing of jaxllama.
"""

import importlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from peer_worker import PeerError, seconds, serve


class OpenvinoModel:
    """One model with a cache for a number of sequences of a given length.

    All prompts together fit in one step, so that sequences start together. No part of a prompt is
    taken from another one.
    """

    def __init__(
        self,
        path: str,
        *,
        sequences: int,
        length: int,
        threads: int,
        properties: Mapping[str, str],
    ) -> None:
        self.openvino = importlib.import_module("openvino")
        self.genai = importlib.import_module("openvino_genai")
        self.sequences = sequences
        self.prompt: list[int] = []
        scheduler = self.genai.SchedulerConfig()
        scheduler.max_num_seqs = sequences
        scheduler.max_num_batched_tokens = sequences * length
        scheduler.enable_prefix_caching = False
        settings = {"INFERENCE_NUM_THREADS": threads, **properties}
        self.pipeline = self.genai.ContinuousBatchingPipeline(path, scheduler, "CPU", settings)
        self._ids = itertools.count()

    def vocab(self) -> int:
        """Return the number of tokens in the tokenizer's vocabulary."""
        return len(self.pipeline.get_tokenizer().get_vocab())

    def prompt_rate(self, tokens: Sequence[int]) -> float:
        """Measure the tokens per second of a prompt, up to its first token."""
        return len(tokens) / seconds(lambda: self._first_token(tokens))

    def fill(self, tokens: Sequence[int]) -> None:
        """Set the prompt that every sequence starts from."""
        self.prompt = list(tokens)

    def decode_rate(self, depth: int, count: int) -> float:
        """Measure the tokens per second of `count` tokens per sequence, after `depth` tokens."""
        prompt = self.prompt[: depth - 1]
        requests = [self._submit([*prompt, row], count) for row in range(self.sequences)]
        received = [0] * self.sequences
        started, counted, rate = 0.0, 0, 0.0
        for new in self._steps(requests):
            now = time.perf_counter()
            received = [sum(each) for each in zip(received, new, strict=True)]
            if started:
                counted += sum(new)
            elif all(received):
                started = now
            if not rate and counted and max(received) == count:
                rate = counted / (now - started)
        if not rate:
            raise PeerError(
                f"{self.sequences} sequences never decode together: they end with {received} of "
                f"{count} tokens"
            )
        return rate

    def _submit(self, tokens: Sequence[int], count: int) -> Any:
        """Submit a prompt, greedy, that only ends by its length; return its request."""
        config = self.genai.GenerationConfig(
            max_new_tokens=count, ignore_eos=True, do_sample=False, apply_chat_template=False
        )
        ids = self.openvino.Tensor(np.array([tokens], np.int64))
        return self.pipeline.add_request(next(self._ids), ids, config)

    def _steps(self, requests: Sequence[Any]) -> Iterator[list[int]]:
        """Run steps until all requests are finished; yield the new tokens of each request."""
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            yield [new_tokens(request) for request in requests]

    def _first_token(self, tokens: Sequence[int]) -> None:
        """Run a prompt up to its first token; raise PeerError if there is none."""
        if not sum(sum(new) for new in self._steps([self._submit(tokens, 1)])):
            raise PeerError("gives no token for the prompt")


def new_tokens(request: Any) -> int:
    """Return the number of tokens of a request since the last call."""
    count = 0
    while request.can_read():
        count += sum(len(output.generated_ids) for output in request.read().values())
    return count


MAKERS: dict[str, Callable[..., Any]] = {"model": OpenvinoModel}


def main() -> None:
    """Run the calls of the pipe; OpenVINO reports every error as a RuntimeError."""
    serve(MAKERS, RuntimeError)
