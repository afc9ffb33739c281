"""Targets: chips that this machine does not have, as meshes for which JAX compiles.

Needs the environment of `make accelerators`: libtpu and JAX's CUDA plugin, but no device, driver or
CUDA toolkit.
"""

import pathlib
import tempfile
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from jaxllama.chips import CHIPS, Chip
from tests.accelerators.hlo import in_graphs

# What the CUDA plugin has to know of the GPU: from its data sheet.
H100 = """
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
gpu_device_info {
  core_count: 132 fpus_per_core: 128 threads_per_warp: 32 threads_per_core_limit: 2048
  threads_per_block_limit: 1024 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024
  thread_dim_limit_z: 64 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 l2_cache_size: 52428800 device_memory_size: 84942979072
  memory_bandwidth: 3352320000000 clock_rate_ghz: 1.98
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  compile_time_toolkit_version: "12.9.0" driver_version: "13.0.0" runtime_version: "12.9.0"
  device_address_bits: 64
}
"""


@dataclass(frozen=True)
class Target:
    """One kind of chip: how to describe it, and the body whose programs it runs."""

    name: str
    body: str
    topology: Any = field(hash=False)  # from a mesh shape to the arguments of get_topology_desc

    @property
    def chip(self) -> Chip:
        """The figures of the data sheet."""
        return CHIPS[self.name]

    def mesh(self, data: int = 1, model: int = 1) -> Mesh:
        """Return a mesh of such chips, with the axes of `jaxllama.sharding`."""
        devices = topologies.get_topology_desc(**self.topology(data, model)).devices
        return jax.make_mesh(
            (data, model), ("data", "model"), (AxisType.Auto,) * 2, devices=devices[: data * model]
        )


def gpu_topology(data: int, model: int) -> dict[str, Any]:
    """Describe GPUs of one machine."""
    return {"platform": "cuda", "target_config": H100, "topology": f"1x1x{data * model}"}


def tpu_topology(data: int, model: int) -> dict[str, Any]:
    """Describe TPUs of one machine: one chip, or a square of four."""
    single = data * model == 1
    bounds = (1, 1, 1) if single else (2, 2, 1)
    name = "v5e:1x1" if single else "v5e:2x2"
    return {"platform": "tpu", "topology_name": name, "chips_per_host_bounds": bounds}


def missing(target: Target) -> str:
    """Return why this machine cannot compile for a chip; "" if it can."""
    try:
        target.mesh()
    except Exception as problem:  # plugins raise what they like
        return f"no compiler for it here: {problem}".splitlines()[0]
    return ""


TARGETS = {
    "h100": Target("h100", "gpu", gpu_topology),
    "v5e": Target("v5e", "tpu", tpu_topology),
}


@dataclass(frozen=True)
class Compiled:
    """One executable as text."""

    text: str  # HLO
    temporaries: int  # bytes beside arguments and results
    in_graphs: frozenset[str]  # loops and conditionals inside CUDA graphs


def compile_for(
    target: Target, lowered: jax.stages.Lowered, options: dict[str, Any] | None
) -> Compiled:
    """Compile a program for a chip, and read what XLA tells about it."""
    with tempfile.TemporaryDirectory() as folder:
        dump: dict[str, Any] = {}
        if target.chip.platform == "gpu":
            dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        found = lowered.compile({**dump, **(options or {})})
        thunks, names = (
            max((one.read_text() for one in pathlib.Path(folder).glob(f"*{kind}*.txt")),
                key=len, default="")
            for kind in ("after_thunk_passes", "thunk_metadata")
        )  # fmt: skip
    memory = found.memory_analysis()
    return Compiled(found.as_text(), memory.temp_size_in_bytes, in_graphs(thunks, names))
