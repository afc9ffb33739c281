"""A disk cache of compiled checks, so that checking a plugin again compiles only changed code.

Used by `jaxllama check`. JAX's own cache stores the programs; it loads native code, so the folder
is used only if no other user can write to it.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxllama.engine.executables import drop_old
from jaxllama.engine.own_files import is_private
from jaxllama.engine.program_key import program_key

MOST_FILES = 600  # of about ten samplers; a folder with more files is emptied


@contextmanager
def programs_kept(root: Path) -> Iterator[None]:
    """Within the context, store every compiled program under `root` and load it from there.

    Does nothing if the folder cannot be used safely.
    """
    folder = root / program_key(())
    if not usable(folder):
        yield
        return
    drop_old(root)
    options = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def usable(folder: Path) -> bool:
    """Make the folder; return False if that fails or another user can write to it.

    A folder with more than MOST_FILES files is emptied.
    """
    try:
        if folder.is_dir() and sum(1 for _ in folder.iterdir()) > MOST_FILES:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return is_private(folder)
    except OSError:
        return False
