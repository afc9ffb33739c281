"""The shared library of C++ kernels: loads it, registers it with XLA, says why it cannot.

Used by the modules of this folder. Knows no operation. The first call loads the library, once per
process; importing this file does nothing.
"""

import ctypes
import functools
import logging
import os
from pathlib import Path
from typing import NamedTuple

import jax

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).parents[1] / "_cpu.so"
POINTER, LONG = ctypes.c_void_p, ctypes.c_int64  # argument types of C functions


class Loaded(NamedTuple):
    """The C++ library, or the reason why it could not be loaded."""

    library: ctypes.CDLL | None
    complaint: str


def available() -> bool:
    """Say whether the C++ kernels can run in this process; loads them first."""
    return load().library is not None


def why_not() -> str:
    """Return in one line why the C++ kernels cannot run, "" if they can."""
    return load().complaint


def isa() -> str:
    """Return the instruction set in use: portable, avx2, avx512, amx, or emulated (for tests)."""
    name: bytes = loaded().jaxllama_isa()
    return name.decode()


def prompts_use_amx() -> bool:
    """Say whether prefill uses AMX or its emulation, which round differently from decode steps."""
    return isa() in ("amx", "emulated")


def threads() -> int:
    """Return how many threads one kernel uses."""
    return int(loaded().jaxllama_threads())


def set_threads(count: int) -> None:
    """Set the number of threads; results do not depend on it. No kernel may be running."""
    if count < 1:
        raise ValueError(f"threads is {count}; it must be at least 1")
    loaded().jaxllama_set_threads(count)


def force_isa(name: str) -> bool:
    """Use another instruction set from now on, for tests; False if this processor lacks it."""
    return bool(loaded().jaxllama_set_isa(name.encode()))


def loaded() -> ctypes.CDLL:
    """Return the C++ library, registered with XLA; raise RuntimeError if it cannot be loaded."""
    loaded = load()
    if loaded.library is None:
        raise RuntimeError(f"the CPU kernels are not available: {loaded.complaint}")
    return loaded.library


@functools.cache
def load() -> Loaded:
    """Load the C++ library and register it with XLA, once; return it, or why that failed."""
    # Another build of the same library, as one with sanitizers.
    path = Path(os.environ.get("JAXLLAMA_LIBRARY") or LIBRARY)
    if not path.exists():
        return Loaded(
            None, f"{path} does not exist; install jaxllama where there is a C++17 compiler"
        )
    try:
        found = ctypes.CDLL(str(path))
        declare(found)
        complaint: bytes | None = found.jaxllama_complaint()
        if complaint is not None:
            return Loaded(None, f"{complaint.decode()}; it is {os.environ['JAXLLAMA_ISA']!r}")
        register(found)
        if found.jaxllama_tiles_are_refused():
            logger.warning(
                "this processor has AMX, but the operating system does not let this process use "
                "it; the kernels use AVX-512, and prompts take longer"
            )
    except (OSError, AttributeError, RuntimeError, ValueError) as error:
        return Loaded(None, f"{path} does not fit this installation ({error}); reinstall jaxllama")
    return Loaded(found, "")


def declare(found: ctypes.CDLL) -> None:
    """Set argument and result types of the C functions in the library, as ctypes needs them.

    `found` is the loaded library.
    """
    found.jaxllama_isa.restype = ctypes.c_char_p
    found.jaxllama_complaint.restype = ctypes.c_char_p
    found.jaxllama_set_isa.argtypes = [ctypes.c_char_p]
    found.jaxllama_set_threads.argtypes = [ctypes.c_int]
    found.jaxllama_next_target.restype = ctypes.c_void_p
    found.jaxllama_next_target.argtypes = [
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_char_p),
        ctypes.POINTER(ctypes.c_void_p),
    ]


def register(found: ctypes.CDLL) -> None:
    """Register every kernel of the loaded library, `found`, with XLA under its own name."""
    name, handler = ctypes.c_char_p(), ctypes.c_void_p()
    place = found.jaxllama_next_target(None, ctypes.byref(name), ctypes.byref(handler))
    while place is not None:
        if name.value is not None and handler.value is not None:
            capsule = jax.ffi.pycapsule(handler)
            jax.ffi.register_ffi_target(name.value.decode(), capsule, platform="cpu")
        place = found.jaxllama_next_target(place, ctypes.byref(name), ctypes.byref(handler))
