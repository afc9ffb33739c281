"""What llama2.c computes from one of its files, in NumPy float32: from bytes to greedy tokens.

Called by the tests of this folder. Written from the file layout alone, without the project's
readers, model or tokenizers, and must stay so: a file and a prompt go in, text comes out. Version 2
also rounds the inputs of each matrix to int8, as llama2.c's program for such files does.
"""

import struct
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

F32 = np.float32


@dataclass
class Matrix:
    """Rows of weights; with codes, groups of `group` share a scale."""

    values: np.ndarray
    codes: np.ndarray | None = None
    scales: np.ndarray | None = None
    group: int = 0

    def times(self, x: np.ndarray, *, rounds: bool) -> np.ndarray:
        """Multiply a vector; with `rounds`, its numbers become int8 first if the weights are."""
        if self.codes is None or not rounds:
            return self.values @ x
        groups = x.reshape(-1, self.group)
        scale = np.abs(groups).max(axis=1) / F32(127)
        rounded = np.round(groups / np.where(scale == 0, 1, scale)[:, None])
        codes = self.codes.reshape(len(self.values), -1, self.group).astype(F32)
        sums = np.einsum("ogk,gk->og", codes, rounded.astype(F32))
        return (sums * self.scales.reshape(len(self.values), -1) * scale).sum(axis=1)


@dataclass
class Model:
    """The sizes and weights of one file."""

    sizes: tuple[int, ...]
    single: dict[str, Matrix] = field(default_factory=dict)
    layers: dict[str, list[Matrix]] = field(default_factory=dict)


