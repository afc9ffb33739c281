"""Loading the kernels: what is said when it fails, and which instruction set is chosen."""

import ctypes
import shutil

import jax
import numpy as np
import pytest

from jaxllama.kernels.cpu import library
from jaxllama.kernels.cpu.matmul import normed_matmul
from jaxllama.kernels.cpu.tiling import tile

built = pytest.mark.skipif(
    not library.available(), reason=library.why_not() or "the kernels are there"
)
load = library.load.__wrapped__  # afresh, not what this process has loaded


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the library, which chooses for itself; the path to it."""
    path = tmp_path / "copy.so"
    shutil.copy(library.loaded()._name, path)
    monkeypatch.setenv("JAXLLAMA_LIBRARY", str(path))
    return path


def isa_of(path):
    found = ctypes.CDLL(str(path))
    library.declare(found)
    return found.jaxllama_isa().decode()


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLLAMA_LIBRARY", str(tmp_path / "none.so"))
    found = load()
    assert found.library is None
    assert "none.so does not exist" in found.complaint


def test_a_file_that_is_no_library_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "text.so"
    path.write_text("not a library")
    monkeypatch.setenv("JAXLLAMA_LIBRARY", str(path))
    assert "does not fit this installation" in load().complaint


@built
def test_a_library_that_loads_has_no_complaint():
    assert library.why_not() == ""
    assert library.isa() in ("portable", "avx2", "avx512", "amx")
    assert library.threads() >= 1


@built
def test_an_instruction_set_can_be_forced(copy, monkeypatch):
    monkeypatch.setenv("JAXLLAMA_ISA", "portable")
    assert isa_of(copy) == "portable"


@built
def test_the_best_instruction_set_is_chosen(copy, monkeypatch):
    monkeypatch.delenv("JAXLLAMA_ISA", raising=False)
    before = library.isa()
    best = [name for name in ("portable", "avx2", "avx512", "amx") if library.force_isa(name)][-1]
    library.force_isa(before)
    assert isa_of(copy) == best


@built
@pytest.mark.usefixtures("copy")
def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("JAXLLAMA_ISA", "sse9")
    found = load()
    assert found.library is None
    assert found.complaint == "JAXLLAMA_ISA must be portable, avx2, avx512 or amx; it is 'sse9'"


@built
def test_without_the_library_its_functions_say_why(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLLAMA_LIBRARY", str(tmp_path / "none.so"))
    monkeypatch.setattr(library, "load", load)
    with pytest.raises(RuntimeError, match=r"none\.so does not exist"):
        library.isa()


@built
def test_devices_in_kernels_at_once_get_the_bits_each_gets_alone():
    """Who finds the workers busy does its parts alone; nobody waits in a circle."""
    weight = tile(np.random.default_rng(0).standard_normal((256, 512), dtype=np.float32))
    matmul = jax.jit(lambda x, weight: normed_matmul(x, None, 0.0, weight))
    inputs = [
        jax.device_put((np.full((8, 256), 1 + i, np.float32), weight), device)
        for i, device in enumerate(jax.devices())
    ]
    alone = [np.asarray(matmul(*given)) for given in inputs]
    before = library.threads()
    try:
        library.set_threads(3)
        for _ in range(30):
            together = [matmul(*given) for given in inputs]  # nothing is waited for in between
            for one, other in zip(together, alone, strict=True):
                assert np.array_equal(one, other)
    finally:
        library.set_threads(before)


@built
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_call_inside_a_part_of_another_runs_on_its_own_thread(threads):
    """The thread may own the pool's lock, which it must not ask for again."""
    nested = library.loaded().jaxllama_nested
    nested.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    before = library.threads()
    try:
        library.set_threads(threads)
        for outer, inner in ((64, 33), (1, 100), (7, 1), (2, 2)) * 20:
            filled = np.zeros((outer, inner), np.int32)
            nested(outer, inner, filled.ctypes.data)
            assert (filled == 1).all()
    finally:
        library.set_threads(before)
