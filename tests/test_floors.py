"""Imports go down only, and nothing remembers: the house rules that the code itself can show."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "jaxllama": ROOT / "jaxllama",
    "jaxllama_samplers": ROOT / "plugins/jaxllama_samplers",
    "jaxllama_formats": ROOT / "plugins/jaxllama_formats",
}

# What each part may import: our parts, then other people's packages.
WORDS = (
    "errors chips config durations shapes limits request registry mistakes startup strict_json "
    "worker_pool"
)
MATHS = f"{WORDS} devices scopes sharding kernels model sampling"
ENGINE = f"{MATHS} engine"
WHOLE = f"{ENGINE} formats text weights bridge messages constraints intake completion scoring"
FLOORS: dict[str, tuple[str, str]] = {
    # 0: the words everybody shares
    "errors": ("", ""),
    "shapes": ("", "jax jaxtyping numpy"),
    "chips": ("errors", ""),
    "config": (WORDS, ""),
    "durations": ("", ""),
    "limits": (WORDS, ""),
    "request": (WORDS, ""),
    "registry": (WORDS, ""),
    "startup": ("", "threading"),
    "mistakes": (WORDS, ""),
    "strict_json": (WORDS, ""),
    "worker_pool": (WORDS, ""),
    # 1: the sockets; maths, text and files
    "sampling": (WORDS, "jax"),
    "formats": (WORDS, ""),
    "sharding": (WORDS, "jax numpy"),
    "scopes": ("", "jax"),
    "devices": ("errors", "jax"),
    "hosts": ("errors devices", "jax numpy threading"),
    "kernels": (f"{WORDS} scopes sharding", "jax numpy ctypes einops"),
    "model": (f"{WORDS} sharding kernels", "jax numpy einops"),
    "text": (f"{WORDS} formats", "numpy tokenizers"),
    "weights": (
        f"{WORDS} formats sharding kernels model text",
        "numpy einops gguf huggingface_hub jaxtyping ml_dtypes safetensors",
    ),
    "weights.native": (f"{WORDS} kernels text weights", "numpy msgspec"),
    "weights.native_store": (f"{WORDS} weights", "numpy tensorstore"),
    # 2: token ids only
    "engine": (MATHS, "jax numpy"),
    "engine.compiling": (WORDS, "jax threading"),
    "engine.deep_stack": ("", "threading"),
    "engine.remote_calls": (f"{WORDS} engine", "msgspec numpy"),
    # 3: the thread crossing; checked requests
    "bridge": (f"{WORDS} engine", "threading asyncio"),
    "messages": (f"{WORDS} formats", ""),
    "constraints": (f"{WORDS} text", "llguidance threading concurrent"),
    "intake": (f"{ENGINE} formats messages text constraints", ""),
    "confined": (f"{WORDS} formats", "multiprocessing"),
    "encoder": (f"{ENGINE} text weights", "jax numpy"),
    "service": (
        f"{WORDS} engine formats bridge messages intake encoder constraints confined",
        "asyncio concurrent",
    ),
    "service.block_events": (f"{WORDS} engine", "msgspec threading"),
    "service.fair_queue": (f"{WORDS} service", "threading"),
    # 4: what callers get, and how all of it is put together
    "completion": (WORDS, ""),
    "scoring": (f"{WORDS} engine intake completion", "numpy"),
    "streams": (f"{WORDS} engine intake completion beams", ""),
    "beams": (WORDS, ""),
    "loading": (f"{ENGINE} formats text weights", "jax"),
    "llm": (f"{WHOLE} streams beams loading hosts", "jax numpy"),
    "recording": (f"{WORDS} engine intake", "numpy"),
    "explain": (f"{ENGINE} recording", "jax numpy threading"),
    "__main__": ("cli", ""),
    "": (f"{WORDS} formats completion encoder llm", ""),  # jaxllama/__init__.py
    "serve": (
        f"{WORDS} formats messages intake text sampling scoring completion recording explain "
        "encoder beams service",
        "asyncio aiohttp msgspec numpy prometheus_client yarl",
    ),
    # 5: on top of everything
    "cli": (
        f"{WHOLE} llm loading streams recording explain bounds service serve hosts",
        "jax click rich asyncio",
    ),
    "cli.heap": ("", "ctypes"),
    "cli.models_file": (WORDS, "msgspec"),
    "cli.main": (f"{WORDS} cli", "click threading"),
    "cli.remote": (f"{WORDS} streams cli", "threading concurrent"),  # a thread per open request
    "cli.deploy": (f"{WORDS} serve cli deploy", "click"),
    "cli.check": (
        f"{WHOLE} serve testing cli",
        "click rich",
    ),  # runs the conformance kit for authors
    "deploy": (f"{WORDS} serve service", "msgspec aiohttp yarl asyncio ray"),
    "deploy.application": (f"{WORDS} serve service deploy cli", "ray threading asyncio"),
    "testing": (f"{WHOLE} llm", "jax jaxtyping numpy tokenizers"),
    "testing.dialects": (f"{WHOLE} service serve testing", "msgspec"),
    # Plugins hang off the sockets, ours like anyone's.
    "jaxllama_samplers": ("sampling shapes", "jax"),
    "jaxllama_formats": ("formats errors", "jinja2"),
}
GUARDED = {"threading", "asyncio", "multiprocessing", "concurrent", "pickle", "marshal", "ctypes"}
# The dice, too: traced in place, and one call where nothing is compiled.
JITTED_IN = (
    "engine.blueprints",
    "engine.encoding",
    "engine.choosing.random_numbers",
    "jaxllama_samplers.expression_machine",  # so that it compiles once outside programs, too
    "testing",
)
CHANGING = {
    *("append", "add", "extend", "insert", "update", "setdefault", "pop", "popitem", "remove"),
    *("discard", "clear", "sort", "reverse"),
}


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str  # dotted, without "jaxllama."
    tree: ast.Module

    @property
    def part(self) -> str:
        return self.name.partition(".")[0]


def module(name: str, source: str) -> Module:
    return Module(name, ast.parse(source))


def modules() -> Iterator[Module]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            name = ".".join(part for part in parts if part != "__init__")
            yield module(re.sub(r"^jaxllama(\.|$)", "", name), path.read_text())


def imports(source: Module) -> Iterator[str]:
    """Every module that is imported anywhere in the file, dotted."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.name} line {node.lineno}: a relative import"
            whole = node.module or ""
            yield from (
                [f"jaxllama.{alias.name}" for alias in node.names]
                if whole == "jaxllama"
                else [whole]
            )


