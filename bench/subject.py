"""The measured model and the peer, and the options that choose them.

Used by the scripts that load a model.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import jax
from child import importing_bench
from environment import Environment, check_platform, cores, environment_of_engine
from harness import Board
from ik_llamacpp import IkLlamaCppPeer
from llamacpp import LlamaCppPeer
from openvino_peer import OpenvinoPeer
from peer import PeerModel
from write_gguf import FILES, model_file

from jaxllama import LLM
from jaxllama.config import CACHE_DTYPES, DTYPES, EngineConfig, ModelConfig
from jaxllama.kernels import AUTO, BODIES
from jaxllama.loading import choose_kernels, engine_config
from jaxllama.weights import open_checkpoint

LLAMA_CPP, OPENVINO, IK_LLAMA_CPP = PEERS = ("llama.cpp", "openvino", "ik_llama.cpp")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
ELSEWHERE = "import subject, sys; subject.print_environment(sys.argv[1])"


@dataclass(frozen=True)
class Loading:
    """The options of loading a model, as given; None where jaxllama chooses."""

    model: str | None = None
    platform: str | None = None
    mesh: str | None = None
    dtype: str | None = None
    cache_dtype: str | None = None
    kernels: str | None = None
    threads: int | None = None

    @property
    def is_given(self) -> bool:
        """Whether any option is given."""
        return any(value is not None for value in vars(self).values())

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of LLM.load that were given."""
        chosen = vars(self).items()
        own = ("model", "platform")  # of the benchmarks
        return {name: value for name, value in chosen if name not in own and value is not None}


@dataclass(frozen=True)
class Subject:
    """The measured model file and its settings, the peer if there is one, and the peer's file."""

    path: Path
    loading: Loading = Loading()
    peer: str | None = None
    peer_path: Path | None = None  # None: the same file
    peer_python: Path | None = None  # of openvino; None: where `make openvino` puts it
    peer_server: Path | None = None  # of ik_llama.cpp

    @property
    def name(self) -> str:
        """The name of the model in cases: its file, and the settings that were given."""
        texts = [f"{name.replace('_', ' ')} {value}" for name, value in self._unusual.items()]
        return f"{self.path.stem} ({', '.join(texts)})" if texts else self.path.stem

    @property
    def _unusual(self) -> dict[str, Any]:
        platform = {"platform": self.loading.platform} if self.loading.platform else {}
        return {**platform, **self.loading.arguments}

    @property
    def options(self) -> list[str]:
        """The options with which a jaxllama command loads this model with the same settings."""
        given = self.loading.arguments.items()
        options = [f"--{name.replace('_', '-')}={value}" for name, value in given]
        return ["-m", str(self.path.resolve()), *options]

    @property
    def peer_name(self) -> str | None:
        """The name of the peer, with its file if it is another one."""
        return f"{self.peer} on {self.peer_path.stem}" if self.peer_path else self.peer

    def load(
        self,
        *,
        slots: int,
        length: int,
        draft_tokens: int = 0,
        draft_model: Path | None = None,
    ) -> LLM:
        """Load the model with room for `length` tokens in each slot."""
        llm = LLM.load(
            self.path,
            slots=slots,
            context=length,
            draft_tokens=draft_tokens,
            draft_model=draft_model,
            **self.loading.arguments,
        )
        llm.engine.programs.finish()  # nothing is compiled beside a measurement
        return llm

    def load_peer(self, *, sequences: int, length: int, decodes: bool = False) -> PeerModel:
        """Load the model in the peer, with room for `length` tokens in each sequence."""
        path, threads = self.peer_path or self.path, self.loading.threads or cores()
        sizes = {"sequences": sequences, "length": length, "threads": threads}
        if self.peer == OPENVINO:
            return OpenvinoPeer(path, **sizes, python=self.peer_python)
        if self.peer_server:
            return IkLlamaCppPeer(path, **sizes, server=self.peer_server)
        return LlamaCppPeer(path, **sizes, decodes=decodes)

    def engine_config(self, model: ModelConfig) -> EngineConfig:
        """Return the engine's config as `load` chooses it, but with default sizes."""
        loading = self.loading
        return engine_config(
            model,
            choose_kernels(loading.kernels or "auto", loading.mesh, model),
            dtype=loading.dtype,
            cache_dtype=loading.cache_dtype,
            mesh=loading.mesh,
        )

    def environment(self) -> Environment:
        """Return the environment of a measurement in this process; starts JAX."""
        check_platform(self.loading.platform)
        with open_checkpoint(self.path) as checkpoint:
            return environment_of_engine(
                self.engine_config(checkpoint.config), self.loading.threads
            )

    def environment_elsewhere(self) -> Environment:
        """Return the environment of a measurement in a child process.

        A child process reads it: JAX, once started in this process, would keep most of a GPU's
        memory.
        """
        asked = json.dumps({"path": str(self.path.resolve()), **vars(self.loading)})
        found = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, asked],
            env=importing_bench(),
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode:
            raise click.ClickException(found.stderr.strip())
        return Environment(**json.loads(found.stdout))


