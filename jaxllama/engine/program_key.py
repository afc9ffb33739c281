"""The key of compiled programs: a digest of everything that changes a program.

Computed when a model is loaded; programs on disk (`executables.py`) are used only under the same
key. It covers versions, drivers, compiler flags, devices, CPU features, configurations, our own
sources, and the sources of the sampler plugins with their imports.
"""

import hashlib
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

# Settings of JAX with one of these words in their names change messages, files on disk or the list
# of devices (which is in the key), but no program.
SILENT = (
    *("_log", "dump", "traceback", "explain", "cache", "pprint", "warn", "report", "location"),
    *("verbose", "timeout", "platform"),
)
# Packages with a device runtime: their versions change programs, too.
RUNTIMES = (
    *("jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt"),
    *("jax-rocm7-plugin", "jax-rocm7-pjrt", "libtpu"),
)
# Our sources that change programs; the texts of tokens decide which token sets they contain.
FOLDERS = ("engine", "kernels", "model")
FILES = (
    *("config.py", "sampling.py", "sharding.py", "kernels/_cpu.so"),
    *("text/tokenizer.py", "text/vocabulary.py"),
)
DRIVER = Path("/proc/driver/nvidia/version")
# Packages that plugins import, and whose version or source is in the key already.
KNOWN = frozenset((*sys.stdlib_module_names, "jax", "jaxlib", "jaxllama"))
INSTALLED = frozenset(("site-packages", "dist-packages"))
CODE = (".py", ".so", ".pyd")
IMPORT = re.compile(rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import|import[ \t]+(.+))", re.MULTILINE)


def program_key(parts: Iterable[object]) -> str:
    """Return the key (hex) under which compiled programs are stored on disk.

    It is a digest of `parts`, of facts of this machine, and of the source files of this package
    that may change a program. Each of `parts` counts by its `repr`.
    """
    digest = hashlib.sha256()
    for part in (*parts, *machine(), sources()):
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()[:32]


def machine() -> tuple[object, ...]:
    """List the facts of this machine that may change a compiled program.

    These are versions, drivers, flags, devices and CPU features.
    """
    devices = jax.devices()
    return (
        jax.__version__,
        version("jaxlib"),
        [installed_version(name) for name in RUNTIMES],
        sorted({str(device.client.platform_version) for device in devices}),
        DRIVER.read_text() if DRIVER.exists() else "",
        platform.machine(),
        cpu_features(),
        os.environ.get("XLA_FLAGS", ""),
        [(each.platform, each.device_kind, each.id, each.process_index) for each in devices],
        flags(),
    )


def flags() -> list[tuple[str, str]]:
    """List (name, value) of the JAX settings that may change a compiled program."""
    return sorted(
        (name, repr(value))
        for name, value in jax.config.values.items()
        if not any(word in name for word in SILENT)
    )


def cpu_features() -> str:
    """Return the first processor's line of features from /proc/cpuinfo.

    Without that file, returns the processor's name.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def sources() -> str:
    """Return a digest of those source files of this package that may change a compiled program."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for folder in FOLDERS:
        for path in sorted((package / folder).glob("**/*.py")):
            digest.update(path.read_bytes())
    for name in FILES:
        path = package / name
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def digest_code(modules: Iterable[str]) -> list[tuple[str, str]]:
    """List (package, digest or version) of the code that `modules` may run, imports included.

    The packages of `modules`, and packages outside site-packages, are listed with a digest of their
    files. Other packages, which these import, are listed with their version (if known). The
    standard library, JAX and this package are left out.
    """
    found: dict[str, str] = {}
    waiting = [(name.partition(".")[0], True) for name in modules]
    while waiting:
        package, own = waiting.pop()
        if package in found or package in KNOWN:
            continue
        files = files_of(package)
        release = None if own or not all(map(is_installed, files)) else installed_version(package)
        if release is not None:
            found[package] = release
            continue
        digest = hashlib.sha256()
        for path in files:
            code = path.read_bytes()
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(code).digest())
            if path.suffix == ".py":
                waiting += ((name, False) for name in imported(code))
        found[package] = digest.hexdigest()
    return sorted(found.items())


def files_of(package: str) -> list[Path]:
    """List the code files of a top-level package in a fixed order; empty if there is none."""
    spec = spec_of(package)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        folders = map(Path, spec.submodule_search_locations)
        every = (path for folder in folders for path in sorted(folder.rglob("*")))
        return [path for path in every if path.suffix in CODE and path.is_file()]
    origin = Path(spec.origin or "")
    return [origin] if origin.is_file() else []


def spec_of(package: str) -> ModuleSpec | None:
    """Find the import spec of a top-level package; None if there is no such package."""
    module = sys.modules.get(package)
    spec = getattr(module, "__spec__", None)
    if spec is not None:
        return spec
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None


def imported(code: bytes) -> Iterator[str]:
    """Yield the top-level packages that Python source code imports, except relative imports."""
    for single, several in IMPORT.findall(code):
        for name in (single or several).split(b","):
            top = name.strip().partition(b" ")[0].partition(b".")[0]
            if top and re.fullmatch(rb"\w+", top):
                yield top.decode()


def is_installed(path: Path) -> bool:
    """Say whether a file is in site-packages, so that the package's version identifies it."""
    return not INSTALLED.isdisjoint(path.parts)


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution, or None if there is none of that name."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
