"""Encoding: texts of token ids become vectors, several texts to a tile of a fixed size.

Used by `encoder.py`. Texts are packed into tiles, so short texts share a tile, and no length has
programs of its own. Each size of tile has three programs, compiled ahead of time and kept on disk
like the engine's: `begin` (embeddings), `block` (any one block) and `end` (pooling). A caller that
shares its thread is given a turn after a few blocks. Knows token ids and vectors, no text, no slot.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllama.config import EncoderConfig
from jaxllama.engine.executables import Executables
from jaxllama.engine.probes import InSteps
from jaxllama.model.bert import QUERIES, TextTile, block_of, embeddings_of, pool
from jaxllama.model.params import Tree
from jaxllama.startup import Progress

logger = logging.getLogger(__name__)

SIZES = (32, 128, 512, 2048)  # tokens of a tile; the last one of a model holds its longest text
USUAL = 128  # tokens of a tile where there are many short texts; larger ones are no faster
PIECE_SECONDS = 0.02  # computed between two turns of the caller: as long as a few decode steps
PROGRAMS = ("begin", "block", "end")
SMALLEST_TEXT = 4  # tokens; a tile of N tokens holds at most N / SMALLEST_TEXT texts


@dataclass
class PackedTexts:
    """The texts of one tile, which is a batch of texts for one call."""

    size: int  # tokens of the tile
    texts: list[int] = field(default_factory=list)  # by index
    filled: int = 0

    def fits(self, length: int) -> bool:
        """Say whether the tile has room for a text of `length` tokens.

        A tile is a batch of texts for one call.
        """
        return self.filled + length <= self.size and len(self.texts) < most_texts(self.size)

    def add(self, index: int, length: int) -> None:
        """Append the text with this index, `length` tokens long, after the texts added so far."""
        self.texts.append(index)
        self.filled += length

    def rows(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return token ids, positions and text numbers of the tile (a batch), int32 [3, size].

        `texts` are the token ids of all texts, those of other tiles included. Text numbers count
        from 0 in the tile; that of unused places is -1.
        """
        rows = np.zeros((3, self.size), np.int32)
        rows[2] = -1
        at = 0
        for number, index in enumerate(self.texts):
            length = len(texts[index])
            rows[0, at : at + length] = texts[index]
            rows[1, at : at + length] = np.arange(length)
            rows[2, at : at + length] = number
            at += length
        return rows


