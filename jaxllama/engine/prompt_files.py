"""Prompt files: the blocks of the prompt store on disk, so that a restart keeps them.

Read when a model is loaded and written when its engine is closed. One file per block, in a folder
for each key: weights, configurations, kernels and versions, so a block brings back the same bits.
A file is used only if this user alone can write it, and if its size, key and digest are right.
Blocks computed with an adapter stay in memory. Knows no requests and no slots.
"""

import hashlib
import itertools
import logging
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxllama.config import KEY_BLOCK
from jaxllama.engine.own_files import DIGEST_BYTES, is_private, read_own, write_own
from jaxllama.engine.prefixes import TOKEN_BYTES
from jaxllama.engine.prompt_store import PromptStore, StoredBlock
from jaxllama.model.cache import Columns
from jaxllama.model.params import Tree

logger = logging.getLogger(__name__)

MAGIC = b"jaxllama-prompt-block-1\n"
ENDING = ".block"
KEY_HEX = 2 * DIGEST_BYTES  # letters in the name of a folder
BEGINNING = bytes(DIGEST_BYTES)  # digest of the parent of a first block
HEADER = struct.Struct(f"<{DIGEST_BYTES}s{DIGEST_BYTES}sI{KEY_BLOCK * TOKEN_BYTES}s")


class BlockFile(NamedTuple):
    """The content of a file of the prompt cache: one block of tokens with its columns."""

    parent: bytes  # digest of the prefix before it
    tokens: bytes
    columns: Columns


