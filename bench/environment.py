"""The environment of a measurement: machine, device, settings of the model, and versions.

Every record has one, so that the report never compares figures of different environments. Knows
nothing of the measurements.
"""

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import click
import jax

from jaxllama.config import EngineConfig

ROOT = Path(__file__).parents[1]
VECTORS = ("amx_tile", "avx512f", "avx2", "avx")  # of x86, the widest first
CPU_DEVICE = "cpu"  # what JAX calls every processor


@dataclasses.dataclass(frozen=True)
class Environment:
    """The environment of a figure; None for fields that do not apply."""

    backend: str  # of JAX: cpu, gpu or tpu; http for a server that is not started here
    device: str
    devices: int
    commit: str
    jax: str
    jaxlib: str
    threads: int
    mesh: str | None = None
    dtype: str | None = None
    cache_dtype: str | None = None
    kernels: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.fields().items())

    def fields(self) -> dict[str, Any]:
        """Return the fields that are set, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


NAMES = tuple(field.name for field in dataclasses.fields(Environment))


def environment_of_machine(threads: int | None = None, kernels: str | None = None) -> Environment:
    """Return the environment of a benchmark that loads no model: this processor."""
    return Environment("cpu", processor(), 1, threads=threads or cores(), kernels=kernels, **code())


def environment_of_server(url: str) -> Environment:
    """Return the environment of a server that is not started here: only the address is known."""
    return Environment("http", url, 1, threads=cores(), **code())


def environment_of_engine(engine: EngineConfig, threads: int | None = None) -> Environment:
    """Return the environment of an engine in this process, on the devices of JAX."""
    first = jax.devices()[0]
    return Environment(
        backend=jax.default_backend(),
        device=processor() if first.device_kind == CPU_DEVICE else first.device_kind,
        devices=jax.device_count(),
        threads=threads or cores(),
        mesh=f"data={engine.data_parallel},model={engine.model_parallel}",
        dtype=engine.dtype,
        cache_dtype=engine.cache_dtype,
        kernels=engine.kernels,
        **code(),
    )


def check_platform(wanted: str | None) -> None:
    """Raise ClickException if JAX does not run on the platform that --platform names."""
    backend = {"cuda": "gpu", "rocm": "gpu"}.get(wanted or "", wanted)
    if wanted and jax.default_backend() != backend:
        raise click.ClickException(
            f"--platform is {wanted}, but JAX runs on {jax.default_backend()}; expected {backend}. "
            f"Install jax[{wanted}] or choose another platform."
        )


def code() -> dict[str, Any]:
    """Return the commit of this repository and the versions of JAX and jaxlib."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    return {"commit": commit(), **versions}


def commit() -> str:
    """Return the checked-out commit, with "+changes" if files differ; "unknown" without git."""
    named = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{named}{'+changes' if changed else ''}" if named else "unknown"


def git(*arguments: str) -> str:
    """Return the output of a git command; empty if it fails or git is not installed."""
    try:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor() -> str:
    """Return the name of the processor, with its widest vector instructions."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in text.splitlines())
    }
    name, flags = found.get("model name", platform.machine()), found.get("flags", "").split()
    widest = next((each for each in VECTORS if each in flags), None)
    return f"{name} ({widest})" if widest else name


def cores() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
