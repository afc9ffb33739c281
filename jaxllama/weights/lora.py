"""LoRA adapters: reads a PEFT folder, adapter_config.json and its tensors, for one model.

Called when an adapter is loaded. The scale alpha / r is multiplied into the second matrix, and
ranks are padded with zeros to the rank of the adapter arrays. All problems of a file are found
before anything is returned; code in the folder is never run.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.errors import BadTensors, UnknownFormat, UnsupportedModel
from jaxllama.model.adapters import (
    LAYERS,
    AdaptedWeight,
    AdapterMatrices,
    AdapterWeights,
    adapted_groups,
    adapted_weights,
    adapter_shapes,
)
from jaxllama.model.key_heads import copied_heads
from jaxllama.weights.fields import CheckedFields, read_json, shown
from jaxllama.weights.safetensors_file import SafetensorsFile
from jaxllama.weights.shards import TensorFile, listed
from jaxllama.weights.torch_file import TorchFile

CONFIG = "adapter_config.json"
FILES: dict[str, Callable[[Path], TensorFile]] = {
    "adapter_model.safetensors": SafetensorsFile,
    "adapter_model.bin": TorchFile,
}
MAX_CONFIG = 1 << 20  # bytes
TINY_BIAS = 1e-6  # a bias up to this changes nothing that float16 shows
MOST_HALF = 65504.0  # the largest float16
# Where PEFT puts a tensor: its layer in the model, and which of the two matrices it is.
NAME = re.compile(
    r"(?:base_model\.)?(?:model\.)*layers\.(?P<block>[0-9]{1,4})\."
    r"(?:self_attn|mlp)\.(?P<name>\w+)_proj\.lora_(?P<side>[AB])(?:\.default)?\.weight"
)
BIAS = re.compile(r".*\.bias")
# Settings of PEFT that change the meaning of the tensors, with the value that does not.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "fan_in_fan_out": (None, False),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "layer_replication": (None,),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "use_qalora": (None, False),
    "alora_invocation_tokens": (None,),
}
# Ways to begin training that change the model itself, too.
CHANGE_THE_MODEL = ("pissa", "olora", "corda", "loftq")


T = TypeVar("T", int, float)


class AdapterSettings(NamedTuple):
    """The ranks and scales that an adapter_config.json states."""

    rank: int
    alpha: float
    by_root: bool  # rsLoRA: alpha is divided by the root of the rank
    ranks: Mapping[str, int]  # by the end of a layer's name
    alphas: Mapping[str, float]

    @property
    def highest(self) -> int:
        """Return the highest rank of any layer."""
        return max((self.rank, *self.ranks.values()))

    def of(self, layer: str) -> tuple[int, float]:
        """Return the rank of the adapter in the module `layer`, and the factor on its output.

        `layer` is a module's name in the file, such as layers.0.self_attn.q_proj.
        """
        rank = next((value for name, value in self.ranks.items() if fits(name, layer)), self.rank)
        alpha = next((v for name, v in self.alphas.items() if fits(name, layer)), self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.by_root else rank)


class AdapterPair(NamedTuple):
    """The two matrices of one weight: x · a · b is added to x · weight."""

    a: np.ndarray  # [inward, rank]
    b: np.ndarray  # [rank, outward], multiplied by the scale


def read_adapter(path: Path, model: ModelConfig, engine: EngineConfig) -> AdapterWeights:
    """Read the adapter in the folder `path` for this model, padded to the rank in `engine`.

    Raises UnknownFormat, UnsupportedModel, BadHeader or BadTensors.
    """
    file_path = find_file(path)
    settings = read_settings(read_json(path / CONFIG, MAX_CONFIG))
    if (rank := settings.highest) > engine.adapter_rank:
        raise UnsupportedModel(
            f"the adapter {path} has rank {rank}; this engine takes at most "
            f"{engine.adapter_rank} (start with --lora-rank {-(-rank // 16) * 16})"
        )
    with closing(FILES[file_path.name](file_path)) as file:
        return arranged(dict(read_pairs(file, settings, model)), model, engine)


def digest_of(weights: AdapterWeights) -> bytes:
    """Return the SHA-256 digest of the values in all matrices of an adapter."""
    digest = hashlib.sha256()
    for groups in weights.values():
        for matrices in groups.values():
            for matrix in (matrices.a, *matrices.b):
                digest.update(np.ascontiguousarray(matrix).data)
    return digest.digest()


def rank_of(path: Path) -> int:
    """Return the highest rank that the adapter in a folder has in any layer."""
    find_file(path)
    return read_settings(read_json(path / CONFIG, MAX_CONFIG)).highest


def find_file(path: Path) -> Path:
    """Return the path of the weight file in the adapter folder `path`.

    Raise UnknownFormat if this file or adapter_config.json is missing.
    """
    if not (path / CONFIG).is_file():
        raise UnknownFormat(
            f"{path} is no adapter; expected a folder with {CONFIG} and {' or '.join(FILES)}, as "
            f"PEFT's save_pretrained writes it"
        )
    found = next((path / name for name in FILES if (path / name).is_file()), None)
    if found is None:
        raise UnknownFormat(f"{path} has no tensors; expected {' or '.join(FILES)} in it")
    return found


def read_settings(fields: CheckedFields) -> AdapterSettings:
    """Return what adapter_config.json says about ranks and scales.

    Raise UnsupportedModel for settings that this engine does not have.
    """
    kind = fields.text("peft_type", "LORA")
    if kind != "LORA":
        raise UnsupportedModel(f"peft_type is {kind[:60]!r}; expected LORA")
    for name, allowed in UNSUPPORTED.items():
        value = fields.values.get(name)
        if value not in allowed:
            raise UnsupportedModel(
                f"{CONFIG} has {name} {shown(value)}; expected {shown(allowed[-1])}: adapters with "
                f"it are not supported"
            )
    begin = str(fields.values.get("init_lora_weights") or "").lower()
    if begin.startswith(CHANGE_THE_MODEL):
        raise UnsupportedModel(
            f"init_lora_weights is {begin[:60]!r}, which changes the model's own weights, too; "
            f"convert the adapter with PEFT's path_initial_model_for_weight_conversion first"
        )
    return AdapterSettings(
        rank=fields.whole("r", low=1, high=1 << 16),
        alpha=fields.real("lora_alpha"),
        by_root=bool(fields.values.get("use_rslora")),
        ranks=numbers(fields, "rank_pattern", int),
        alphas=numbers(fields, "alpha_pattern", float),
    )


def numbers(fields: CheckedFields, key: str, kind: type[T]) -> dict[str, T]:
    """Return field `key`, an object that maps names of layers to positive numbers.

    Return {} if the field is absent. With `kind` int, all numbers must be whole. Raise BadTensors
    or UnsupportedModel if the field holds anything else.
    """
    given = fields.values.get(key) or {}
    if not isinstance(given, dict):
        raise BadTensors(f"{CONFIG} has {key} {shown(given)}; expected a table of numbers")
    for name, value in given.items():
        if not re.fullmatch(r"\^?[\w.]+", name):
            raise UnsupportedModel(
                f"{CONFIG} has {key} for {name[:80]!r}; expected names of layers, such as "
                f"q_proj or layers.0.self_attn.q_proj (patterns are not supported)"
            )
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (kind is float and isinstance(value, float))) or not 0 < value < 1 << 16:
            raise BadTensors(
                f"{CONFIG} has {key} {shown(value)} for {name[:80]!r}; expected a positive number"
            )
    return given


def fits(name: str, layer: str) -> bool:
    """Say whether `name` is the layer path `layer` or the end of it, such as `self_attn.q_proj`."""
    return layer == name or layer.endswith(f".{name.removeprefix('^')}")


def read_pairs(
    file: TensorFile, settings: AdapterSettings, model: ModelConfig
) -> Iterator[tuple[str, AdapterPair]]:
    """Yield the parameter path and the two matrices of every weight that the adapter changes.

    Matrix B is multiplied by the adapter's scale from `settings`. Raise BadTensors, before the
    first pair, if names, shapes or types of tensors in `file` do not fit the model.
    """
    weights = adapted_weights(model)
    found, problems = sort_tensors(file, weights)
    for path, sides in found.items():
        problems += misfits(path, sides, file, weights[path], settings)
    if not found and not problems:
        problems.append("it has no lora_A and lora_B tensors")
    if problems:
        raise BadTensors(f"the adapter {file.path} does not fit: {listed(problems, '; ')}")
    for path, sides in found.items():
        _, scale = settings.of(sides["A"].partition(".lora_")[0])
        a = file.read(sides["A"]).astype(np.float32).T
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            b = file.read(sides["B"]).astype(np.float32).T * np.float32(scale)
        for name, values in ((sides["A"], a), (sides["B"], b)):
            if not np.all(np.abs(values) <= MOST_HALF):  # NaN, too
                raise BadTensors(
                    f"{name} holds numbers that are not finite or, scaled, above {MOST_HALF:g}"
                )
        yield path, AdapterPair(a, b)


def sort_tensors(
    file: TensorFile, weights: Mapping[str, AdaptedWeight]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return, by parameter path, the names of a weight's two tensors: {"A": name, "B": name}.

    `weights` are the weights that adapters can change, by parameter path; the result has those that
    the file changes. Also return an error message for every other tensor of the file, but not for
    biases close to 0.
    """
    found: dict[str, dict[str, str]] = {}
    problems = []
    for name, tensor in file.tensors.items():
        match = NAME.fullmatch(name)
        layer = match and LAYERS.get(match["name"])
        path = f"blocks.{match['block']}.{layer}.{match['name']}.weight" if match else ""
        if path in weights and match is not None:
            found.setdefault(path, {})[match["side"]] = name
        elif not (BIAS.fullmatch(name) and is_tiny(file, name, tensor.nbytes)):
            problems.append(f"{name} changes nothing that this model has and adapters can change")
    return found, problems


