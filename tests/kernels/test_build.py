"""The kernels under the sanitizers: no element too many is read, no arithmetic is undefined.

Where Debian's g++-aarch64-linux-gnu and qemu-user are installed, they are built for aarch64,
too, and must compute the same bits there.
"""

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
    "matmul": ("matmul.cc", "matmul_emulated.cc", "tile.cc", "take_rows.cc"),
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
ARM_COMPILER, ARM = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
ARM_LIBRARIES = "/usr/aarch64-linux-gnu"
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no g++")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """The name of a family of kernels."""
    return request.param


@pytest.fixture(scope="module")
def driver(request, family, tmp_path_factory):
    """The kernels of a family and their driver, built with sanitizers; kept for later runs."""
    folder = tmp_path_factory.mktemp("sanitized")
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
    for path in sorted(
        [*SOURCES.glob("*.cc"), *SOURCES.glob("*.h"), *HERE.glob("*.cc"), *HERE.glob("*.h")]
    ):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(repr((BODIES, SANITIZED, QUICKLY)).encode())
    return digest.hexdigest()[:32]


def compiled(folder, name, flags):
    made = folder / f"{name}.o"
    build("-c", *flags, str(SOURCES / f"{name}.cc"), "-o", str(made))
    if flags:
        inline = [line for line in symbols(made) if " W jaxllama::" in line]
        assert not inline, "older processors may get this file's copy of: " + ", ".join(inline)
    return str(made)


def symbols(made):
    run = subprocess.run(["nm", "-C", made], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


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


@pytest.mark.skipif(not (ARM_COMPILER and ARM), reason="no compiler for aarch64, or no emulator")
def test_aarch64_computes_the_bits_of_this_machine(family, driver, tmp_path):
    names = (*SHARED, *FAMILIES[family], f"{family}_portable.cc")
    sources = [*(SOURCES / name for name in names), HERE / f"drive_{family}.cc"]
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread"]
    defined = ["-DJAXLLAMA_X86=0", f"-I{SOURCES}"]
    program = tmp_path / "driver"
    subprocess.run([ARM_COMPILER, *options, *defined, *sources, "-o", program], check=True)
    there = drive(ARM, "-L", ARM_LIBRARIES, program)
    assert there.returncode == 0, (there.stdout + there.stderr)[:4000]
    assert there.stdout.startswith("portable is sound, bits ")
    assert there.stdout in drive(driver).stdout