class PromptFiles:
    """The files of the prompt cache that belong to one key, in a folder."""

    def __init__(self, root: Path, key: str, columns: Columns, vocab_size: int) -> None:
        """Prepare to keep prompt blocks (tokens with their KV cache columns) as files on disk.

        The files lie in a folder of `root` whose name is a digest of `key`, which stands for the
        model and its settings. `columns` has the shapes and types of the cache columns of every
        block. Files with token ids of `vocab_size` or more are refused.
        """
        self._root = root
        self._key = hashlib.sha256(key.encode()).digest()
        self._folder = root / self._key.hex()
        self._leaves, self._tree = jax.tree.flatten(columns)
        self._payload = sum(each.size * each.dtype.itemsize for each in self._leaves)
        self._size = len(MAGIC) + HEADER.size + self._payload + DIGEST_BYTES
        self._vocab_size = vocab_size

    def read(self, store: PromptStore) -> None:
        """Add the blocks on disk to a store, the most recently used ones if not all fit.

        Files are skipped if they are damaged, if other users can write them, or if the blocks
        before them in the prompt are missing. Their number is logged.
        """
        if not self._folder.is_dir():
            return
        if not is_private(self._folder):
            logger.warning(
                "%s is not owned by this user alone; its prompts are ignored", self._root
            )
            return
        paths = sorted(self._folder.glob(f"*{ENDING}"), key=lambda path: path.lstat().st_mtime_ns)
        found: dict[bytes, BlockFile] = {}
        bad = 0
        for path in paths[-store.most :] if store.most else ():
            content = self._content(path)
            if content is None:
                bad += 1
            else:
                found[digest_of(content.parent, content.tokens)] = content
        placed: dict[bytes, StoredBlock] = {}
        for digest in found:  # the least recently used first
            block = place(digest, found, placed, store)
            if block is None:
                bad += 1
            else:
                store.touch(block.path)
        logger.info("%d prompt blocks read from %s", len(placed), self._root)
        if bad:
            logger.warning(
                "%d prompt blocks in %s are damaged, without their beginning or not private, and "
                "are ignored",
                bad,
                self._root,
            )

    def write(self, store: PromptStore) -> None:
        """Write the blocks of a store to files, and delete all other files in their folder.

        Blocks computed with an adapter are left out. Folders of other models or settings are
        deleted, the oldest first, until all files together take no more than the store may hold. A
        failure is only logged.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not is_private(self._folder):
                raise PermissionError(f"{self._folder} is not owned by this user alone")
            wanted: dict[Path, None] = {}
            for block in store:
                if block.adapter is None and block.columns is not None:
                    wanted[self._write(block)] = None
            for path in self._folder.iterdir():
                if path not in wanted:
                    path.unlink()
            for rank, path in enumerate(wanted):
                os.utime(path, (rank, rank))  # the order of use
            drop_others(self._root, self._folder, store.most * self._size)
        except OSError as error:
            logger.warning("prompts were not kept in %s: %s", self._root, error)

    def _write(self, block: StoredBlock) -> Path:
        """Write one block, unless its file is there already; return its path."""
        parent = BEGINNING
        for before in block.path[:-1]:
            parent = digest_of(parent, before.tokens)
        path = self._folder / f"{digest_of(parent, block.tokens).hex()}{ENDING}"
        if path.exists() and path.lstat().st_size == self._size:
            return path
        header = HEADER.pack(self._key, parent, len(block.tokens), block.tokens)
        leaves = jax.tree.leaves(block.columns)
        write_own(path, b"".join((header, *(np.asarray(each).tobytes() for each in leaves))), MAGIC)
        return path

    def _content(self, path: Path) -> BlockFile | None:
        """Read one block file; None if it is damaged, not private, or of another model."""
        try:
            if path.lstat().st_size != self._size:
                return None
            body = read_own(path, MAGIC)
        except (OSError, ValueError):
            return None
        if body is None:
            return None
        key, parent, count, padded = HEADER.unpack_from(body)
        if key != self._key or not 0 < count <= len(padded) or count % TOKEN_BYTES:
            return None
        tokens = np.frombuffer(padded[:count], np.int32)
        if tokens.min() < 0 or tokens.max() >= self._vocab_size:
            return None
        return BlockFile(parent, padded[:count], self._columns(body))

    def _columns(self, body: bytes) -> Columns:
        at, leaves = HEADER.size, []
        for like in self._leaves:
            flat = np.frombuffer(body, like.dtype, like.size, at)
            leaves.append(flat.reshape(like.shape))
            at += flat.nbytes
        columns: Columns = jax.tree.unflatten(self._tree, leaves)
        return columns


def prompt_key(programs: str, params: Tree) -> str:
    """Return the key of stored prompts: a digest of `programs` and of all weights.

    `programs` is the key under which the model's compiled programs are stored.
    """
    digest = hashlib.sha256(programs.encode())
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return digest.hexdigest()


def digest_of(parent: bytes, tokens: bytes) -> bytes:
    """Return the digest that identifies a prefix.

    `parent` is the digest of the prefix without its last block, `tokens` are the tokens of that
    block (int32 as bytes).
    """
    return hashlib.sha256(parent + tokens).digest()


def place(
    digest: bytes,
    found: dict[bytes, BlockFile],
    placed: dict[bytes, StoredBlock],
    store: PromptStore,
) -> StoredBlock | None:
    """Add the block with this digest, after the blocks before it, to the store; return the block.

    `found` are the blocks read from disk, `placed` those already in the store, both by digest.
    Returns None if a block before it is missing.
    """
    chain: list[bytes] = []
    while digest != BEGINNING and digest not in placed:
        if digest not in found or len(chain) > len(found):
            return None
        chain.append(digest)
        digest = found[digest].parent
    block = placed.get(digest)
    for each in reversed(chain):
        if block is not None and len(block.tokens) < KEY_BLOCK * TOKEN_BYTES:
            return None  # nothing can follow a block that is not full
        content = found[each]
        block = placed[each] = store.add(block, content.tokens, content.columns)
    return block


def drop_others(root: Path, own: Path, most: int) -> None:
    """Delete folders in `root`, the oldest first, until all take at most `most` bytes.

    The folder `own` is kept. Folders that do not hold prompt blocks are ignored.
    """
    folders = [each for each in root.iterdir() if is_ours(each)]
    folders.sort(key=lambda each: (each != own, -each.lstat().st_mtime_ns))
    taken = itertools.accumulate(sum(sizes_in(each)) for each in folders)
    for folder, size in zip(folders, taken, strict=True):
        if folder != own and size > most:
            shutil.rmtree(folder, ignore_errors=True)


def is_ours(path: Path) -> bool:
    """Say whether a path is a folder of prompt blocks: its name is a hex key, and it is private."""
    name = path.name
    return len(name) == KEY_HEX and set(name) <= set("0123456789abcdef") and is_private(path)


def sizes_in(folder: Path) -> Iterator[int]:
    """Yield the sizes in bytes of the files in a folder."""
    return (path.lstat().st_size for path in folder.iterdir())