def is_tiny(file: TensorFile, name: str, size: int) -> bool:
    """Say whether all numbers of the bias `name` are so near 0 that it may be left out.

    `size` is its size in bytes; a large one is not read, and the answer is False.
    """
    return size <= MAX_CONFIG and bool(np.all(np.abs(file.read(name)) <= TINY_BIAS))


def misfits(
    path: str,
    sides: Mapping[str, str],
    file: TensorFile,
    weight: AdaptedWeight,
    settings: AdapterSettings,
) -> Iterator[str]:
    """Yield an error message for everything wrong with the A and B matrices of one weight.

    `path` is its parameter path and `weight` its sizes; `sides` maps "A" and "B" to the names of
    the tensors in `file`; `settings` has the rank.
    """
    if len(sides) < 2:  # noqa: PLR2004
        yield f"{next(iter(sides.values()))} comes without the other matrix of {path}"
        return
    rank, _ = settings.of(sides["A"].partition(".lora_")[0])
    expected = {"A": (rank, weight.inward), "B": (weight.outward, rank)}
    for side, name in sides.items():
        tensor = file.tensors[name]
        if tuple(tensor.shape) != expected[side]:
            yield f"{name} has shape {list(tensor.shape)}; expected {list(expected[side])}"
        elif tensor.dtype not in ("F32", "F16", "BF16"):
            yield f"{name} has type {tensor.dtype}; expected F32, F16 or BF16"


def arranged(
    pairs: Mapping[str, AdapterPair], model: ModelConfig, engine: EngineConfig
) -> AdapterWeights:
    """Return the adapter's matrices by layer and group of weights, zero for unchanged weights.

    `pairs` has the A and B matrices by parameter path. A group is the weights that the model
    multiplies with the same input, such as queries, keys and values; their A matrices lie side by
    side, each padded to the engine's rank.
    """
    shapes = adapter_shapes(model, engine)
    result: dict[int, dict[str, AdapterMatrices]] = {index: {} for index in shapes}
    for group in adapted_groups(model):
        shape = shapes[group.block][group.name]
        a = np.zeros(shape.a, np.float32)
        b = tuple(np.zeros(each, np.float32) for each in shape.b)
        for number, path in enumerate(group.weights):
            pair = pairs.get(path)
            if pair is not None:
                rank, width = pair.b.shape
                copies = b[number].shape[1] // width  # above 1: of keys or values, on many devices
                start = number * engine.adapter_rank
                a[:, start : start + rank] = pair.a
                b[number][:rank] = copied_heads(pair.b, model.head_dim, copies)
        result[group.block][group.name] = AdapterMatrices(a, b)
    return result
