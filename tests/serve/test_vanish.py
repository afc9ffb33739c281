"""Peers that vanish without a word, found by TCP's own probes: streaming, and waiting for all."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALONE = ("unshare", "--user", "--map-root-user", "--net")


def why_not() -> str:
    """What this machine lacks for a network of its own."""
    missing = [name for name in ("unshare", "ip") if shutil.which(name) is None]
    if missing:
        return f"needs {' and '.join(missing)}"
    probe = ["ip", "link", "add", "cable", "type", "veth", "peer", "name", "nowhere"]
    tried = subprocess.run([*ALONE, *probe], check=False, capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"no network namespaces: {tried.stderr.strip()}"


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_peers_that_vanish_without_a_word_are_found_and_their_slots_freed():
    command = [*ALONE, sys.executable, "-m", "tests.serve.vanishing"]
    done = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