def misplaced(source: Module) -> list[str]:
    """Imports that go up or sideways, or bring what this floor must not know."""
    floor = FLOORS.get(source.name, FLOORS[source.part])
    ours, theirs = (words.split() for words in floor)
    found = []
    for name in imports(source):
        top, _, rest = name.partition(".")
        part = rest.partition(".")[0] if top == "jaxllama" else top
        if top == "jaxllama" or top in PACKAGES:
            fits = part in ours or part == source.part
            if part == "" or (top == "jaxllama" and part not in FLOORS):
                fits = source.part == "cli"  # `import jaxllama`: the roof may ask for the front
        else:
            fits = top in theirs or (top in sys.stdlib_module_names and top not in GUARDED)
        if not fits:
            found.append(f"{source.name or 'jaxllama'} imports {name}")
    return found


def remembered(source: Module) -> list[str]:
    """Names of the module that its functions change, and mutable ones that are no constants."""
    found, names = [], set()
    for node in source.tree.body:
        for target in targets(node):
            names.add(target)
            is_constant = target.isupper() or target.lstrip("_").isupper() or target == "__all__"
            if not is_constant and is_mutable(getattr(node, "value", None)):
                found.append(f"{source.name}: {target} is mutable and no constant")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            found.append(f"{source.name}: global {', '.join(node.names)}")
        changed = changes(node)
        if changed in names:
            found.append(f"{source.name} line {node.lineno}: {changed} is changed")
    return found


