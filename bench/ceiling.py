"""The ceiling of arithmetic: what this machine's vector units can do at most.

Used by `kernels.py`. Compiles a few lines of C++; where that is impossible there is no ceiling.
"""

import ctypes
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("peak.cc")
UNITS = {"bytes": 0, "pairs": 1, "floats": 2}


def ceilings(threads: int) -> dict[str, float]:
    """GOP/s of each unit there is, by `threads` threads."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or platform.machine() not in ("x86_64", "AMD64"):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "peak.so"
        command = [compiler, "-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"]
        built = subprocess.run(
            [*command, str(SOURCE), "-o", str(made)], capture_output=True, check=False
        )
        if built.returncode:
            return {}
        library = ctypes.CDLL(str(made))
        library.peak.restype = ctypes.c_double
        found = {unit: max(library.peak(code, threads) for _ in range(3))
                 for unit, code in UNITS.items()}  # fmt: skip
    return {unit: rate for unit, rate in found.items() if rate}
