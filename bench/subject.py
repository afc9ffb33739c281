"""The subject: which model is measured, and against what. The options that say so.

Used by the scripts that load a model.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from write_gguf import FILES, model_file

PEERS = ("llama.cpp",)


@dataclass(frozen=True)
class Subject:
    """The file we read, the peer if there is one, and the file it reads."""

    path: Path
    peer: str | None
    peer_path: Path

    @property
    def name(self) -> str:
        """How cases call the model."""
        return self.path.stem

    @property
    def peer_name(self) -> str | None:
        """The peer, and what it reads if that is another file than ours."""
        return f"{self.peer} on {self.peer_path.stem}" if self.differs else self.peer

    @property
    def differs(self) -> bool:
        """Whether the peer reads another file."""
        return self.peer is not None and self.peer_path != self.path


def modelled(function: Callable[..., None]) -> Callable[..., None]:
    """Add --model; the function is called with its `path`."""
    words = f"Name, file, or one of {', '.join(FILES)} [default: smollm2-135m]."

    @click.option("-m", "--model", help=words)
    @functools.wraps(function)
    def run(*, model: str | None, **given: Any) -> None:
        function(path=model_file(model), **given)

    return run


def compared(function: Callable[..., None]) -> Callable[..., None]:
    """Add --model, --peer and --peer-model; the function is called with a `subject`."""

    @modelled
    @click.option("--peer", type=click.Choice(PEERS), help="Measure this engine in turn with ours.")
    @click.option("--peer-model", help="What the peer reads instead [default: the same file].")
    @functools.wraps(function)
    def run(*, path: Path, peer: str | None, peer_model: str | None, **given: Any) -> None:
        if peer_model and not peer:
            raise click.UsageError("--peer-model is for the peer; it needs --peer.")
        peer_path = model_file(peer_model) if peer_model else path
        function(subject=Subject(path, peer, peer_path), **given)

    return run
