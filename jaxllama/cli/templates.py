"""Templates: the files that `jaxllama new` writes, for `string.Template`.

Filled in by `new.py`. The code in them is tested as it is generated.
"""

SAMPLER = '''\
"""$name: a sampler for jaxllama."""

from jaxllama.sampling import Candidates, Context, Filter, Knob, knob
from jaxllama.shapes import Array, Bool


class $kind(Filter):
    """Draw among tokens at least `$name` times as likely as the likeliest."""

    $name: Knob = knob(off=0.0, low=0.0, high=1.0, help="smallest share of the top probability")

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """True where a candidate may be drawn."""
        return best.p >= self.$name * best.p[0]
'''

SAMPLER_TEST = '''\
"""Tests of $name; run with `python -m pytest`."""

from $module import $kind
from jaxllama.testing import check_sampler
from jaxllama.testing.tryout import Tryout, survivors

LOGITS = [[2.0, 1.9, 0.0, -3.0]]


def test_it_keeps_the_contract_of_samplers():
    check_sampler($kind)


def test_only_tokens_close_to_the_likeliest_are_drawn():
    tryout = Tryout({"$name": $kind}, vocab=4, slots=1)
    assert survivors(tryout.choose(LOGITS, {"$name": 0.5})) == [0, 1]
    assert survivors(tryout.choose(LOGITS, {"$name": 0.0})) == [0, 1, 2, 3]
'''

FORMAT = '''\
"""$name: a prompt format for jaxllama."""

from collections.abc import Sequence

from jaxllama.formats import Message, PromptFormat


class $kind(PromptFormat):
    """[user] ... [end] [assistant] ..."""

    name = "$name"
    stop = ("[end]",)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Every message in its brackets, and where the assistant begins to speak."""
        turns = [f"[{message.role}]\\n{message.content}\\n[end]\\n" for message in messages]
        return "".join(turns) + ("[assistant]\\n" if answer else "")
'''

FORMAT_TEST = '''\
"""What $name renders; run with `python -m pytest`."""

from $module import $kind
from jaxllama.formats import Message
from jaxllama.testing import check_format


def test_it_keeps_the_contract_of_formats():
    check_format($kind)


def test_a_question_is_followed_by_the_head_of_the_answer():
    text = $kind().render([Message("user", "Hello")])
    assert text == "[user]\\nHello\\n[end]\\n[assistant]\\n"
'''

