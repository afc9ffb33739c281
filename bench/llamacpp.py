"""The peer llama.cpp, through the bindings of llama-cpp-python.

llama.cpp can keep weights in extra buffers, in an order for its fastest kernels; on some processors
with AMX its native build dies of an illegal instruction with them. So both settings are tried.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
from peer import PeerModel, Worker, WorkerProgram

START = "import llamacpp_worker; llamacpp_worker.main()"
SETTINGS = {"extra buffers": True, "plain buffers": False}
SUPPORTED = {  # the knobs of jaxllama for which llama.cpp has samplers
    *("temperature", "top_k", "top_p", "min_p", "logit_bias"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
}


def program() -> WorkerProgram:
    """Return the program of a process with the bindings; raise UsageError without them."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise click.UsageError(
            "--peer llama.cpp needs llama-cpp-python; install the extra: "
            'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install "jaxllama[bench]"'
        )
    return WorkerProgram(START)


class LlamaCppPeer(PeerModel):
    """One model of llama.cpp; `decodes` chooses the attention that is faster at decoding."""

    name = "llama.cpp"

    def __init__(
        self, path: Path, *, sequences: int, length: int, threads: int, decodes: bool = False
    ) -> None:
        settings = {name: {"extra_buffers": extra} for name, extra in SETTINGS.items()}
        sizes = {"sequences": sequences, "length": length, "threads": threads}
        super().__init__(program(), settings, str(path), **sizes, flash=not decodes)


class LlamaCppSamplers:
    """Chains of llama.cpp's samplers, one per row, applied to the rows of logits in turn."""

    def __init__(self, knobs: Mapping[str, Any], rows: np.ndarray, history: Sequence[int]) -> None:
        self.worker = Worker(program(), "chain", dict(knobs), rows, list(history))

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
