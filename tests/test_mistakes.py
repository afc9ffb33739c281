"""A sampler author's mistakes: each is shown with its line, one sentence and a hint."""

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import indent

import pytest
from click.testing import CliRunner

from jaxllama.cli.main import main
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.errors import BrokenPlugin
from jaxllama.mistakes import hiding_file, own_random_number
from jaxllama.registry import SAMPLERS, load_one, load_plugins
from jaxllama.sampling import Sampler
from jaxllama.testing.samplers import CHECKS

HEAD = """\
import dataclasses, math, random
import jax, jax.numpy as jnp
import numpy as np
from jaxllama.sampling import Adjuster, Filter, Knob, Sampler, knob, state


class Mine(Adjuster):
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="how strong")
    seen: Knob = state(start=0.0)

"""
SOUND = "def __call__(self, logits, context):\n    return logits\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled checks are kept in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def method(body: str) -> str:
    return f"def __call__(self, logits, context):\n    {body}  # here\n    return logits\n"


def observing(body: str) -> str:
    return f"{SOUND}\ndef observe(self, chosen):\n    {body}  # here\n    return self\n"


def returning(value: str) -> str:
    return f"def __call__(self, logits, context):  # here\n    return {value}\n"


# What the author wrote, and the words that the sentence and the hint must have.
MISTAKES = {
    "if": (method("if self.strength > 0: logits = logits + 1"), "`if`", "jnp.where"),
    "and": (method("both = logits > 0 and logits < 1"), "`and`", "&"),
    "max": (method("logits = max(self.strength, 0.5) * logits"), "`max`", "jnp.maximum"),
    "numpy": (method("logits = np.exp(logits)"), "`np.exp`", "jnp.exp"),
    "math": (method("logits = logits + math.exp(self.strength)"), "`math.exp`", "jnp.exp"),
    "float": (method("logits = logits + float(self.strength)"), "`float()`", "jax.numpy"),
    "range": (method("for _ in range(self.strength): pass"), "whole number", "jnp.arange"),
    "mask": (method("logits = logits[logits > 0]"), "indexed with a mask", "jnp.where"),
    "item": (method("logits[0] = 1"), "in place", ".at["),
    "self": (method("self.seen = logits[0]"), "field of the sampler", "dataclasses.replace"),
    "self in observe": (observing("self.seen += 1"), "frozen", "dataclasses.replace"),
    "np.random": (method("logits = logits * np.random.rand()"), "np.random.rand", "context.chance"),
    "random": (method("logits = logits * random.random()"), "random.random", "context.chance"),
    "jax.random": (method("key = jax.random.key(0)"), "jax.random.key", "context.chance"),
    "float64": (method("logits = logits.astype(jnp.float64)"), "float64", "jnp.float32"),
    "float64 array": (returning("np.zeros(logits.shape)"), "float64", "jax.numpy"),
    "half": (returning("logits.astype(jnp.bfloat16)"), "bfloat16", "astype(logits.dtype)"),
    "a mask": (returning("logits > 0"), "bool", "jnp.where"),
    "nothing": (returning("None"), "returns None", "return one array"),
    "shorter": (returning("logits[1:]"), "expected float32", "each token"),
    "context": (method("context.logits"), "no attribute 'logits'", "tokens"),
    "no observe": (
        f"{SOUND}\ndef observe(self, chosen):  # here\n    pass\n",
        "observe() of sampler",
        "dataclasses.replace",
    ),
    "state": (
        f"{SOUND}\ndef observe(self, chosen):  # here\n"
        "    return dataclasses.replace(self, seen=chosen.token)\n",
        "int32[] as seen; expected float32[]",
        "state(start=0.0)",
    ),
    "start": (
        f"{SOUND}\ndef start(self):\n    self.seen = 1  # here\n",
        "start() of sampler",
        "dataclasses.replace",
    ),
}


def written(folder: Path, name: str, text: str) -> tuple[Path, str]:
    """The author's file, and the place that the error must name."""
    file = folder / f"{name}.py"
    file.write_text(text)
    lines = [number for number, line in enumerate(text.splitlines(), 1) if "# here" in line]
    return file, f"{file}:{lines[0] if lines else 1}"


