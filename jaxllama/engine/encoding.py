"""Encoding: texts of token ids become vectors, several texts to a tile of a fixed size.

Used by `encoder.py`. One program per size of tile is compiled ahead of time and kept on disk like
the engine's programs. Texts are packed into tiles, so short texts share a tile, and no length has a
program of its own. Knows token ids and vectors, no text and no slot.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllama.config import EncoderConfig
from jaxllama.engine.probes import InSteps
from jaxllama.engine.executables import Executables
from jaxllama.model.bert import QUERIES, TextTile, encoder_of
from jaxllama.model.params import Tree

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # what, done, total

SIZES = (32, 128, 512, 2048)  # tokens of a tile; the last one of a model holds its longest text
USUAL = 128  # tokens of a tile where there are many short texts; larger ones are no faster
SMALLEST_TEXT = 4  # tokens; a tile of N tokens holds at most N / SMALLEST_TEXT texts


@dataclass
class PackedTexts:
    """The texts of one tile."""

    size: int  # tokens of the tile
    texts: list[int] = field(default_factory=list)  # by index
    filled: int = 0

    def fits(self, length: int) -> bool:
        """Say whether a text of so many tokens has room."""
        return self.filled + length <= self.size and len(self.texts) < most_texts(self.size)

    def add(self, index: int, length: int) -> None:
        """Put a text behind the others."""
        self.texts.append(index)
        self.filled += length


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
        self.config, self.params, self.mesh = config, params, mesh
        self.sizes = tile_sizes(config.max_length)
        self.traces = 0
        self._executables = executables
        self._weights, self._tree = jax.tree.flatten(params)
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._compiled: dict[int, Any] = {}

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compile or load the program of every size; afterwards `traces` does not change."""
        report = progress or (lambda *_: None)
        for done, size in enumerate(self.sizes):
            report("programs", done, len(self.sizes))
            self._compiled[size] = self._load_or_compile(size, report)
        report("programs", len(self.sizes), len(self.sizes))

    def encode_in_steps(self, texts: Sequence[Sequence[int]]) -> InSteps[np.ndarray]:
        """Return the vectors of texts, [texts, width]; yield the tokens of each tile computed."""
        found = np.zeros((len(texts), self.config.width), np.float32)
        for tile in pack([len(ids) for ids in texts], self.sizes):
            found[tile.texts] = self._compute(tile, texts)
            yield tile.filled
        return found

    def close(self) -> None:
        """Free the device memory of the weights."""
        for leaf in self._weights:
            leaf.delete()

    def _compute(self, tile: PackedTexts, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Compute one tile; return a vector for each of its texts."""
        rows = np.zeros((3, tile.size), np.int32)
        rows[2] = -1
        at = 0
        for number, index in enumerate(tile.texts):
            length = len(texts[index])
            rows[0, at : at + length] = texts[index]
            rows[1, at : at + length] = np.arange(length)
            rows[2, at : at + length] = number
            at += length
        return np.asarray(self._compiled[tile.size](self._weights, rows))[: len(tile.texts)]

    def _load_or_compile(self, size: int, report: Progress) -> Any:
        """Return the program of one size, from disk if it is there."""
        name, started = f"encode_{size}", time.perf_counter()
        weights = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in self._weights
        ]
        rows = jax.ShapeDtypeStruct((3, size), jnp.int32, sharding=self._whole)
        if self._executables is not None:
            trees = (jax.tree.structure(((weights, rows), {})), jax.tree.structure(0))
            loaded = self._executables.load(name, trees, list(self.mesh.devices.flat))
            if loaded is not None:
                logger.info("%s loaded in %.2f s", name, time.perf_counter() - started)
                return loaded
        report(f"compiling {name}", self.sizes.index(size), len(self.sizes))

        def encode(weights: list[Any], rows: Any) -> Any:
            self.traces += 1
            model = encoder_of(self.config, jax.tree.unflatten(self._tree, weights))
            return model(TextTile(*rows), most_texts(size))

        with jax.set_mesh(self.mesh):
            compiled = jax.jit(encode, out_shardings=self._whole).lower(weights, rows).compile()
        if self._executables is not None:
            self._executables.save(name, compiled)
        logger.info("%s compiled in %.2f s", name, time.perf_counter() - started)
        return compiled


def tile_sizes(longest: int) -> tuple[int, ...]:
    """Return the sizes of tiles for texts of at most `longest` tokens, ascending."""
    unit = QUERIES if longest > QUERIES else SIZES[0]
    largest = -(-longest // unit) * unit
    return (*(size for size in SIZES if size < largest), largest)


def most_texts(size: int) -> int:
    """Return how many texts a tile holds at most."""
    return max(1, size // SMALLEST_TEXT)


def pack(lengths: Sequence[int], sizes: Sequence[int]) -> list[PackedTexts]:
    """Distribute texts over tiles, the longest first, each to the first tile that has room.

    A new tile is the smallest that holds the text, and all other texts if they are few.
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