def load(path: Path) -> Model:
    """Read a file of any version."""
    raw = path.read_bytes()
    if raw[:4] != struct.pack("<I", 0x616B3432):
        return load_v0(raw)
    version = struct.unpack_from("<i", raw, 4)[0]
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack_from("<7i", raw, 8)
    model = Model((dim, hidden, layers, heads, kv_heads, vocab, context))
    group = struct.unpack_from("<i", raw, 37)[0] if version == 2 else 0
    at = 256

    def take(*shape: int) -> Matrix:
        nonlocal at
        count = int(np.prod(shape))
        if group and len(shape) == 2:
            codes = np.frombuffer(raw, np.int8, count, at).reshape(shape)
            scales = np.frombuffer(raw, "<f4", count // group, at + count)
            at += count + 4 * len(scales)
            values = (codes.reshape(-1, group) * scales[:, None]).astype(F32).reshape(shape)
            return Matrix(values, codes, scales, group)
        values = np.frombuffer(raw, "<f4", count, at).reshape(shape)
        at += 4 * count
        return Matrix(values)

    kv = dim // heads * kv_heads
    for name in ("att", "ffn"):
        model.layers[name] = [take(dim) for _ in range(layers)]
    model.single["norm"] = take(dim)
    model.single["tokens"] = take(vocab, dim)
    for name, rows, columns in (
        ("q", dim, dim), ("k", kv, dim), ("v", kv, dim), ("o", dim, dim),
        ("w1", hidden, dim), ("w2", dim, hidden), ("w3", hidden, dim),
    ):  # fmt: skip
        model.layers[name] = [take(rows, columns) for _ in range(layers)]
    model.single["head"] = model.single["tokens"] if raw[36] else take(vocab, dim)
    assert at == len(raw)
    return model


def load_v0(raw: bytes) -> Model:
    """Read version 0: float32 throughout."""
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack_from("<7i", raw)
    numbers = np.frombuffer(raw, "<f4", offset=28)
    kv = dim // heads * kv_heads
    at = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        at += int(np.prod(shape))
        return numbers[at - int(np.prod(shape)) : at].reshape(shape)

    model = Model((dim, hidden, layers, heads, kv_heads, abs(vocab), context))
    model.single["tokens"] = Matrix(take(abs(vocab), dim))
    for name, *shape in (
        ("att", dim), ("q", dim, dim), ("k", kv, dim), ("v", kv, dim), ("o", dim, dim),
        ("ffn", dim), ("w1", hidden, dim), ("w2", dim, hidden), ("w3", hidden, dim),
    ):  # fmt: skip
        model.layers[name] = [Matrix(each) for each in take(layers, *shape)]
    model.single["norm"] = Matrix(take(dim))
    take(2, context, dim // heads // 2)
    model.single["head"] = model.single["tokens"] if vocab > 0 else Matrix(take(-vocab, dim))
    assert at == len(numbers)
    return model


def weights(path: Path) -> dict[str, np.ndarray]:
    """What the file holds by the project's names: float32, matrices by input, heads in halves."""
    model = load(path)
    heads, kv_heads = model.sizes[3:5]
    found = {"embed.weight": model.single["tokens"].values}
    for name, ours in (
        ("att", "attention_norm"), ("ffn", "ffn_norm"), ("q", "attention.q"), ("k", "attention.k"),
        ("v", "attention.v"), ("o", "attention.o"), ("w1", "ffn.gate"), ("w2", "ffn.down"),
        ("w3", "ffn.up"),
    ):  # fmt: skip
        for i, matrix in enumerate(model.layers[name]):
            rows = matrix.values
            if name in ("q", "k"):
                rows = halves(rows, heads if name == "q" else kv_heads)
            found[f"blocks.{i}.{ours}.weight"] = np.ascontiguousarray(rows.T)
    found["final_norm.weight"] = model.single["norm"].values
    if model.single["head"] is not model.single["tokens"]:
        found["unembed.weight"] = np.ascontiguousarray(model.single["head"].values.T)
    return found


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head, the first of every pair before the second ones."""
    size = len(rows) // heads
    order = [
        head * size + i for head in range(heads) for i in (*range(0, size, 2), *range(1, size, 2))
    ]
    return rows[order]


def scaled(x: np.ndarray, weight: Matrix) -> np.ndarray:
    """RMS norm."""
    return weight.values * (x / np.sqrt(np.mean(x * x, dtype=F32) + F32(1e-5)))


def turned(x: np.ndarray, pos: int, size: int) -> np.ndarray:
    """Rotate neighbours of each head by the position."""
    pairs = x.reshape(-1, size // 2, 2)
    angle = F32(pos) * (F32(1) / F32(10000) ** (np.arange(0, size, 2, dtype=F32) / F32(size)))
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = pairs[..., 0], pairs[..., 1]
    return np.stack([first * cos - second * sin, first * sin + second * cos], -1).reshape(x.shape)


class Run:
    """One sequence: keys and values of all its positions."""

    def __init__(self, model: Model, *, rounds: bool) -> None:
        self.model = model
        self.rounds = rounds
        self.cache: list[tuple[list, list]] = [([], []) for _ in range(model.sizes[2])]

    def times(self, matrix: Matrix, x: np.ndarray) -> np.ndarray:
        """Multiply a vector."""
        return matrix.times(x, rounds=self.rounds)

    def forward(self, token: int, pos: int) -> np.ndarray:
        """Logits after one more token."""
        single, layers = self.model.single, self.model.layers
        dim, _, count, heads, kv_heads, _, _ = self.model.sizes
        size = dim // heads
        x = single["tokens"].values[token].astype(F32)
        for i in range(count):
            seen = scaled(x, layers["att"][i])
            q = turned(self.times(layers["q"][i], seen), pos, size).reshape(heads, size)
            keys, values = self.cache[i]
            keys.append(turned(self.times(layers["k"][i], seen), pos, size).reshape(kv_heads, size))
            values.append(self.times(layers["v"][i], seen).reshape(kv_heads, size))
            mixed = []
            for head in range(heads):
                own = head // (heads // kv_heads)
                scores = np.array([key[own] @ q[head] for key in keys], F32) / np.sqrt(F32(size))
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                mixed.append(sum(w * v[own] for w, v in zip(weights, values, strict=True)))
            x = x + self.times(layers["o"][i], np.concatenate(mixed))
            seen = scaled(x, layers["ffn"][i])
            gate = self.times(layers["w1"][i], seen)
            gate = gate * (F32(1) / (F32(1) + np.exp(-gate)))
            x = x + self.times(layers["w2"][i], gate * self.times(layers["w3"][i], seen))
        return self.times(single["head"], scaled(x, single["norm"]))


def last_logits(path: Path, prompt: list[int], *, rounds: bool = True) -> np.ndarray:
    """Logits after a prompt."""
    run = Run(load(path), rounds=rounds)
    return [run.forward(token, pos) for pos, token in enumerate(prompt)][-1]


def greedy(path: Path, prompt: list[int], count: int, *, rounds: bool = True) -> list[int]:
    """The likeliest tokens after a prompt; stops before token 1, which begins another text."""
    run = Run(load(path), rounds=rounds)
    logits = [run.forward(token, pos) for pos, token in enumerate(prompt)][-1]
    found: list[int] = []
    while len(found) < count:
        token = int(logits.argmax())
        if token == 1:
            break
        found.append(token)
        logits = run.forward(token, len(prompt) + len(found) - 1)
    return found


def load_tokenizer(path: Path, vocab: int) -> tuple[list[bytes], list[float]]:
    """Pieces and scores of a tokenizer.bin."""
    raw, at = path.read_bytes(), 4
    pieces, scores = [], []
    for _ in range(vocab):
        score, length = struct.unpack_from("<fi", raw, at)
        pieces.append(raw[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    return pieces, scores


def encode(text: str, pieces: list[bytes], scores: list[float]) -> list[int]:
    """Begin token, a space, characters or bytes; then the best merge while there is one."""
    ids = {}
    for token, piece in enumerate(pieces):
        ids.setdefault(piece, token)
    tokens = [1]
    if text:
        tokens.append(ids[b" "])
    for character in text:
        raw = character.encode()
        tokens += [ids[raw]] if raw in ids else [byte + 3 for byte in raw]
    while True:
        best = None
        for i, (one, other) in enumerate(pairwise(tokens)):
            merged = ids.get(pieces[one] + pieces[other])
            if merged is not None and (best is None or scores[merged] > best[0]):
                best = (scores[merged], i, merged)
        if best is None:
            return tokens
        tokens[best[1] : best[1] + 2] = [best[2]]


def decode(tokens: list[int], before: int, pieces: list[bytes]) -> bytes:
    """The bytes of tokens; a space right after the begin token is dropped."""
    raw = b""
    for token in tokens:
        piece = pieces[token]
        if before == 1 and piece.startswith(b" "):
            piece = piece[1:]
        if len(piece) == 6 and piece.startswith(b"<0x"):
            piece = bytes.fromhex(piece[3:5].decode())
        raw += piece
        before = token
    return raw