def checked(file: object, *options: str, code: int = 1) -> dict[str, object]:
    """The one failure that `jaxllama check` finds."""
    result = CliRunner().invoke(main, ["check", str(file), "--no-cost", "--json", *options])
    assert result.exit_code == code, result.output
    (found,) = json.loads(result.stdout)["checks"].values()
    failed = [each for each in found if each["outcome"] != "passed"]
    assert len(failed) == 1
    return failed[0]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_line_and_a_hint(name, tmp_path, monkeypatch):
    body, words, hint = MISTAKES[name]
    module = f"author_{list(MISTAKES).index(name)}"
    file, place = written(tmp_path, module, HEAD + indent(body, "    "))
    failed = checked(file)
    assert failed["where"] == place
    assert words in failed["words"] and hint in failed["hint"]

    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module(module).Mine
    with pytest.raises(BrokenPlugin) as caught:  # as LLM.load builds it
        SamplerBank({"mine": kind}, vocab=16, candidates=8, top_logprobs=2)
    told = str(caught.value)
    assert told.startswith(f"{place}: ") and words in told and told.endswith(caught.value.hint)
    assert hint in caught.value.hint and "\n" not in told


def test_a_generator_with_a_seed_is_no_random_number_of_its_own(tmp_path, monkeypatch):
    body = method("logits = logits + np.random.default_rng(7).normal()")
    written(tmp_path, "author_seeded", HEAD + indent(body, "    "))
    monkeypatch.syspath_prepend(tmp_path)
    assert own_random_number(importlib.import_module("author_seeded").Mine) is None


def test_a_random_number_in_a_function_that_the_sampler_calls_is_found(tmp_path, monkeypatch):
    helper = "\ndef noise():\n    return random.random()\n\ndef unused():\n    random.seed()\n"
    body = method("logits = logits * noise()")
    text = HEAD + indent(body, "    ") + helper
    written(tmp_path, "author_helped", text)
    monkeypatch.syspath_prepend(tmp_path)
    found = own_random_number(importlib.import_module("author_helped").Mine)
    line = text.splitlines().index("    return random.random()") + 1
    assert found == (f"{tmp_path / 'author_helped.py'}:{line}", "random.random")


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        (HEAD, "no __call__", "def __call__(self, logits"),
        (HEAD.replace("Mine(Adjuster)", "Mine(Sampler)"), "no Adjuster, Filter", "subclass"),
    ],
)
def test_a_class_that_lacks_something_is_shown_where_it_begins(tmp_path, text, words, hint):
    file, _ = written(tmp_path, f"author_{len(text)}", text)
    failed = checked(file)
    line = next(n for n, each in enumerate(text.splitlines(), 1) if each.startswith("class"))
    assert failed["where"] == f"{file}:{line}"
    assert words in failed["words"] and hint in failed["hint"]


def test_after_a_failure_that_others_need_no_check_is_listed(tmp_path):
    file, _ = written(tmp_path, "author_stops", HEAD + indent(method("if logits[0]: pass"), "    "))
    result = CliRunner().invoke(main, ["check", str(file)])
    assert result.exit_code == 1 and "not tried" not in result.stdout
    shown = [name for name in CHECKS if f"│ {name} " in result.stdout]
    assert shown == ["declared", "compiled"]
    assert "if logits[0]: pass" in result.stdout and "hint: " in result.stdout


# What cannot even be imported.


