"""Check and measure jaxllama on the accelerator of this machine: first right, then fast.

One command on a bare machine that has the chip, from a checkout, without network or model files:

    python bench/accelerator.py                 everything that fits into the time
    python bench/accelerator.py --tiny          a small shape: shows that the script itself works

Needs jax, numpy and einops. Packages that are missing may lie as wheels in --wheels FOLDER. Writes
one line of JSON per figure, at once, so that what was measured before an end by force is kept.
"""

import argparse
import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def find_packages(wheels: str | None) -> None:
    """Make the checkout importable; put a stand-in where the package for annotations is missing."""
    sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]
    for wheel in sorted(Path(wheels).glob("*.whl")) if wheels else ():
        sys.path.append(str(wheel))
    if importlib.util.find_spec("jaxtyping") is None:
        module: Any = types.ModuleType("jaxtyping")
        names = "Bool Float Int Int32 Integer Key Shaped UInt8 UInt32"
        for name in names.split():
            kind = type(name, (), {"__class_getitem__": classmethod(lambda *_: Any)})
            setattr(module, name, kind)
        sys.modules["jaxtyping"] = module


def main() -> None:
    """Read the command line and run all cases that fit into the time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=450, help="time for everything")
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes, for a test of the script"
    )
    parser.add_argument("--kernels", help="a body [default: the fastest here]")
    parser.add_argument("--models", default="1B,8B,135M")
    parser.add_argument("--forms", default="bf16,int4,int8,fp8")
    parser.add_argument("--rows", default="1,8,32,128")
    parser.add_argument(
        "--sampling", action="store_true", help="with the common samplers compiled in"
    )
    parser.add_argument("--checks", default="kernels,engine", help="of what is right")
    parser.add_argument("--trace", metavar="FOLDER", help="write a profile of one decode call")
    parser.add_argument("--wheels", metavar="FOLDER", help="wheels of packages that are missing")
    asked = parser.parse_args()
    find_packages(asked.wheels)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    importlib.import_module("accelerator_cases").run(asked)


if __name__ == "__main__":
    main()
