"""The ceilings of this machine: what its vector units can do, and how fast it reads memory.

Used by the scripts that hold a figure against one. Compiles a few lines of C++; where that is
impossible there is no ceiling of arithmetic, and NumPy does the reading.
"""

import ctypes
import functools
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from harness import seconds

HERE = Path(__file__).parent
UNITS = {"bytes": 0, "pairs": 1, "floats": 2}
LINE = 64  # bytes


def ceilings(threads: int) -> dict[str, float]:
    """GOP/s of each unit there is, by `threads` threads."""
    library = None
    if platform.machine() in ("x86_64", "AMD64"):
        library = compiled("peak.cc")
    if library is None:
        return {}
    library.peak.restype = ctypes.c_double
    found = {unit: max(library.peak(code, threads) for _ in range(3))
             for unit, code in UNITS.items()}  # fmt: skip
    return {unit: rate for unit, rate in found.items() if rate}


def read_rate(words: np.ndarray, threads: int) -> float:
    """GB/s of reading this memory once."""
    library = compiled("read.cc")
    if library is None:
        return read_by_numpy(words, threads)
    library.read_rate.restype = ctypes.c_double
    library.read_rate.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return float(library.read_rate(words.ctypes.data, words.nbytes // LINE, threads))


def read_by_numpy(words: np.ndarray, threads: int) -> float:
    """Likewise; an `or` is what NumPy does fastest, at three quarters of what memory delivers."""
    parts = np.array_split(words, threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(len, parts))  # wakes the threads
        taken = seconds(lambda: list(pool.map(np.bitwise_or.reduce, parts)))
    return words.nbytes / taken / 1e9


@functools.cache
def compiled(name: str) -> ctypes.CDLL | None:
    """One of the sources beside this file as a library, if there is a compiler for it."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.so"
        command = [compiler, "-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"]
        built = subprocess.run(
            [*command, str(HERE / name), "-o", str(made)], capture_output=True, check=False
        )
        return None if built.returncode else ctypes.CDLL(str(made))