@pytest.mark.parametrize(
    ("text", "words", "hint", "line"),
    [
        ("class Mine:\n    pass\n", "no subclass of jaxllama.sampling.Sampler", "Adjuster", 1),
        ("x = 1\nraise ValueError('half done')\n", "ValueError: half done", "", 2),
        ("x = jnp.zeros(3)\n", "NameError", "import jax.numpy as jnp", 1),
        ("class Mine(:\n", "SyntaxError", "", 1),
        (
            "from jaxllama.sampling import Filter, knob\n\nclass Mine(Filter):\n"
            "    strength = knob(off=0.0)\n",
            "a field has no type",
            "Knob = knob(",
            3,
        ),
        (
            "from jaxllama.formats import PromptFormat\n\nclass Mine(PromptFormat):\n    ...\n",
            "no subclass",
            "register it in the group jaxllama.formats",
            3,
        ),
        ("class Darling:\n    ...\n", "has no Mine; it defines Darling", ":Darling", 1),
    ],
)
def test_an_entry_point_that_does_not_load_says_why(tmp_path, monkeypatch, text, words, hint, line):
    module = f"author_import_{len(text)}"
    file, _ = written(tmp_path, module, text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BrokenPlugin) as caught:
        load_one(EntryPoint("mine", f"{module}:Mine", SAMPLERS), Sampler)
    assert caught.value.where == f"{file}:{line}"
    assert words in str(caught.value) and hint in caught.value.hint


@pytest.mark.parametrize(
    ("value", "words", "hint"),
    [
        ("random:Mine", "random is the module of Python itself", "rename your module"),
        ("jax:Mine", "jax is the module of the package jax", "rename your module"),
        ("numpy:Mine", "numpy is the module of the package numpy", "rename your module"),
        ("no_such_module_here:Mine", "there is no module no_such_module_here", "pyproject.toml"),
        ("jaxllama_samplers.min_p", "is a whole module", "jaxllama_samplers.min_p:ClassName"),
        ("jaxllama_samplers.min_p:MinQ", "has no MinQ; it defines MinP", "min_p:MinP"),
        ("jaxllama_samplers.min_p:knob", "expected a subclass", "name a class"),
    ],
)
def test_an_entry_point_that_names_the_wrong_thing_says_what_to_write(value, words, hint):
    with pytest.raises(BrokenPlugin) as caught:
        load_one(EntryPoint("mine", value, SAMPLERS), Sampler)
    assert words in str(caught.value) and hint in caught.value.hint


def test_a_sampler_without_an_entry_point_is_told_how_to_have_one():
    with pytest.raises(BrokenPlugin) as caught:
        load_plugins(SAMPLERS, Sampler).one("daring")
    assert '[project.entry-points."jaxllama.samplers"] daring = "module:ClassName"' in str(
        caught.value
    )


def test_a_file_of_that_name_in_this_folder_is_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("daring.py").write_text("")
    result = CliRunner().invoke(main, ["check", "daring"])
    assert result.exit_code == 2 and "jaxllama check daring.py" in result.stderr


# Files that hide modules.


@pytest.mark.parametrize("name", ["jax", "random", "numpy"])
def test_a_file_called_like_a_module_is_refused_before_it_runs(tmp_path, name):
    before = sys.modules[name]
    (tmp_path / f"{name}.py").write_text(HEAD + indent(SOUND, "    "))
    result = CliRunner().invoke(main, ["check", str(tmp_path / f"{name}.py")])
    assert result.exit_code == 2
    assert f"{name}.py:1: {name}.py hides the module {name} of" in result.stderr
    assert "rename the file" in result.stderr and sys.modules[name] is before


@pytest.mark.parametrize("name", ["jax", "random", "numpy"])
@pytest.mark.parametrize(
    "arguments", [["-c", "from jaxllama import LLM"], ["-m", "jaxllama", "plugins"]]
)
def test_a_file_that_hides_a_module_is_named_by_whatever_fails_of_it(tmp_path, name, arguments):
    (tmp_path / f"{name}.py").write_text("from jaxllama.sampling import Filter\n")
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"{name}.py:1: {name}.py hides the module {name} of" in done.stderr.splitlines()[-1]


def test_folders_of_modules_hide_and_other_files_do_not(tmp_path):
    (tmp_path / "my_sampler.py").write_text("")
    (tmp_path / "random").mkdir()
    assert hiding_file(tmp_path) is None
    (tmp_path / "random" / "__init__.py").write_text("")
    assert hiding_file(tmp_path) == tmp_path / "random" / "__init__.py"


def test_python_dash_m_runs_the_program():
    done = subprocess.run(
        [sys.executable, "-m", "jaxllama", "version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("jaxllama ")
