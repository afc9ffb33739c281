"""What is fuzzed without a file of a model: templates, schemas, grammars, tokenizers, adapters.

Each reader is a function of bytes. It may raise errors of this project; anything else is a finding.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

from jaxllama.config import EngineConfig
from jaxllama.constraints.compiler import Compiler
from jaxllama.constraints.wanted import read_form
from jaxllama.errors import JaxLlamaError
from jaxllama.formats import CallStyle, Message, ModelText
from jaxllama.testing import ByteTokenizer, tiny
from jaxllama.text.opening import open_tokenizer
from jaxllama.text.thoughts import Thought, ThoughtParser, ThoughtStart
from jaxllama.text.tools import ToolParser
from jaxllama.weights.lora import read_adapter
from jaxllama_formats.template import Template
from jaxllama_samplers.expression_program import encode_condition, encode_logit
from jaxllama_samplers.expression_text import WrongExpression
from jaxllama_samplers.expression_words import MOST_CHARACTERS
from tests.adapter_writer import random_adapter, write_adapter
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import SECONDS
from tests.text.golden_files import content
from tests.text.test_from_json import byte_level

SEEDS = Path(__file__).parent / "seeds"
MESSAGES = (Message("system", "Be brief."), Message("user", "Hello, A!"), Message("assistant", "a"))
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
MODEL = tiny(vocab_size=16, width=8, heads=2, kv_heads=1, head_dim=4, ffn_width=8, layers=1)
ADAPTED = EngineConfig(slots=2, context=64, adapter_slots=2, adapter_rank=16)
FOLLOWED = 20  # tokens of an answer under a constraint
VOCABULARY = 300
TOKENIZERS = {  # target -> sound files
    "sentencepiece": ("llama.model", "bytes.model"),
    "tiktoken": ("tiktoken.model",),
    "tokenizer_llama2c": ("tokenizer.bin",),
}
ADAPTERS = {"adapter": "adapter_model.safetensors", "adapter_config": "adapter_config.json"}
Read = Callable[[bytes, Path], None]


@cache
def texts_of(name: str) -> list[bytes]:
    """Return the sound texts of a target."""
    found = json.loads((SEEDS / "texts.json").read_text())
    return [each.encode() for each in found[name]]


@cache
def compiler() -> Compiler:
    """Return the compiler of constraints; its processes end with this one."""
    return Compiler(ByteTokenizer(), VOCABULARY)


def template(raw: bytes, _: Path) -> None:
    """Render a conversation with a chat template."""
    model = ModelText(template=raw.decode(errors="replace"), begin="<s>", end="</s>")
    made = Template.for_model(model)
    made.render(MESSAGES)
    made.render_tools(MESSAGES, TOOLS, answer=False)


def constraint(field: str) -> Read:
    """Return the reader of a constraint that comes in a field of a request."""

    def read(raw: bytes, _: Path) -> None:
        form = read_form({field: raw.decode(errors="replace")})
        if form is None:
            return
        follower = compiler().compile(form).start()
        for _step in range(FOLLOWED):
            if follower.done:
                return
            forced = follower.forced()
            bits = int.from_bytes(follower.allowed(60.0) or b"", "little")
            if not (forced or bits):
                return
            follower.advance(forced[0] if forced else (bits & -bits).bit_length() - 1)

    return read


def expression(raw: bytes, _: Path) -> None:
    """Compile an expression as a condition, and if it is none as a logit.

    Longer ones are refused before.
    """
    text = raw.decode(errors="replace")[:MOST_CHARACTERS]
    try:
        encode_condition(text)
    except WrongExpression:
        encode_logit(text)


def answer(raw: bytes, _: Path) -> None:
    """Split an answer into calls, thoughts and text; nothing but white space may be lost."""
    text = raw.decode(errors="replace")
    cut = len(text) // 3
    for style in CallStyle:
        parser = ToolParser(style)
        parser.push(text[:cut]), parser.push(text[cut:]), parser.flush()
    for start in ThoughtStart:
        thoughts = ThoughtParser(start)
        pieces = [*thoughts.push(text[:cut]), *thoughts.push(text[cut:]), *thoughts.flush()]
        found = "".join(each.text if isinstance(each, Thought) else each for each in pieces)
        assert len(found) <= len(text)


def tokenizer(name: str) -> Read:
    """Return the reader of a tokenizer's file with this name."""

    def read(raw: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(raw)
        made = open_tokenizer(path)
        ids = made.encode("Hello, wörld! <s> 東京")
        made.decode(ids)

    return read


def adapter(name: str) -> Read:
    """Return the reader of an adapter of which one file is replaced."""

    def read(raw: bytes, folder: Path) -> None:
        written = folder / "adapter"
        if not written.exists():
            write_adapter(written, random_adapter(MODEL, targets=("q", "down")))
        path = written / name
        path.write_bytes(raw)
        read_adapter(written, MODEL, ADAPTED)

    return read


def sound_adapter(name: str, folder: Path) -> list[bytes]:
    """Return the bytes of one file of a sound adapter."""
    made = write_adapter(folder / "sound", random_adapter(MODEL, targets=("q", "down")))
    return [(made / name).read_bytes()]


READERS: dict[str, Read] = {
    "template": template,
    "schema": constraint("json_schema"),
    "regex": constraint("regex"),
    "grammar": constraint("grammar"),
    "expression": expression,
    "answer": answer,
    "tokenizer_json": tokenizer("tokenizer.json"),
    "sentencepiece": tokenizer("tokenizer.model"),
    "tiktoken": tokenizer("tokenizer.model"),
    "tokenizer_llama2c": tokenizer("tokenizer.bin"),
    **{name: adapter(file) for name, file in ADAPTERS.items()},
}


def sound_inputs(name: str, folder: Path) -> list[bytes]:
    """Return the sound inputs of a target."""
    if name == "tokenizer_json":
        return [byte_level().to_str().encode()]
    if name in TOKENIZERS:
        return [content(file) for file in TOKENIZERS[name]]
    if name in ADAPTERS:
        return sound_adapter(ADAPTERS[name], folder)
    return texts_of(name)


class TextBench:
    """A reader of bytes, its sound inputs, and a folder for its files."""

    seconds = SECONDS

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self._read = READERS[name]
        self.sound = sound_inputs(name, folder)

    def attempt(self, raw: bytes) -> Exception | None:
        """Read some bytes; return the error if they are refused."""
        try:
            self._read(raw, self.folder)
        except (JaxLlamaError, WrongExpression) as error:
            return error
        return None

    def changed(self, random: Random) -> bytes:
        """Return a sound input with some changes."""
        return mutated(self.sound, random)

    def close(self) -> None:
        """Leave the compiler of constraints to the next target."""