WEIGHTS_READER = '''\
"""$name: a weight format for jaxllama.

A model is a folder with $name.json (sizes, and the shape of every tensor in the order of the data),
$name.bin (float32, one tensor after the other) and tokenizer.json.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Self

import numpy as np

from jaxllama.config import ModelConfig, Rope
from jaxllama.errors import BadHeader
from jaxllama.text.sources import tokenizer_from_json
from jaxllama.text.tokenizer import Tokenizer
from jaxllama.weights.base import Checkpoint
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.fields import CheckedFields, read_json, read_layers, shown
from jaxllama.weights.layout import TRANSPOSED
from jaxllama.weights.rules import Rule, expand
from jaxllama.weights.stored import Index, Shape, Stored, read_rows

FLOAT = np.dtype("<f4")

# Our path: the tensor of the file that it comes from, and the steps to our layout.
TABLE = {
    "embed.weight": Rule("embedding"),
    "blocks.{i}.attention_norm.weight": Rule("{i}.norm1"),
    "blocks.{i}.attention.q.weight": Rule("{i}.wq", TRANSPOSED),
    "blocks.{i}.attention.k.weight": Rule("{i}.wk", TRANSPOSED),
    "blocks.{i}.attention.v.weight": Rule("{i}.wv", TRANSPOSED),
    "blocks.{i}.attention.o.weight": Rule("{i}.wo", TRANSPOSED),
    "blocks.{i}.ffn_norm.weight": Rule("{i}.norm2"),
    "blocks.{i}.ffn.gate.weight": Rule("{i}.gate", TRANSPOSED),
    "blocks.{i}.ffn.up.weight": Rule("{i}.up", TRANSPOSED),
    "blocks.{i}.ffn.down.weight": Rule("{i}.down", TRANSPOSED),
    "final_norm.weight": Rule("norm"),
    "unembed.weight": Rule("head", TRANSPOSED),
}


class $kind(Checkpoint):
    """One folder."""

    def __init__(self, folder: Path, file: BinaryFile) -> None:
        """Check that the shapes and sizes are those of the data."""
        fields = read_json(folder / "$name.json")
        self._folder, self._file = folder, file
        self._shapes = {name: read_shape(fields, name) for name in fields.inner("tensors").values}
        self._config = read_config(fields, folder.name, len(self._shapes))
        sizes = [math.prod(shape) * FLOAT.itemsize for shape in self._shapes.values()]
        starts = accumulate(sizes, initial=0)
        self._starts = dict(zip(self._shapes, starts, strict=False))
        if sum(sizes) != file.size:
            raise BadHeader(
                f"{file.path}: has {file.size} bytes; its tensors take {sum(sizes)}"
            )

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether the folder holds both files."""
        return (path / "$name.json").is_file() and (path / "$name.bin").is_file()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the data and read the header."""
        file = BinaryFile(path / "$name.bin")
        try:
            return cls(path, file)
        except BaseException:
            file.close()
            raise

    @property
    def config(self) -> ModelConfig:
        """Return the model's shape."""
        return self._config

    @cached_property
    def table(self) -> Mapping[str, Rule]:
        """Map our path to its rule."""
        return expand(TABLE, self._config.layers)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Map the name of every tensor to its stored shape."""
        return self._shapes

    @property
    def kinds(self) -> Mapping[str, tuple[str, int]]:
        """Return element type and bytes of every tensor, for `jaxllama inspect`."""
        sizes = {name: math.prod(shape) * FLOAT.itemsize for name, shape in self._shapes.items()}
        return {name: ("F32", size) for name, size in sizes.items()}

    def read_stored(self, name: str) -> Stored:
        """Read one tensor."""
        return self._read(name, 0, self._shapes[name][0])

    def read_part(self, name: str, index: Index) -> Stored:
        """Read a part of one tensor: the rows that it needs, and no others."""
        shape = self._shapes[name]
        nbytes = math.prod(shape) * FLOAT.itemsize
        return read_rows(index, shape, nbytes, lambda *rows: self._read(name, *rows))

    def tokenizer(self) -> Tokenizer:
        """Build the tokenizer from tokenizer.json."""
        return tokenizer_from_json(self._folder)

    def close(self) -> None:
        """Close the data."""
        self._file.close()

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows: slices along the first axis."""
        inner = self._shapes[name][1:]
        row = math.prod(inner) * FLOAT.itemsize
        raw = self._file.read(self._starts[name] + start * row, (stop - start) * row)
        return raw.view(FLOAT).reshape(stop - start, *inner)


def read_shape(fields: CheckedFields, name: str) -> Shape:
    """Return the shape of one tensor; every size is checked, because the file may lie."""
    tensors = fields.inner("tensors")
    sizes = CheckedFields(dict(enumerate(tensors.items(name))), f"{tensors.where} {shown(name)}")
    if not 1 <= len(sizes.values) <= 2:
        raise BadHeader(f"{sizes.where} has {len(sizes.values)} sizes; expected 1 or 2")
    return tuple(sizes.whole(number) for number in sizes.values)


def read_config(fields: CheckedFields, name: str, tensors: int) -> ModelConfig:
    """Return the shape of the model."""
    return ModelConfig(
        vocab_size=fields.whole("vocab_size"),
        width=fields.whole("width"),
        layers=read_layers(fields, "layers", tensors),
        heads=fields.whole("heads"),
        kv_heads=fields.whole("kv_heads"),
        head_dim=fields.whole("head_dim"),
        ffn_width=fields.whole("ffn_width"),
        max_context=fields.whole("max_context"),
        norm_eps=fields.real("norm_eps", 1e-5, above=0),
        rope=Rope(fields.real("rope_theta", 10000.0, above=1)),
        name=name,
    )
'''

