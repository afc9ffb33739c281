"""Sentence-transformers folders: modules.json, an encoder's weights, pooling and prompts.

Opened by `encoder.py`. Shards are checked by `shards.py`; `encoder_config.py` knows the meaning of
the JSON files. Nothing outside the folder is read and no code in it is run.
"""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from jaxllama.errors import BadHeader, BadTensors, UnknownFormat, UnsupportedModel
from jaxllama.weights.base import CountProgress
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.encoder_config import (
    SentenceSteps,
    encoder_family,
    read_encoder_config,
    read_pooling,
    tensor_names,
)
from jaxllama.weights.fields import (
    MAX_CONTEXT,
    CheckedFields,
    dict_of_unique_keys,
    read_json,
    shown,
)
from jaxllama.weights.shards import (
    SAFETENSORS,
    Located,
    TensorFile,
    check_index,
    find_kind,
    find_shards,
    join_shards,
    listed,
    read_index,
)

MODULES = "modules.json"
CONFIG = "config.json"
PROMPTS = "config_sentence_transformers.json"
POOLING_FOLDER = "1_Pooling"
# Files with the longest text, as sentence-transformers looks for them.
LENGTHS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta", "mpnet")
)
MAX_JSON_FILE = 1 << 20  # bytes
MAX_PROMPT = 4096  # characters
STEPS = ("Transformer", "Pooling", "Normalize")
PLAIN_FOLDER = re.compile(r"(?!\.)[\w.-]+", re.ASCII)
DTYPES = ("F32", "F16", "BF16")
# Tensors that are saved with an encoder and not needed for vectors of texts.
SUPERFLUOUS = re.compile(
    r"embeddings\.position_ids|(pooler|cls|lm_head|classifier|vocab_\w+)\..*", re.ASCII
)
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}

