"""The benchmark for accelerators runs on a CPU, too, with a small shape."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_it_writes_a_line_for_every_case():
    command = [sys.executable, str(ROOT / "bench/accelerator.py"), "--tiny", "--kernels", "xla"]
    chosen = ["--models", "1B", "--forms", "int4", "--rows", "2", "--seconds", "3600"]
    chosen += ["--checks", "kernels"]  # the engine on a CPU has tests of its own
    found = subprocess.run([*command, *chosen], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert not any("error" in line for line in lines)
    assert all(line["right"] for line in lines if "right" in line)
    assert sum("right" in line for line in lines) >= 3
    assert {"decode 1B int4, 2 rows", "prefill 1B int4, 16 tokens"} <= {
        line["case"] for line in lines
    }
