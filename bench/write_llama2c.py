"""Model files in llama2.c's form with random weights, in the sizes of its stories models.

Used by `origins.py`. Version 0 of the format, which every program that reads it knows, with a
tokenizer.bin beside it. Knows the format by itself.
"""

import os
import struct
from pathlib import Path

import numpy as np
from write_gguf import ModelShape

from jaxllama.weights.store import cache_folder

SEED = 0
BYTES = 256
STORIES_15M = ModelShape("stories15M", 32000, 288, 6, 6, 6, 768, 256)
STORIES_110M = ModelShape("stories110M", 32000, 768, 12, 12, 12, 2048, 1024)
TINY_STORIES = ModelShape("tiny-stories", 512, 64, 2, 4, 4, 128, 256)


def stories_file(shape: ModelShape) -> Path:
    """Return the file of a model of this shape; write it, and its tokenizer, if it is missing."""
    folder = cache_folder() / "bench" / shape.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{shape.name}.bin"
    if not path.exists():
        write_tokenizer(folder / "tokenizer.bin", shape.vocab)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            write_stories(part, shape)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def write_stories(path: Path, shape: ModelShape) -> None:
    """Write a model: seven sizes, then its tensors in float32; the output head is the embedding."""
    rng = np.random.default_rng(SEED)
    width, wide, layers = shape.width, shape.ffn_width, shape.layers
    keys = shape.kv_heads * shape.head_dim
    sizes = (width, wide, layers, shape.heads, shape.kv_heads, shape.vocab, shape.context)
    attention = [(width, width), (keys, width), (keys, width), (width, width)]
    forward = [(wide, width), (width, wide), (wide, width)]
    with path.open("wb") as file:

        def matrices(count: int, size: tuple[int, int]) -> None:
            for _ in range(count):
                values = rng.standard_normal(size, np.float32) / np.float32(np.sqrt(size[1]))
                file.write(values.astype("<f4").tobytes())

        def norms(count: int) -> None:
            file.write(np.ones(count * width, "<f4").tobytes())

        file.write(struct.pack("<7i", *sizes))
        matrices(1, (shape.vocab, width))
        norms(layers)
        for size in attention:
            matrices(layers, size)
        norms(layers)
        for size in forward:
            matrices(layers, size)
        norms(1)
        file.write(np.zeros(shape.context * shape.head_dim, "<f4").tobytes())  # rotary tables


def write_tokenizer(path: Path, vocab: int) -> None:
    """Write a vocabulary of special pieces, bytes and filler."""
    special = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % each for each in range(BYTES))]
    pieces = [*special, b" "]
    pieces += [b"filler%d" % token for token in range(len(pieces), vocab)]
    raw = struct.pack("<I", max(map(len, pieces)))
    for rank, piece in enumerate(pieces):
        raw += struct.pack("<fi", -float(rank), len(piece)) + piece
    path.write_bytes(raw)