WEIGHTS_TEST = '''\
"""Tests of $name; run with `python -m pytest`."""

import json
from pathlib import Path

import numpy as np
import pytest

from $module import $kind
from jaxllama.errors import BadHeader
from jaxllama.testing import byte_tokenizer_json, check_weights, flatten, random_params, tiny

CONFIG = tiny(name="model", layers=2, kv_heads=2)
NAMES = {
    "embed": "embedding", "final_norm": "norm", "unembed": "head",
    "attention_norm": "norm1", "ffn_norm": "norm2",
    "attention.q": "wq", "attention.k": "wk", "attention.v": "wv", "attention.o": "wo",
    "ffn.gate": "gate", "ffn.up": "up", "ffn.down": "down",
}


def write_model(folder: Path) -> dict[str, np.ndarray]:
    """Write a random model the way the format's own tools do; return its weights by our paths."""
    weights = flatten(random_params(CONFIG))
    tensors = {}
    for path, value in weights.items():
        stem = path.removesuffix(".weight")
        _, block, part = stem.split(".", 2) if stem.startswith("blocks.") else ("", "", stem)
        by_output = value.ndim == 2 and path != "embed.weight"
        tensors[f"{block}.{NAMES[part]}".lstrip(".")] = value.T if by_output else value
    sizes = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn_width")
    header = {name: getattr(CONFIG, name) for name in (*sizes, "max_context", "norm_eps")}
    header["tensors"] = {name: value.shape for name, value in tensors.items()}
    folder.mkdir()
    (folder / "$name.json").write_text(json.dumps(header))
    (folder / "$name.bin").write_bytes(b"".join(value.tobytes() for value in tensors.values()))
    (folder / "tokenizer.json").write_text(byte_tokenizer_json(CONFIG.vocab_size))
    return weights


def test_it_keeps_the_contract_of_weight_formats(tmp_path):
    write_model(tmp_path / "model")
    check_weights(tmp_path / "model", $kind)


def test_it_reads_what_was_written(tmp_path):
    weights = write_model(tmp_path / "model")
    check_weights(tmp_path / "model", $kind, expected=weights)


def test_a_file_that_is_too_short_is_refused(tmp_path):
    write_model(tmp_path / "model")
    file = tmp_path / "model" / "$name.bin"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(BadHeader, match="its tensors take"):
        $kind.open(tmp_path / "model")
'''

TOKENIZER_READER = '''\
"""$name: a reader of tokenizer files for jaxllama."""

from pathlib import Path

import tokenizers
from jaxllama.text.reader import (
    BadTokenizer,
    ModelText,
    Special,
    Specials,
    Spelling,
    TokenKind,
    Tokenizer,
    TokenizerParts,
    TokenizerReader,
    TokenizerRules,
    Vocabulary,
    byte_level_encode,
    read_head,
    read_vocabulary,
)
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

MAGIC = b"$name\\n"
CONTROL = ("<s>", "</s>")


class $kind(TokenizerReader):
    """A list of words: the line "$name", then one word per line; other words are bytes."""

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether the file starts with the line "$name"."""
        return read_head(path)[0].startswith(MAGIC)

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        """Ids 0 to 255 are bytes, then come the words of the file, then <s> and </s>."""
        words = read_words(path)
        alphabet = [byte_level_encode(bytes((byte,))) for byte in range(256)]
        ids = {text: token for token, text in enumerate([*alphabet, *words])}
        encoder = tokenizers.Tokenizer(BPE(ids, [], ignore_merges=True))
        encoder.pre_tokenizer = ByteLevel(add_prefix_space=False)
        begin, end = len(ids), len(ids) + 1
        kinds = bytes([TokenKind.NORMAL] * len(ids) + [TokenKind.CONTROL] * len(CONTROL))
        return TokenizerParts(
            encoder,
            Vocabulary((*ids, *CONTROL), kinds, Spelling.BYTE_LEVEL),
            Specials({"<s>": Special(begin), "</s>": Special(end)}, {}),
            TokenizerRules(begin_id=begin, end_ids=(end,), adds_begin=True),
            ModelText(begin="<s>", end="</s>", name=path.stem, special=frozenset(CONTROL)),
        ).build()


def read_words(path: Path) -> list[str]:
    """The words of a file, as the library spells them; raise BadTokenizer for anything else."""
    raw = read_vocabulary(path)
    if not raw.startswith(MAGIC):
        raise BadTokenizer(f"{path} does not start with {MAGIC!r}")
    return sorted({byte_level_encode(line) for line in raw.splitlines()[1:] if len(line) > 1})
'''

TOKENIZER_TEST = '''\
"""Tests of $name; run with `python -m pytest`."""

from $module import MAGIC, $kind
from jaxllama.testing import check_tokenizer


def test_it_keeps_the_contract_of_tokenizers(tmp_path):
    (tmp_path / "words").write_bytes(MAGIC + b"Hello\\n world\\n")
    check_tokenizer($kind, tmp_path / "words")


def test_words_are_tokens(tmp_path):
    (tmp_path / "words").write_bytes(MAGIC + b"Hello\\n world\\n")
    ours = $kind.open(tmp_path / "words")
    assert len(ours.encode("Hello world", begin=False)) == 2
    assert ours.decode(ours.encode("Hello there")) == "Hello there"
'''

