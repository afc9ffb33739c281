"""Stages: the layers of a model divided over groups of devices, each with neighbouring layers.

Used where weights are loaded and where programs are made (`engine/pipeline.py`). The first stage
has the embedding, the last one the final norm and the head. Knows no device and no mesh.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import accumulate

from jaxllama.config import ModelConfig, StageConfig
from jaxllama.durations import bytes_in
from jaxllama.errors import ConfigError
from jaxllama.model.params import abstract_params

BLOCKS = "blocks"


def stage_configs(model: ModelConfig, layers: Sequence[int]) -> list[StageConfig]:
    """Return the config of every stage of a model; `layers` is the number of layers of each."""
    whole = {field.name: getattr(model, field.name) for field in fields(ModelConfig)}
    return [
        StageConfig(
            **{
                **whole,
                "layers": count,
                "pattern": model.specs[end - count : end],
                "index": index,
                "stages": len(layers),
            }
        )
        for index, (count, end) in enumerate(zip(layers, accumulate(layers), strict=True))
    ]


def paths_in_stages(model: ModelConfig, layers: Sequence[int]) -> dict[str, dict[int, str]]:
    """Map the path of every weight to {index of a pipeline stage: path of the weight there}.

    `layers` is the number of layers of each stage. A weight is in one stage, except the embedding
    of a model whose head is the transposed embedding: two stages have it.
    """
    found: dict[str, dict[int, str]] = {path: {} for path in abstract_params(model)}
    first = 0
    for stage in stage_configs(model, layers):
        for path in abstract_params(stage):
            head, _, rest = path.partition(".")
            if head == BLOCKS:
                index, _, rest = rest.partition(".")
                found[f"{BLOCKS}.{first + int(index)}.{rest}"][stage.index] = path
            else:
                found[path][stage.index] = path
        first += stage.layers
    return found


def choose_layers(
    text: str | None, stages: int, model: ModelConfig, memory: Sequence[int | None]
) -> tuple[int, ...]:
    """Return the number of layers of each of `stages` pipeline stages; () for one stage.

    `text` is the operator's setting: numbers of layers ("20,12"), or the memory of each stage's
    devices ("16GB,24GB"). If it is None, `memory` has the bytes of each stage's devices. Weights
    are divided in proportion to the memory, or equally if that of a stage is unknown. Raises
    ConfigError for a setting that does not fit the model.
    """
    if stages == 1:
        if text is not None:
            raise ConfigError(
                f"stage_layers is {text!r} without stages; expected a mesh with stages, such as "
                f"--mesh stage={text.count(',') + 1}"
            )
        return ()
    if stages > model.layers:
        raise ConfigError(
            f"mesh has stage={stages}; this model has {model.layers} layers: expected at most one "
            f"stage per layer"
        )
    if text is None:
        known = [each for each in memory if each]
        return divided(model, known if len(known) == stages else [1] * stages)
    parts = [part.strip() for part in text.split(",")]
    if all(part.isdecimal() for part in parts):
        layers = tuple(map(int, parts))
        if len(layers) == stages and sum(layers) == model.layers and all(layers):
            return layers
    else:
        sizes = [bytes_in(part) for part in parts]
        if len(sizes) == stages and all(sizes):
            return divided(model, [size for size in sizes if size])
    raise ConfigError(
        f"stage_layers is {text!r}; expected {stages} numbers of layers that add up to "
        f"{model.layers}, or {stages} sizes of memory such as 16GB, as the mesh has stage={stages}"
    )


def divided(model: ModelConfig, shares: Sequence[int]) -> tuple[int, ...]:
    """Divide the layers over stages, with weights about in proportion to `shares`.

    Returns the number of layers of each stage, at least one. `shares` has a number for each stage,
    such as the memory of its devices.
    """
    leaves = abstract_params(model)
    ends = [0, 0]
    loads = [0] * model.layers
    for path, leaf in leaves.items():
        head, _, rest = path.partition(".")
        size = math.prod(leaf.shape)
        if head == BLOCKS:
            loads[int(rest.partition(".")[0])] += size
        else:
            ends[0] += size if head == "embed" else 0
            ends[1] += size if head != "embed" or model.tied else 0
    before = [0, *accumulate(loads)]
    stages = len(shares)
    # By the layers in the stages so far: the least cost, and the layers of each stage.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for stage, share in enumerate(shares):
        own = (ends[0] if stage == 0 else 0) + (ends[1] if stage == stages - 1 else 0)
        following: dict[int, tuple[float, tuple[int, ...]]] = {}
        for end in range(stage + 1, model.layers - (stages - stage - 1) + 1):
            following[end] = min(
                (cost + (before[end] - before[start] + own) ** 2 / share, (*layers, end - start))
                for start, (cost, layers) in best.items()
                if start < end
            )
        best = following
    return best[model.layers][1]
