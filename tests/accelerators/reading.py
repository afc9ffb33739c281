"""Readings: what the programs of a subject cost on a chip, from their compiled text."""

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

import jax

from tests.accelerators.hlo import Counts, Reading
from tests.accelerators.subjects import Subject, least_step_bytes, live_bytes, size
from tests.accelerators.targets import Compiled, compile_for

PREFILL_TOKENS = 4096


@dataclass(frozen=True)
class Cost:
    """What one program costs: a decode step, or the prompt tile of a prefill."""

    subject: str
    program: str
    layers: int
    devices: int  # of the mesh; all figures are those of one
    counts: Counts  # of one step or tile
    least: int  # bytes that it must move
    temporaries: int
    weights: int  # bytes
    seconds: float  # to trace and compile on this machine
    large: dict[tuple[str, str], int] = field(default_factory=dict)  # new buffers
    bandwidth: float = 1.0  # bytes per second of the chip

    @property
    def kernels_per_layer(self) -> float:
        """Return the launches of a step over the number of layers."""
        return self.counts.kernels / self.layers

    @property
    def floor_ms(self) -> float:
        """Return the time of the least bytes at full bandwidth."""
        return 1e3 * self.least / self.bandwidth

    @property
    def moved_ms(self) -> float:
        """Return the time of the moved bytes at full bandwidth."""
        return 1e3 * self.counts.moved / self.bandwidth


def read(subject: Subject, program: str, depth: int, text_file: str | None = None) -> Cost:
    """Compile one program for the chip of a subject and read it."""
    blueprints = subject.blueprints()
    started = time.perf_counter()
    options = blueprints.compiler_options()
    found = compile_for(subject.target, blueprints.lowered(program), options)
    seconds = time.perf_counter() - started
    if text_file is not None:
        Path(text_file).write_text(found.text, encoding="utf-8")
    cache = jax.tree.leaves(blueprints.state.cache)
    live = {shape_text(leaf, subject.mesh): depth / leaf.shape[2] for leaf in cache}
    counts = difference(found, live)
    parts = subject.mesh[0] * subject.mesh[1]
    weights = sum(size(leaf) for leaf in jax.tree.leaves(blueprints.params)) // subject.mesh[1]
    matrices = [size(leaf) for leaf in jax.tree.leaves(blueprints.params) if leaf.ndim > 1]
    is_step = program.startswith("decode")
    large = min(size(leaf) // parts for leaf in cache)
    if is_step:  # the rows of a prompt tile may take more than a small matrix
        large = min(large, min(matrices) // subject.mesh[1])
    live_columns = live_bytes(blueprints, depth)
    read_weights = least_step_bytes(blueprints, depth) - live_columns
    return Cost(
        subject=str(subject),
        program=program,
        layers=subject.model.layers,
        devices=parts,
        counts=counts,
        # Every device reads its part of the weights, which the devices along `data` share.
        least=read_weights // subject.mesh[1] + live_columns // parts if is_step else weights,
        temporaries=found.temporaries,
        weights=weights,
        seconds=seconds,
        large=counts.large_writes(max(large, 1 << 20)),
        bandwidth=subject.target.chip.bandwidth,
    )


def difference(found: Compiled, live: dict[str, float]) -> Counts:
    """Return the counts of one trip of the outermost loop; inner loops do not run."""
    one, none = (
        Reading(found.text, trips=(trips, 0), in_graphs=found.in_graphs, live=live).counts
        for trips in (1, 0)
    )
    if one.kernels == none.kernels:  # there is no loop of unknown length
        return one
    for field_ in dataclasses.fields(Counts):
        if field_.name not in {"writes", "largest"}:
            left = getattr(one, field_.name) - getattr(none, field_.name)
            setattr(one, field_.name, left)
    one.writes.subtract(none.writes)
    return one


def shape_text(leaf: jax.ShapeDtypeStruct, mesh: tuple[int, int]) -> str:
    """Return the shape of one device's part of a cache array, as HLO writes it."""
    names = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "int8": "s8", "uint16": "u16"}
    slots, heads, *rest = leaf.shape
    sizes = (slots // mesh[0], heads // mesh[1], *rest)
    return f"{names[leaf.dtype.name]}[{','.join(map(str, sizes))}]"