PlaceArray = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class SentencePrompts:
    """Texts put before a text, by name, and the name that is used where none is given."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None


class SentenceFolder:
    """An open folder; as a context manager, it closes the files at exit."""

    def __init__(self, folder: Path, files: list[TensorFile], tensors: Located) -> None:
        self.path = folder
        modules = read_modules(folder)
        self.encoder_path = inside(folder, modules.get("Transformer", ""))
        pooling = inside(folder, modules.get("Pooling", POOLING_FOLDER))
        self.prompts = read_prompts(folder)
        length, self.lowercases = read_length(self.encoder_path)
        steps = SentenceSteps(
            read_pooling_step(pooling, self.prompts) if "Pooling" in modules else "mean",
            "Normalize" in modules,
            length,
        )
        fields = read_json(self.encoder_path / CONFIG, MAX_JSON_FILE)
        self._files = files
        self._family = encoder_family(fields)
        self._tensors = renamed(tensors, self._family.prefix)
        self.config = read_encoder_config(fields, steps, folder.resolve().name, len(tensors))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a sentence-transformers folder; raise UnknownFormat if `path` is none.

        The headers of its files of weights are checked and its configuration is read.
        """
        where = weights_folder(path)
        with ExitStack() as opened:
            kind = find_kind(where) or SAFETENSORS
            index = read_index(where, kind)
            files = []
            for shard in find_shards(where, kind, index):
                files.append(kind.open(shard))
                opened.callback(files[-1].close)
            tensors = join_shards(files)
            check_index(where / kind.index, index or {}, tensors)
            folder = cls(path, files, tensors)
            opened.pop_all()
        return folder

    def read_weights(
        self, shapes: Mapping[str, tuple[int, ...]], place: PlaceArray, progress: CountProgress
    ) -> dict[str, Any]:
        """Read the weights one by one; return what `place` makes of each, by parameter path.

        `place` gets a float32 array in the layout of the model; only one at a time is in host
        memory. `shapes` are the expected shapes by parameter path; BadTensors is raised if tensors
        do not fit. `progress` is called with the number of weights done and of all.
        """
        names = self._check(shapes)
        placed = {}
        for path in shapes:
            placed[path] = place(self._read(names[path], is_transposed(path)))
            progress(len(placed), len(shapes))
        return placed

    def close(self) -> None:
        """Close the shards."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """Return the name of each weight's tensor by parameter path.

        `shapes` are the expected shapes by parameter path. Raise BadTensors that lists all tensors
        that are missing, surplus, or of another shape or type.
        """
        layers = tensor_names(self._family, self.config.layers)
        names, problems = {}, []
        for path, shape in shapes.items():
            layer, _, last = path.rpartition(".")
            name = names[path] = f"{layers[layer]}.{last}"
            wanted = shape[::-1] if is_transposed(path) else shape
            found = self._tensors.get(name)
            if found is None:
                problems.append(f"{name} is missing")
                continue
            entry = found[0].tensors[found[1]]
            if entry.shape != wanted:
                problems.append(f"{name} has shape {list(entry.shape)}, expected {list(wanted)}")
            elif entry.dtype not in DTYPES:
                problems.append(f"{name} has dtype {entry.dtype}, expected {', '.join(DTYPES)}")
        known = set(names.values())
        problems += [
            f"{shown(name)} is surplus"
            for name in self._tensors
            if name not in known and not SUPERFLUOUS.fullmatch(name)
        ]
        if problems:
            raise BadTensors(
                f"{self.path}: {len(problems)} tensors do not fit the encoder's configuration: "
                f"{listed(problems, '; ')}"
            )
        return names

    def _read(self, name: str, transposed: bool) -> np.ndarray:
        file, own_name = self._tensors[name]
        stored = file.read(own_name).astype(np.float32)
        return np.ascontiguousarray(stored.T) if transposed else stored


def is_transposed(path: str) -> bool:
    """Say whether files store the weight with this parameter path as [out, in].

    They do so for the matrices of transformer blocks, but not for tables of embeddings.
    """
    *_, layer, last = path.split(".")
    return path.startswith("blocks.") and last == "weight" and not layer.endswith("norm")


def weights_folder(path: Path) -> Path:
    """Return the folder with the encoder's weights in a sentence-transformers folder, `path`.

    It may be `path` itself. Raises UnknownFormat if `path` is no sentence-transformers folder.
    """
    modules = read_modules(path) if path.is_dir() else {}
    where = inside(path, modules.get("Transformer", ""))
    if not (where / CONFIG).is_file():
        raise UnknownFormat(
            f"{path} is no encoder; expected a sentence-transformers folder: modules.json, "
            f"config.json, tokenizer.json and model.safetensors"
        )
    return where


def read_modules(folder: Path) -> dict[str, str]:
    """Map the modules that modules.json lists, such as `Pooling`, to the names of their folders.

    {} if the folder has no modules.json.
    """
    if not (folder / MODULES).exists():
        return {}
    file = BinaryFile(folder / MODULES)
    try:
        if file.size > MAX_JSON_FILE:
            raise BadHeader(f"{file.path} has {file.size} bytes; expected at most {MAX_JSON_FILE}")
        raw = file.read(0, file.size).tobytes()
    finally:
        file.close()
    where = str(folder / MODULES)
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=dict_of_unique_keys)
    except (ValueError, RecursionError) as error:
        raise BadHeader(f"{where}: not valid JSON: {shown(str(error))}") from error
    if not isinstance(entries, list):
        raise BadHeader(f"{where}: holds {shown(entries)}; expected a list of modules")
    modules: dict[str, str] = {}
    for entry in entries:
        module = CheckedFields(entry if isinstance(entry, dict) else {}, where)
        modules[module.text("type").rpartition(".")[2]] = module.text("path", "")
    check_steps(list(modules), len(entries), where)
    return modules


def check_steps(names: list[str], count: int, where: str) -> None:
    """Raise UnsupportedModel unless the modules are Transformer, Pooling, Normalize, in this order.

    Normalize, or both Pooling and Normalize, may be missing.
    `names` are the modules of the file `where` in order, without repeats; `count` is the number of
    modules in the file, repeats included.
    """
    if count == len(names) and tuple(names) in (STEPS[:1], STEPS[:2], STEPS):
        return
    other = next((name for name in names if name not in STEPS), None)
    why = f"module {shown(other)} is not supported" if other else "modules in another order"
    raise UnsupportedModel(
        f"{where}: {why}; expected {', '.join(STEPS)}, or the first one or two of them"
    )


def inside(folder: Path, name: str) -> Path:
    """Return the folder `name` in `folder`, or `folder` itself if `name` is empty.

    `name` comes from modules.json. Raise BadHeader unless it is a plain name, without slashes.
    """
    if not name:
        return folder
    if not PLAIN_FOLDER.fullmatch(name):
        raise BadHeader(
            f"{folder / MODULES}: path is {shown(name)}; expected the name of a folder beside it"
        )
    return folder / name


def read_length(folder: Path) -> tuple[int | None, bool]:
    """Return the length limit of a text in tokens, and whether texts are converted to lower case.

    Both come from the folder's sentence_*_config.json. If this file is missing or has no limit, the
    limit is that of tokenizer_config.json; None if there is none either.
    """
    for name in LENGTHS:
        if (folder / name).exists():
            fields = read_json(folder / name, MAX_JSON_FILE)
            lowercases = fields.flag("do_lower_case", False)
            if fields.has("max_seq_length"):
                return fields.whole("max_seq_length", low=4, high=MAX_CONTEXT), lowercases
            return tokenizer_limit(folder), lowercases
    return tokenizer_limit(folder), False


def tokenizer_limit(folder: Path) -> int | None:
    """Return the most tokens of a text that tokenizer_config.json allows; None if it has no limit.

    A number outside the range that this engine supports counts as no limit.
    """
    path = folder / "tokenizer_config.json"
    value = read_json(path).values.get("model_max_length") if path.exists() else None
    is_bound = isinstance(value, int) and not isinstance(value, bool) and 4 <= value <= MAX_CONTEXT  # noqa: PLR2004
    return int(value) if is_bound else None  # type: ignore[call-overload]


def read_pooling_step(folder: Path, prompts: SentencePrompts) -> Any:
    """Return the method that makes one vector of hidden states, such as "mean".

    `folder` is that of the pooling module. `prompts` are the texts put before a text: raise
    UnsupportedModel if there are some and the pooling must leave out their tokens.
    """
    fields = read_json(folder / CONFIG, MAX_JSON_FILE)
    if not fields.flag("include_prompt", True) and any(prompts.texts.values()):
        raise UnsupportedModel(
            f"{fields.where}: include_prompt is false, which is not supported; expected true"
        )
    return read_pooling(fields)


def read_prompts(folder: Path) -> SentencePrompts:
    """Return the model's prompts: texts to put before an input text; empty if there are none."""
    if not (folder / PROMPTS).exists():
        return SentencePrompts()
    fields = read_json(folder / PROMPTS, MAX_JSON_FILE)
    named = fields.inner("prompts")
    texts = {name: named.text(name) for name in named.values}
    longest = max(map(len, texts.values()), default=0)
    if longest > MAX_PROMPT:
        raise BadHeader(
            f"{named.where}: a prompt has {longest} characters; expected at most {MAX_PROMPT}"
        )
    default = fields.text("default_prompt_name", "") or None
    if default is not None and default not in texts:
        raise BadHeader(
            f"{fields.where}: default_prompt_name is {shown(default)}; expected one of "
            f"{', '.join(map(shown, texts)) or 'no name, as there are no prompts'}"
        )
    return SentencePrompts(texts, default)


def renamed(tensors: Located, prefix: str) -> dict[str, tuple[TensorFile, str]]:
    """Map the plain name of each tensor to its file and its name in that file.

    A plain name is the name in the file without `prefix`, and with today's names of norms in place
    of old ones such as `gamma`. `tensors` maps the names in the files to the files.
    """
    found = {}
    for name, file in tensors.items():
        plain = name.removeprefix(prefix)
        for old, new in OLD_NAMES.items():
            if plain.endswith(old):
                plain = plain.removesuffix(old) + new
        found[plain] = file, name
    return found
