"""Model files for benchmarks: the default model in other types, and random models of any size.

As a script, writes the files and prints their paths; the other scripts call `model_file` with the
value of --model. Files are kept in the user's cache folder, never in the repository, and are
written only when they are missing. Knows the GGUF format through the `gguf` library alone.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from rich.console import Console
from rich.progress import Progress

from jaxllama.weights.store import cache_folder, resolve

MATRIX = 2  # dimensions
SEED = 0
FIRST_BYTES = 256  # number of single-byte tokens; the rest of a random vocabulary is filler
NORMAL, UNUSED = 1, 5  # token types of GGUF

Tensors = Iterator[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a random Llama."""

    name: str
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn_width: int
    context: int
    theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.width // self.heads


LLAMA_1B = ModelShape("llama-3.2-1b", 128256, 2048, 16, 32, 8, 8192, 131072, 500000.0)
LLAMA_7B = ModelShape("llama-7b", 32000, 4096, 32, 32, 32, 11008, 2048)
TINY = ModelShape("tiny", 512, 64, 2, 4, 2, 128, 1024)


@dataclass(frozen=True)
class Kinds:
    """Storage types of the layers' matrices, and of the embedding that is also the head."""

    layers: Type
    embedding: Type

    @property
    def file_type(self) -> gguf.LlamaFileType:
        """The value of general.file_type, by the type of most matrices."""
        return gguf.LlamaFileType[f"MOSTLY_{self.layers.name}"]


Q4_0 = Kinds(Type.Q4_0, Type.Q8_0)  # as llama-quantize does for the default model
PURE_Q4_0 = Kinds(Type.Q4_0, Type.Q4_0)
Q8_0 = Kinds(Type.Q8_0, Type.Q8_0)
F16 = Kinds(Type.F16, Type.F16)


def default_in(kinds: Kinds) -> Callable[[Path], None]:
    """Return a function that writes the default model with its matrices in other types."""
    return lambda path: requantise(resolve(None), path, kinds)


def random_in(shape: ModelShape, kinds: Kinds) -> Callable[[Path], None]:
    """Return a function that writes a random model of these sizes."""
    return lambda path: write_random(shape, path, kinds)


FILES: dict[str, Callable[[Path], None]] = {
    "smollm2-135m-q4_0": default_in(Q4_0),
    "smollm2-135m-pure-q4_0": default_in(PURE_Q4_0),
    "smollm2-135m-q8_0": default_in(Q8_0),
    "smollm2-135m-f16": default_in(F16),
    "llama-1b-q4_0": random_in(LLAMA_1B, Q4_0),
    "tiny-q4_0": random_in(TINY, Q4_0),
}
# Written only if named.
LARGE = {"llama-7b-f16": random_in(LLAMA_7B, F16), "llama-7b-q4_0": random_in(LLAMA_7B, Q4_0)}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*FILES, *LARGE]))
def main(names: tuple[str, ...]) -> None:
    """Write benchmark model files (all of them, or those NAMED) and print their paths."""
    for name in names or FILES:
        click.echo(model_file(name))


def model_file(model: str | None) -> Path:
    """Return the file that --model names; write it if it is a missing file of this module."""
    write_file = (FILES | LARGE).get(model or "")
    if write_file is None:
        return resolve(model)
    folder = cache_folder() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model}.gguf"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            write_file(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def requantise(source: Path, target: Path, kinds: Kinds) -> None:
    """Copy a GGUF file with its matrices in other types; everything else stays unchanged."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        copy_field(writer, field)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    def tensors() -> Tensors:
        for tensor in reader.tensors:
            yield tensor.name, dequantize(tensor.data, tensor.tensor_type)

    write(writer, tensors(), len(reader.tensors), kinds)


def copy_field(writer: gguf.GGUFWriter, field: gguf.ReaderField) -> None:
    """Copy one metadata field, unless the writer writes the field itself."""
    own = (gguf.Keys.General.ARCHITECTURE, "general.quantization_version", "general.file_type")
    if field.name.startswith("GGUF.") or field.name in own:
        return
    outer, inner = field.types[0], field.types[-1]
    is_list = outer is gguf.GGUFValueType.ARRAY
    writer.add_key_value(field.name, field.contents(), outer, inner if is_list else None)


def write_random(shape: ModelShape, target: Path, kinds: Kinds) -> None:
    """Write a Llama with random weights, a vocabulary of bytes and filler, and tied embeddings."""
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name(shape.name)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.ffn_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    add_vocabulary(writer, shape.vocab)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write(writer, random_tensors(shape), len(sizes(shape)), kinds)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Add a vocabulary of byte tokens, one merge, which some readers require, and filler."""
    letters = [letter(value) for value in range(FIRST_BYTES)]
    fillers = [f"<filler_{token}>" for token in range(FIRST_BYTES + 1, size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*letters, "aa", *fillers])
    writer.add_token_types([NORMAL] * (FIRST_BYTES + 1) + [UNUSED] * len(fillers))
    writer.add_token_merges(["a a"])
    writer.add_bos_token_id(size - 2)
    writer.add_eos_token_id(size - 1)
    writer.add_add_bos_token(False)


def letter(value: int) -> str:
    """Return the character that stands for a byte in byte-level vocabularies."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if value in plain:
        return chr(value)
    return chr(0x100 + [each for each in range(FIRST_BYTES) if each not in plain].index(value))


def sizes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model; matrices are [out, in]."""
    width, keys = shape.width, shape.kv_heads * shape.head_dim
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab, width)}
    for layer in range(shape.layers):
        block = {
            "attn_norm": (width,),
            "attn_q": (width, width),
            "attn_k": (keys, width),
            "attn_v": (keys, width),
            "attn_output": (width, width),
            "ffn_norm": (width,),
            "ffn_gate": (shape.ffn_width, width),
            "ffn_up": (shape.ffn_width, width),
            "ffn_down": (width, shape.ffn_width),
        }
        found |= {f"blk.{layer}.{name}.weight": size for name, size in block.items()}
    found["output_norm.weight"] = (width,)
    return found


def random_tensors(shape: ModelShape) -> Tensors:
    """Yield seeded weights, scaled so that activations stay as large as in real models."""
    rng = np.random.default_rng(SEED)
    for name, size in sizes(shape).items():
        if len(size) == MATRIX:
            yield name, rng.standard_normal(size, np.float32) / np.float32(np.sqrt(size[1]))
        else:
            yield name, np.ones(size, np.float32)


def write(writer: gguf.GGUFWriter, tensors: Tensors, count: int, kinds: Kinds) -> None:
    """Quantise the tensors one at a time, then write the file."""
    writer.add_file_type(kinds.file_type)
    console = Console(stderr=True)
    with Progress(transient=True, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"writing {writer.path}", total=count)
        for name, values in tensors:
            matrix = kinds.embedding if name.startswith("token_embd") else kinds.layers
            to = matrix if values.ndim == MATRIX else Type.F32
            writer.add_tensor(name, quantize(values, to), raw_dtype=to)
            progress.advance(task)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    main()
