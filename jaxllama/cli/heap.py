"""Heap: the C allocator, made fit for a process that serves for months.

Called by `jaxllama serve`, whose process is ours to tune; the library leaves its caller's allocator
alone. Does nothing where the allocator is not glibc's. Knows no model.
"""

import ctypes
import sys

LARGEST_SHARED = 1 << 20  # bytes
MMAP_THRESHOLD = -3  # of malloc.h


def keep_large_blocks_apart() -> None:
    """Give every large block memory of its own, which goes back when it is freed.

    Otherwise what a program needs while it runs leaves holes that the next run may not fit into,
    and the process grows by that much now and then.
    """
    tune = getattr(library(), "mallopt", None)
    if tune is not None:
        tune(MMAP_THRESHOLD, LARGEST_SHARED)


def give_back() -> None:
    """Return what is free to the system: compiling leaves hundreds of megabytes."""
    trim = getattr(library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def library() -> ctypes.CDLL | None:
    """The C library of this process, on Linux; not every one has what is asked of it."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None