DIALECT = '''\
"""$name: a dialect for jaxllama, with the route POST /$option."""

import msgspec
from aiohttp import web
from jaxllama.serve.dialects import (
    JSON_LINES,
    Ask,
    Dialect,
    Endpoint,
    GenerationService,
    JaxLlamaError,
    RequestShape,
    TextForm,
    write_answer,
)


class ${kind}Body(RequestShape, kw_only=True):
    """Request: a text to continue, and any sampler's knobs beside it."""

    text: str
    stream: bool | None = None


class ${kind}Piece(msgspec.Struct):
    """One line of the stream."""

    text: str
    done: bool = False


class ${kind}Answer(msgspec.Struct):
    """The whole answer."""

    text: str
    tokens: int


class ${kind}Error(msgspec.Struct):
    """Body of an error."""

    error: str


CONTINUE = Endpoint(
    "POST",
    "/$option",
    "Continue a text",
    body=${kind}Body,
    answer=${kind}Answer,
    events=(${kind}Piece,),
    framing=JSON_LINES,
    takes_knobs=True,
)


async def continue_text(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Continue a text, as one answer or line by line."""
    body, knobs = await CONTINUE.read(request, service, ${kind}Body)
    ask = Ask(prompts=[body.text], knobs=knobs)
    return await write_answer(
        request, service, ask, ${kind}Form, stream=body.stream, framing=CONTINUE.framing
    )


class ${kind}Form(TextForm):
    """Converts the events of an answer to lines, or to the whole answer."""

    def piece(self, index: int, text: str) -> ${kind}Piece:
        """Return the line for a piece of the text."""
        return ${kind}Piece(text)

    def last(self, index: int) -> ${kind}Piece:
        """Return the line for the end of the answer."""
        return ${kind}Piece("", done=True)

    def whole(self) -> ${kind}Answer:
        """Return the whole answer."""
        return ${kind}Answer(self.text, self.usage().generated)


class $kind(Dialect):
    """A text at POST /$option, and its continuation as JSON or as lines of JSON."""

    name = "$name"
    endpoints = {CONTINUE: continue_text}
    error_type = ${kind}Error

    def error_body(self, error: JaxLlamaError, /) -> ${kind}Error:
        """Return the body of an error."""
        return ${kind}Error(str(error))
'''

DIALECT_TEST = '''\
"""Tests of $name; run with `python -m pytest`."""

import asyncio
import json

import aiohttp

from $module import $kind
from jaxllama.testing import check_dialect, served


def test_it_keeps_the_contract_of_dialects():
    check_dialect($kind)


def test_a_stream_has_the_text_of_the_whole_answer():
    async def ask() -> None:
        async with served($kind(), b"Hello!") as url, aiohttp.ClientSession() as http:
            async with http.post(f"{url}/$option", json={"text": "hi"}) as answer:
                assert await answer.json() == {"text": "Hello!", "tokens": 7}
            body = {"text": "hi", "stream": True}
            async with http.post(f"{url}/$option", json=body) as answer:
                lines = [json.loads(line) async for line in answer.content]
            assert "".join(line["text"] for line in lines) == "Hello!"
            assert [line["done"] for line in lines].index(True) == len(lines) - 1
            async with http.post(f"{url}/$option", json={"text": 1}) as answer:
                assert answer.status == 400 and "text" in (await answer.json())["error"]

    asyncio.run(ask())
'''

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$project"
version = "0.1.0"
description = "The $what $name for jaxllama"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["jaxllama"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points."$group"]
$name = "$module:$kind"

[tool.hatch.build.targets.wheel]
only-include = ["$module.py"]
"""

README = """\
# $project

The $what `$name` for jaxllama. It is all in `$module.py`.

    pip install -e .
    python -m pytest
    $check
    jaxllama plugins

$use
"""

USES = {
    "sampler": "Once it is installed, `$name` is an option of the command line, an argument of\n"
    "`LLM.generate` and a field of every request:\n\n"
    '    jaxllama generate -p "Once upon a time" --$option 0.1',
    "format": "Once it is installed, it can be asked for by name:\n\n"
    "    jaxllama chat --format $name",
    "weights": "Once it is installed, every command opens models of the format:\n\n"
    "    jaxllama inspect path/to/model\n"
    "    jaxllama chat --model path/to/model",
    "dialect": "Once it is installed, every server has its routes:\n\n"
    "    jaxllama serve\n"
    '    curl localhost:8000/$option --json \'{"text": "Once upon a time"}\'',
    "tokenizer": "Once it is installed, a model can be used with such a file:\n\n"
    "    jaxllama generate --tokenizer path/to/file -p Hello",
}
