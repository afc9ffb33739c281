"""Settings of the C allocator for a process that serves for months.

Called by `jaxllama serve`, which owns its process; the library leaves the allocator of its callers
alone. Does nothing where the allocator is not glibc's. Knows no model.
"""

import ctypes
import sys

LARGEST_SHARED = 1 << 20  # bytes
MMAP_THRESHOLD = -3  # of malloc.h


def keep_large_blocks_apart() -> None:
    """Let the allocator map every large block by itself, so that freeing returns it to the system.

    Otherwise freed blocks leave holes in the heap that are too small for later blocks, and the
    process slowly grows.
    """
    tune = getattr(library(), "mallopt", None)
    if tune is not None:
        tune(MMAP_THRESHOLD, LARGEST_SHARED)


def give_back() -> None:
    """Return free memory to the system: compiling leaves hundreds of megabytes of it."""
    trim = getattr(library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def library() -> ctypes.CDLL | None:
    """Return the C library of this process on Linux, else None.

    The library may lack the functions of glibc's allocator.
    """
    return ctypes.CDLL(None) if sys.platform == "linux" else None