def print_environment(asked: str) -> None:
    """Print the environment of a subject, given as a JSON object of path and loading options."""
    fields = json.loads(asked)
    subject = Subject(Path(fields.pop("path")), Loading(**fields))
    try:
        click.echo(json.dumps(subject.environment().fields()))
    except click.ClickException as error:
        sys.exit(error.message)


def loading_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of loading a model; the function gets them as `loading`."""
    model = f"Name, file, or one of {', '.join(FILES)} [default: smollm2-135m]."
    kernels = "Kernels, as in `jaxllama generate` [default: auto]."
    names = [field.name for field in dataclasses.fields(Loading)]

    @click.option("-m", "--model", help=model)
    @click.option(
        "--platform",
        type=click.Choice(PLATFORMS),
        help="Platform of JAX [default: JAX_PLATFORMS, or JAX's choice].",
    )
    @click.option("--mesh", metavar="data=D,model=M", help="Devices to spread the model over.")
    @click.option("--dtype", type=click.Choice(DTYPES), help="Type of dense weights.")
    @click.option("--cache-dtype", type=click.Choice(CACHE_DTYPES), help="Type of the KV cache.")
    @click.option("--kernels", type=click.Choice((AUTO, *BODIES)), help=kernels)
    @click.option(
        "--threads", type=click.IntRange(min=1), help="Threads [default: one for each core]."
    )
    @functools.wraps(function)
    def run(**given: Any) -> None:
        loading = Loading(**{name: given.pop(name) for name in names})
        if loading.platform:
            os.environ["JAX_PLATFORMS"] = loading.platform  # for the processes that we start
            jax.config.update("jax_platforms", loading.platform)
        function(loading=loading, **given)

    return run


def subject_of(loading: Loading) -> Subject:
    """Return the subject that the options of loading a model name."""
    return Subject(model_file(loading.model), loading)


def subject_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of loading a model; the function gets a `subject`.

    Sets the board's environment: the model is measured in this process.
    """

    @loading_options
    @functools.wraps(function)
    def run(*, board: Board, loading: Loading, **given: Any) -> None:
        subject = subject_of(loading)
        board.environment = subject.environment()
        function(board=board, subject=subject, **given)

    return run


def peer_options(*peers: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of loading a model and --peer; the function gets a `subject`."""

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        @subject_options
        @click.option("--peer", type=click.Choice(peers), help="Also measure this engine, in turn.")
        @functools.wraps(function)
        def run(*, subject: Subject, peer: str | None, **given: Any) -> None:
            function(subject=dataclasses.replace(subject, peer=peer), **given)

        return run

    return wrap


def peer_file_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `peer_options` for all peers, and those of the peer's files.

    The function gets a `subject`.
    """
    program = click.Path(exists=True, dir_okay=False, path_type=Path)
    python = "Python of the environment of openvino [default: .venv-openvino/bin/python]."

    @peer_options(*PEERS)
    @click.option("--peer-model", help="Model of the peer [default: the same file].")
    @click.option("--peer-python", type=program, help=python)
    @click.option("--peer-server", type=program, help="The llama-server of ik_llama.cpp.")
    @functools.wraps(function)
    def run(
        *,
        subject: Subject,
        peer_model: str | None,
        peer_python: Path | None,
        peer_server: Path | None,
        **given: Any,
    ) -> None:
        if peer_model and not subject.peer:
            raise click.UsageError("--peer-model is the model of the peer; it needs --peer.")
        if peer_python and subject.peer != OPENVINO:
            raise click.UsageError(f"--peer-python needs --peer {OPENVINO}.")
        if bool(peer_server) != (subject.peer == IK_LLAMA_CPP):
            raise click.UsageError(
                f"--peer {IK_LLAMA_CPP} and --peer-server need each other: the server is the "
                f"llama-server that ik_llama.cpp's build makes, build/bin/llama-server."
            )
        path = model_file(peer_model) if peer_model else None
        function(
            subject=dataclasses.replace(
                subject, peer_path=path, peer_python=peer_python, peer_server=peer_server
            ),
            **given,
        )

    return run
