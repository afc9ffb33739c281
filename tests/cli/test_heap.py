"""What a server does about memory that is free but still held."""

import subprocess
import sys

import pytest

from jaxllama.cli import heap

HELD = """
import ctypes
from pathlib import Path
from jaxllama.cli import heap

MIB = 1 << 20
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) * 1024


def freed(count, size):
    '''Bytes still held after blocks were used and freed, all but the last.'''
    before = resident()
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:
        libc.free(block)
    return resident() - before
"""


def held(script: str) -> int:
    """The number that a fresh process prints."""
    run = subprocess.run(
        [sys.executable, "-c", HELD + script], capture_output=True, text=True, check=True
    )
    return int(run.stdout)


pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the account of memory is Linux's"
)


def test_what_is_free_goes_back_to_the_system() -> None:
    assert held("print(freed(1000, 1 << 16))") > 50 << 20
    assert held("start = resident(); freed(1000, 1 << 16); heap.give_back()\n"
                "print(resident() - start)") < 10 << 20  # fmt: skip


def test_large_blocks_leave_no_holes() -> None:
    again = "libc.free(libc.malloc(30 << 20)); print(freed(8, 4 << 20))"  # the first raises the bar
    assert held(again) > 20 << 20
    assert held(f"heap.keep_large_blocks_apart(); {again}") < 10 << 20


def test_nothing_is_asked_of_another_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "library", object)
    heap.keep_large_blocks_apart()
    heap.give_back()
