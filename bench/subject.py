"""The subject: which model is measured, and against what. The options that say so.

Used by the scripts that load a model.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from harness import cores
from llamacpp import LlamaCpp
from write_gguf import FILES, model_file

from jaxllama import LLM
from jaxllama.config import KERNELS

PEERS = ("llama.cpp",)

Loading = tuple[str | None, str | None, int | None]  # model, kernels, threads; as given


@dataclass(frozen=True)
class Subject:
    """The file we read and how, the peer if there is one, and the file it reads."""

    path: Path
    kernels: str | None = None  # None: as jaxllama chooses
    threads: int | None = None
    peer: str | None = None
    peer_path: Path | None = None  # None: the same file

    @property
    def name(self) -> str:
        """How cases call the model."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else None
        unusual = ", ".join(filter(None, (self.kernels, threads)))
        return f"{self.path.stem} ({unusual})" if unusual else self.path.stem

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of LLM.load that were given."""
        given = {"kernels": self.kernels, "threads": self.threads}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def peer_name(self) -> str | None:
        """The peer, and what it reads if that is another file than ours."""
        return f"{self.peer} on {self.peer_path.stem}" if self.peer_path else self.peer

    def load(self, *, slots: int, length: int) -> LLM:
        """The model, with room for `length` tokens in each slot."""
        return LLM.load(self.path, slots=slots, context=length, **self.loading)

    def load_peer(self, *, sequences: int, length: int, flash: bool = True) -> LlamaCpp:
        """The peer, with room for as much."""
        path, threads = self.peer_path or self.path, self.threads or cores()
        return LlamaCpp(path, sequences=sequences, length=length, threads=threads, flash=flash)


def loaded(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of loading a model; the function is called with them, as `loading`."""
    model = f"Name, file, or one of {', '.join(FILES)} [default: smollm2-135m]."
    kernels = "As of `jaxllama generate` [default: as it chooses]."

    @click.option("-m", "--model", help=model)
    @click.option("--kernels", type=click.Choice(("auto", *KERNELS)), help=kernels)
    @click.option("--threads", type=click.IntRange(min=1), help="[default: one for each core]")
    @functools.wraps(function)
    def run(*, model: str | None, kernels: str | None, threads: int | None, **given: Any) -> None:
        function(loading=(model, kernels, threads), **given)

    return run


def modelled(function: Callable[..., None]) -> Callable[..., None]:
    """Add those; the function is called with a `subject`."""

    @loaded
    @functools.wraps(function)
    def run(*, loading: Loading, **given: Any) -> None:
        function(subject=subject_of(loading), **given)

    return run


def subject_of(loading: Loading) -> Subject:
    """The subject that the options of loading a model ask for."""
    model, kernels, threads = loading
    return Subject(model_file(model), kernels, threads)


def compared(function: Callable[..., None]) -> Callable[..., None]:
    """Add those and --peer; the function is called with a `subject`."""

    @modelled
    @click.option("--peer", type=click.Choice(PEERS), help="Measure this engine in turn with ours.")
    @functools.wraps(function)
    def run(*, subject: Subject, peer: str | None, **given: Any) -> None:
        function(subject=dataclasses.replace(subject, peer=peer), **given)

    return run


def compared_by_file(function: Callable[..., None]) -> Callable[..., None]:
    """Add those and --peer-model; the function is called with a `subject`."""

    @compared
    @click.option("--peer-model", help="What the peer reads instead [default: the same file].")
    @functools.wraps(function)
    def run(*, subject: Subject, peer_model: str | None, **given: Any) -> None:
        if peer_model and not subject.peer:
            raise click.UsageError("--peer-model is for the peer; it needs --peer.")
        path = model_file(peer_model) if peer_model else None
        function(subject=dataclasses.replace(subject, peer_path=path), **given)

    return run
