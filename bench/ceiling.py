"""The limits of this machine: the arithmetic rate of its vector units, and its memory read rate.

Used by the scripts that compare a figure with such a limit. Compiles a few lines of C++; where that
is impossible there is no limit of arithmetic, and NumPy reads the memory.
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
    """Measure the GOP/s of each kind of vector unit that exists, with `threads` threads."""
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
    """Measure the GB/s of reading this memory once."""
    library = compiled("read.cc")
    if library is None:
        return read_by_numpy(words, threads)
    library.read_rate.restype = ctypes.c_double
    library.read_rate.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return float(library.read_rate(words.ctypes.data, words.nbytes // LINE, threads))


def read_by_numpy(words: np.ndarray, threads: int) -> float:
    """Measure the GB/s of reading this memory once with NumPy.

    Bitwise `or` is NumPy's fastest operation; it reaches three quarters of the memory's rate.
    """
    parts = np.array_split(words, threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(len, parts))  # wakes the threads
        taken = seconds(lambda: list(pool.map(np.bitwise_or.reduce, parts)))
    return words.nbytes / taken / 1e9


@functools.cache
def compiled(name: str) -> ctypes.CDLL | None:
    """Compile a C++ source of this folder and load it; return None if that fails."""
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
