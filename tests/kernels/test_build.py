"""The kernels under the sanitizers: no element too many is read, no arithmetic is undefined."""

import hashlib
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "jaxllama/kernels/cpu"
SHARED = ("pool.cc", "isa.cc", "scratch.cc")
FAMILIES = {
    "matmul": ("matmul.cc", "tile.cc", "take_rows.cc"),
    "attend": ("attend.cc",),
    "choose": ("choose.cc", "places.cc", "ranks.cc"),
}
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, *(f"-mavx512{each}" for each in ("f", "bw", "vl", "dq", "vnni", "bf16"))]
X86 = platform.machine() in ("x86_64", "AMD64")
BODIES = {"portable": [], **({"avx2": AVX2, "avx512": [*AVX512, "-w"]} if X86 else {})}
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
QUICKLY = ["-O0", "-g1", "-Dalways_inline=unused"]  # copies of what is inlined are checked, too

COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no g++")


@pytest.fixture(scope="module", params=FAMILIES)
def driver(request, tmp_path_factory):
    """The kernels of a family and their driver, built with sanitizers; kept for later runs."""
    family, folder = request.param, tmp_path_factory.mktemp("sanitized")
    kept = request.config.cache.mkdir("sanitized") / family
    built = kept / key_of_sources() / "driver"
    if not built.exists():
        jobs = {f"{family}_{body}": flags for body, flags in BODIES.items()}
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda job: compiled(folder, *job), jobs.items()))
        shared = [str(SOURCES / name) for name in (*SHARED, *FAMILIES[family])]
        main = HERE / f"drive_{family}.cc"
        for old in kept.glob("*"):
            if old != built.parent:
                shutil.rmtree(old, ignore_errors=True)
        built.parent.mkdir(parents=True, exist_ok=True)
        unfinished = built.with_name(f"{os.getpid()}")  # another process may build it now
        build(*shared, str(main), *objects, "-o", str(unfinished), "-pthread")
        unfinished.replace(built)
    return built


def key_of_sources():
    """A name for everything that a driver is built of: another compiler or a byte is another."""
    digest = hashlib.sha256(Path(COMPILER).resolve().read_bytes())
    for path in sorted([*SOURCES.glob("*.cc"), *SOURCES.glob("*.h"), *HERE.glob("*.cc")]):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(repr((BODIES, SANITIZED, QUICKLY)).encode())
    return digest.hexdigest()[:32]


def compiled(folder, name, flags):
    made = folder / f"{name}.o"
    build("-c", *flags, str(SOURCES / f"{name}.cc"), "-o", str(made))
    return str(made)


def build(*arguments):
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", *SANITIZED, *QUICKLY]
    defined = [f"-DJAXLLAMA_X86={int(X86)}", f"-I{SOURCES}"]
    run = subprocess.run(
        [COMPILER, *options, *defined, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[:4000]


def drive(program, *arguments):
    kept = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, env=kept
    )


def test_kernels_are_right_and_stay_within_their_arrays(driver):
    run = drive(driver)
    assert run.returncode == 0, (run.stdout + run.stderr)[:4000]
    assert "portable is sound" in run.stdout


def test_a_short_array_is_noticed(driver):
    run = drive(driver, "short")
    assert run.returncode != 0
    assert "heap-buffer-overflow" in run.stderr