class TextEncoder:
    """The compiled programs of one encoder, and its weights."""

    def __init__(
        self,
        config: EncoderConfig,
        params: Tree,
        mesh: Mesh,
        *,
        executables: Executables | None = None,
    ) -> None:
        self.config, self.mesh = config, mesh
        self.sizes = tile_sizes(config.max_length)
        self.traces = 0
        self._blocks: list[Tree] = [params["blocks"][i] for i in range(config.layers)]
        self._first = {name: tree for name, tree in params.items() if name != "blocks"}
        self._executables = executables
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._compiled: dict[tuple[str, int], Any] = {}
        self._seconds: dict[int, float] = {}  # of one block, as last measured, by size of tile

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compile or load the programs of every size; afterwards nothing is traced any more.

        `progress` is called with (what, done, total) meanwhile.
        """
        report = progress or (lambda *_: None)
        wanted = [(name, size) for size in self.sizes for name in PROGRAMS]
        for done, (name, size) in enumerate(wanted):
            report("programs", done, len(wanted))
            label = f"compiling encode_{name}_{size}"
            compiling = partial(report, label, done, len(wanted))
            self._compiled[name, size] = self._load_or_compile(name, size, compiling)
        report("programs", len(wanted), len(wanted))

    def encode_in_steps(self, texts: Sequence[Sequence[int]]) -> InSteps[np.ndarray]:
        """Return the vectors of texts, [texts, width], computed in pieces of about PIECE_SECONDS.

        This is a generator. `texts` are token ids, computed in tiles: batches of a fixed number of
        tokens. After each piece it yields how many more tokens are done: all tokens of a tile after
        its last piece, else 0.
        """
        found = np.zeros((len(texts), self.config.width), np.float32)
        for tile in pack([len(ids) for ids in texts], self.sizes):
            size, rows = tile.size, tile.rows(texts)
            x, bias = self._compiled["begin", size](self._first, rows)
            at = 0
            while at < len(self._blocks):
                if at:
                    yield 0
                piece = self._blocks[at : at + self._blocks_at_a_time(size)]
                started = time.perf_counter()
                for weights in piece:
                    x = self._compiled["block", size](weights, x, rows, bias)
                x.block_until_ready()  # the caller's turn comes when the piece is done
                self._seconds[size] = (time.perf_counter() - started) / len(piece)
                at += len(piece)
            found[tile.texts] = np.asarray(self._compiled["end", size](x, rows))[: len(tile.texts)]
            yield tile.filled
        return found

    def close(self) -> None:
        """Free the device memory of the weights."""
        for leaf in jax.tree.leaves((self._first, self._blocks)):
            leaf.delete()

    def _blocks_at_a_time(self, size: int) -> int:
        """Return how many transformer blocks to compute in one piece of about PIECE_SECONDS.

        `size` is the number of tokens of the tile, the batch of texts. Returns 1 as long as no
        block was timed for this size.
        """
        seconds = self._seconds.get(size)
        return max(1, int(PIECE_SECONDS / seconds)) if seconds else 1

    # The programs.

    def begin(self, first: Tree, rows: Any) -> Any:
        """Return the embedded tokens of a tile, and its attention biases (None for most models).

        A tile is a batch of texts. `first` has the weights outside the blocks, `rows` the arrays of
        a `TextTile`.
        """
        embeddings, tile = embeddings_of(self.config, first), TextTile(*rows)
        return embeddings(tile), embeddings.biases(tile)

    def block(self, weights: Tree, x: Any, rows: Any, bias: Any) -> Any:
        """Return the hidden states of a tile after one transformer block with these weights.

        A tile is a batch of texts. `x` are the states before it, `rows` the arrays of a `TextTile`,
        `bias` the attention biases or None.
        """
        return block_of(self.config, weights)(x, TextTile(*rows).text, bias)

    def end(self, x: Any, rows: Any) -> Any:
        """Pool the last hidden states of a tile into one vector for each text it can hold.

        A tile is a batch of texts. `x` are the states, `rows` the arrays of a `TextTile`.
        """
        return pool(x, TextTile(*rows).text, most_texts(x.shape[0]), self.config)

    # Compiling.

    def _arguments(self, name: str, size: int) -> tuple[Any, ...]:
        """Return shapes and types of the arguments of a program for tiles of `size` tokens.

        A tile is a batch of texts. `name` is the program: "begin", "block" or "end".
        """
        config = self.config
        rows = self._abstract((3, size), jnp.int32)
        x = self._abstract((size, config.width))
        bias = self._abstract((config.heads, size, size)) if config.relative_buckets else None
        first, weights = jax.tree.map(
            lambda leaf: self._abstract(leaf.shape, leaf.dtype), (self._first, self._blocks[0])
        )
        return {"begin": (first, rows), "block": (weights, x, rows, bias), "end": (x, rows)}[name]

    def _abstract(self, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._whole)

    def _load_or_compile(self, name: str, size: int, compiling: Callable[[], None]) -> Any:
        """Return one compiled program for tiles of `size` tokens, from disk if it is there.

        `name` is "begin", "block" or "end". Calls `compiling` before it compiles.
        """
        arguments, called = self._arguments(name, size), f"encode_{name}_{size}"
        function: Callable[..., Any] = getattr(self, name)
        started = time.perf_counter()
        if self._executables is not None:
            bias = 0 if self.config.relative_buckets else None
            output = (0, bias) if name == "begin" else 0
            trees = (jax.tree.structure((arguments, {})), jax.tree.structure(output))
            loaded = self._executables.load(called, trees, list(self.mesh.devices.flat))
            if loaded is not None:
                logger.info("%s loaded in %.2f s", called, time.perf_counter() - started)
                return loaded
        compiling()

        def traced(*given: Any) -> Any:
            self.traces += 1
            return function(*given)

        traced.__name__ = called
        with jax.set_mesh(self.mesh):
            compiled = jax.jit(traced, out_shardings=self._whole).lower(*arguments).compile()
        seconds = time.perf_counter() - started
        if self._executables is not None:
            self._executables.save(called, compiled, seconds)
        logger.info("%s compiled in %.2f s", called, seconds)
        return compiled


def tile_sizes(longest: int) -> tuple[int, ...]:
    """Return the sizes that tiles can have, for texts of at most `longest` tokens, ascending.

    A tile is a batch of texts for one call; its size is the tokens of all its texts together.
    """
    unit = QUERIES if longest > QUERIES else SIZES[0]
    largest = -(-longest // unit) * unit
    return (*(size for size in SIZES if size < largest), largest)


def most_texts(size: int) -> int:
    """Return how many texts a tile, a batch of `size` tokens, holds at most."""
    return max(1, size // SMALLEST_TEXT)


def pack(lengths: Sequence[int], sizes: Sequence[int]) -> list[PackedTexts]:
    """Distribute texts over tiles, the longest first, each to the first tile that has room.

    A tile is a batch of texts for one call. `lengths` has the number of tokens of each text,
    `sizes` the possible sizes of a tile in tokens, ascending. A new tile has the smallest size with
    room for all texts that are left, or for USUAL tokens if that is less; but its first text always
    fits.
    """
    tiles: list[PackedTexts] = []
    rest = sum(lengths)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        tile = next((tile for tile in tiles if tile.fits(length)), None)
        if tile is None:
            wanted = max(length, min(rest, USUAL))
            tile = PackedTexts(next(size for size in sizes if size >= min(wanted, sizes[-1])))
            tiles.append(tile)
        tile.add(index, length)
        rest -= length
    return tiles
