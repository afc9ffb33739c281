"""The key of compiled programs: what changes a program changes it, and nothing else does."""

import dataclasses
import sys
from types import SimpleNamespace

import jax
import pytest

from jaxllama.config import EngineConfig
from jaxllama.engine import program_key
from jaxllama.engine.program_key import machine
from jaxllama.loading import describe, engine_config, key_of, read_weights
from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import Sampler
from jaxllama.sharding import make_mesh
from jaxllama.testing import FAMILIES, random_params, tiny
from jaxllama.weights import open_checkpoint
from tests.weights.writers import flatten, write_gguf, write_hf


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A sampler in a package, with a helper beside it, one outside, and one of that one."""
    files = {
        "plugged/__init__.py": "",
        "plugged/sampler.py": """\
            import numpy, outside_helper
            from jaxllama.sampling import Sampler
            from .helper import FACTOR
            class Own(Sampler):
                pass
            """,
        "plugged/helper.py": "FACTOR = 1",
        "outside_helper.py": "def late():\n    from outside_table import TABLE",
        "outside_table.py": "TABLE = 1",
        "unrelated.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(line.removeprefix(" " * 12) for line in text.splitlines()))
    monkeypatch.syspath_prepend(tmp_path)
    from plugged.sampler import Own  # noqa: PLC0415 - written above

    yield tmp_path, Own
    for name in [name for name in sys.modules if name.startswith(("plugged", "outside_"))]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "edited",
    ["plugged/sampler.py", "plugged/helper.py", "outside_helper.py", "outside_table.py"],
)
def test_edited_module_behind_a_sampler_changes_the_key(plugin, edited):
    folder, own = plugin
    before = describe({"own": own})
    assert describe({"own": own}) == before
    (folder / edited).write_text((folder / edited).read_text() + "\n# edited")
    assert describe({"own": own}) != before


def test_edited_module_that_no_sampler_imports_changes_nothing(plugin):
    folder, own = plugin
    before = describe({"own": own})
    (folder / "unrelated.py").write_text("# edited")
    assert describe({"own": own}) == before


def test_installed_package_that_a_sampler_imports_counts_by_its_version(plugin):
    _, own = plugin
    code = {name: what for kind, name, what in describe({"own": own}) if kind == "code"}
    assert set(code) == {"plugged", "outside_helper", "outside_table", "numpy"}
    assert code["numpy"] == program_key.installed_version("numpy")


def test_own_samplers_share_one_digest_of_their_package():
    described = describe(load_plugins(SAMPLERS, Sampler).loaded)
    assert [name for kind, name, _ in described if kind == "code"] == ["jaxllama_samplers"]


@pytest.mark.parametrize(
    ("name", "value", "changes"),
    [
        ("jax_log_compiles", True, False),
        ("jax_logging_level", "INFO", False),
        ("jax_dump_ir_to", "/tmp/somewhere", False),
        ("jax_traceback_filtering", "off", False),
        ("jax_default_matmul_precision", "bfloat16", True),
        ("jax_threefry_partitionable", False, True),
    ],
)
def test_only_settings_that_change_programs_change_the_key(name, value, changes):
    before, old = machine(), jax.config.values[name]
    assert old != value
    try:
        jax.config.update(name, value)
        assert (machine() != before) is changes
    finally:
        jax.config.update(name, old)


def test_another_driver_or_runtime_changes_the_key(monkeypatch, tmp_path):
    before = machine()
    with monkeypatch.context() as patch:
        patch.setattr(program_key, "DRIVER", tmp_path / "version")
        (tmp_path / "version").write_text("NVRM version 580.1")
        assert machine() != before
    with monkeypatch.context() as patch:
        patch.setattr(program_key, "installed_version", lambda name: f"{name} 2.0")
        assert machine() != before

    client = SimpleNamespace(platform_version="cuda 12080")
    device = SimpleNamespace(
        platform="cuda", device_kind="H100", id=0, process_index=0, client=client
    )
    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", lambda: [device])
        others = machine()
        client.platform_version = "cuda 12090"
        assert machine() != others
        others = machine()
        device.process_index = 1
        assert machine() != others


def key_of_file(path, **settings) -> str:
    with open_checkpoint(path) as checkpoint:
        config = checkpoint.config
        engine: EngineConfig = engine_config(config, "xla", slots=2, context=64, **settings)
        mesh = make_mesh(engine, config)
        return key_of(config, engine, read_weights(checkpoint, engine, mesh, None), {}, "tokens")


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 3e-6])
@pytest.mark.parametrize("name", ["llama2", "llama3", "qwen2", "qwen3", "mistral"])
def test_same_model_from_gguf_and_hugging_face_has_the_same_key(tmp_path, name, eps):
    config = dataclasses.replace(FAMILIES[name], norm_eps=eps)
    params = flatten(random_params(config))
    write_gguf(tmp_path / "one.gguf", config, params)
    write_hf(tmp_path / "other", config, params)
    assert key_of_file(tmp_path / "one.gguf") == key_of_file(tmp_path / "other")


def test_only_settings_of_the_programs_change_the_key(tmp_path):
    path = write_hf(tmp_path / "model", tiny(), flatten(random_params(tiny())))
    key = key_of_file(path)
    assert key_of_file(path, sync_ms=7.0) == key
    assert key_of_file(path, prefill_chunk=30) == key  # rounded up to the default
    assert key_of_file(path, prefill_chunk=64) != key
    assert key_of_file(path, steps_per_sync=2) != key


def test_another_model_has_another_key(tmp_path):
    keys = set()
    for width in (64, 80):
        config = tiny(width=width)
        keys.add(
            key_of_file(write_hf(tmp_path / f"{width}", config, flatten(random_params(config))))
        )
    assert len(keys) == 2