def is_mutable(value: ast.expr | None) -> bool:
    """Whether an expression makes something that can be changed in place."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value.func.id in ("list", "dict", "set", "defaultdict", "Counter", "deque")
    made = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
    return isinstance(value, made)


def targets(node: ast.stmt) -> list[str]:
    """Names that a statement of the module binds."""
    if isinstance(node, ast.Assign):
        return [each.id for each in node.targets if isinstance(each, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def changes(node: ast.AST) -> str | None:
    """The name whose value a node changes in place, if it does."""
    changed: ast.expr | None = None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        changed = node.func.value if node.func.attr in CHANGING else None
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        changed = node.value
    return changed.id if isinstance(changed, ast.Name) else None


def jitted(source: Module) -> list[str]:
    """Uses of jax.jit outside the one file that holds programs."""
    if source.name.startswith(JITTED_IN):
        return []
    return [
        f"{source.name} line {node.lineno}: jit"
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("jit", "pmap"))
        or (isinstance(node, ast.alias) and node.name in ("jit", "pmap"))
    ]


def guarding(source: Module) -> list[str]:
    """Asserts that do more than tell a type: `python -O` would leave them out."""
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assert):
            words = ast.unparse(node.test)
            if not (words.endswith(" is not None") or words.startswith("isinstance(")):
                found.append(f"{source.name} line {node.lineno}: assert {words}")
    return found


ALL = {each.name or "jaxllama": each for each in modules()}


def test_every_part_has_a_floor():
    parts = {each.part for each in ALL.values()}
    assert parts <= set(FLOORS)
    assert set(FLOORS) <= parts | set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_imports_go_down_only(name):
    assert misplaced(ALL[name]) == []


@pytest.mark.parametrize("name", ALL)
def test_modules_remember_nothing(name):
    assert remembered(ALL[name]) == []


@pytest.mark.parametrize("name", ALL)
def test_only_programs_are_jitted(name):
    assert jitted(ALL[name]) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("engine.slots", "from jaxllama.text.tokenizer import Tokenizer"),
        ("engine.slots", "def f():\n    from jaxllama.llm import LLM"),
        ("model.cache", "from jaxllama import llm"),
        ("model.cache", "import jaxllama.engine.engine"),
        ("errors", "from jaxllama.config import ModelConfig"),
        ("llm", "from jaxllama.cli.main import main"),
        ("llm", "from jaxllama_samplers.top_p import TopP"),
        ("text.tail", "import jax"),
        ("formats", "import jax.numpy as jnp"),
        ("weights.gguf", "import jax"),
        ("cli.chat", "from jaxllama.testing import tiny"),
        ("engine.programs", "from flax import nnx"),
        ("sampling", "import flax"),
        ("engine.engine", "import threading"),
        ("llm", "import asyncio"),
        ("weights.store", "import torch"),
        ("weights.store", "import pickle"),
        ("jaxllama_samplers.top_p", "from jaxllama.engine.choosing.rows import Rows"),
        ("jaxllama_formats.chatml", "import jax"),
        ("engine.engine", "import jaxllama"),
    ],
)
def test_a_planted_import_is_caught(name, source):
    assert len(misplaced(module(name, source))) == 1


def test_a_planted_relative_import_is_caught():
    with pytest.raises(AssertionError, match="relative"):
        misplaced(module("engine.engine", "from . import slots"))


@pytest.mark.parametrize(
    "source",
    [
        "cache = {}",
        "seen: list[int] = []",
        "counts = dict()",
        "COUNT = 0\ndef f():\n    global COUNT\n    COUNT += 1",
        "SEEN = set()\ndef f(x):\n    SEEN.add(x)",
        "TABLE = {}\ndef f(x):\n    TABLE[x] = 1",
        "TABLE = {}\ndef f(x):\n    del TABLE[x]",
        "_MEMO = {}\nclass C:\n    def f(self):\n        _MEMO.update(a=1)",
    ],
)
def test_a_planted_memory_is_caught(source):
    assert remembered(module("engine.engine", source)) != []


def test_constants_and_local_names_are_no_memory():
    source = "TABLE = {1: 2}\n__all__ = ['f']\ndef f():\n    found = []\n    found.append(1)\n"
    assert remembered(module("engine.engine", source)) == []


@pytest.mark.parametrize("source", ["import jax\n@jax.jit\ndef f(): ...", "from jax import jit"])
def test_a_planted_jit_is_caught(source):
    assert jitted(module("model.llama", source)) != []
    assert jitted(module("engine.blueprints", source)) == []


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("testing")])
def test_nothing_depends_on_asserts(name):
    assert guarding(ALL[name]) == []


@pytest.mark.parametrize("source", ["assert n > 0", "def f(x):\n    assert x in allowed, 'no'"])
def test_a_planted_assert_is_caught(source):
    assert guarding(module("serve.guard", source)) != []


LIGHT = [
    *("jaxllama", "jaxllama.cli.main", "jaxllama.formats", "jaxllama.limits", "jaxllama.registry"),
    *(f"jaxllama.{name}" for name in ALL if name == "text" or name.startswith("text.")),
]


def run(code: str) -> int:
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode


def test_what_must_start_quickly_brings_no_jax():
    lines = [f"import {name}" for name in LIGHT]
    assert run("\n".join([*lines, "import sys", "assert 'jax' not in sys.modules"])) == 0


def test_what_brings_jax_is_noticed():
    assert run("import jaxllama.sampling, sys\nassert 'jax' not in sys.modules") == 1
