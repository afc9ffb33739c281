"""Packages made by `jaxllama new`: they install, pass their own tests and run end to end."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from jaxllama.cli.main import main
from jaxllama.testing import random_params
from tests.cli.test_whole import TOKENIZER
from tests.support import MODEL, QUICK_PROCESS
from tests.weights.writers import flatten, write_gguf

ROOT = Path(__file__).parents[2]
# One load for all: what the sampler does at its strictest is what temperature 0 does.
SCRIPT = """
import json, sys
from jaxllama import LLM
from tests.support import only
model, out = sys.argv[1:]
asked = dict(max_tokens=6, temperature=5.0, seed=1, ignore_eos=True)
question = [{"role": "user", "content": "hi"}]
with only(("eager", "top_p")), LLM.load(
    model, slots=1, context=128, kernels="xla", prompt_format="cornered", compile_cache=False
) as llm:
    said = {
        "greedy": llm.generate("hello", **(asked | {"temperature": 0.0})).tokens,
        "free": llm.generate("hello", **asked).tokens,
        "strict": llm.generate("hello", **asked, eager=1.0).tokens,
        "prompt": llm.intake.chat_text(question),
        "chat": len(llm.chat(question, **asked).tokens),
    }
open(out, "w").write(json.dumps(said))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """An environment with a new plugin of each kind and a sampler that is broken."""
    folder = tmp_path_factory.mktemp("kit")
    kit = (
        ("sampler", "eager"), ("format", "cornered"), ("weights", "folded"), ("sampler", "faulty"),
        ("tokenizer", "word_list"), ("dialect", "talk_back"),
    )  # fmt: skip
    with contextlib.chdir(folder):
        for what, name in kit:
            assert CliRunner().invoke(main, ["new", what, name]).exit_code == 0
    faulty = folder / "jaxllama-faulty" / "jaxllama_faulty.py"
    faulty.write_text(f"{faulty.read_text()}\nraise RuntimeError('half done')\n")
    projects = sorted(str(path) for path in folder.glob("jaxllama-*"))
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    python("-m", "pip", "install", *options, "--target", "site", *projects, cwd=folder)
    return {"PYTHONPATH": str(folder / "site"), "folder": str(folder)}


def python(*arguments: object, cwd: Path | str, **environment: str) -> str:
    command = [sys.executable, *map(str, arguments)]
    where = {**os.environ, **environment}
    done = subprocess.run(
        command, cwd=cwd, env=where, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program(*arguments: str, cwd: Path | str, **environment: str) -> str:
    code = "from jaxllama.cli.main import main; main()"
    return python("-c", code, *arguments, cwd=cwd, **environment)


def test_packages_pass_their_tests_as_generated(installed):
    names = ("eager", "cornered", "folded", "word-list", "talk-back")
    folders = [f"jaxllama-{each}" for each in names]
    path = {"PYTHONPATH": installed["PYTHONPATH"]}
    told = python("-m", "pytest", "-q", *folders, cwd=installed["folder"], **path, **QUICK_PROCESS)
    assert "11 passed" in told


def test_installed_plugins_are_listed_and_the_broken_one_is_named(installed):
    path = {"PYTHONPATH": installed["PYTHONPATH"]}
    found = json.loads(program("plugins", "--json", cwd=installed["folder"], **path))
    assert found["samplers"]["eager"]["knobs"]["eager"]["high"] == 1.0
    assert "cornered" in found["formats"] and "top_p" in found["samplers"]
    assert "talk_back" in found["dialects"] and "openai" in found["dialects"]
    assert "word_list" in found["tokenizers"] and "sentencepiece" in found["tokenizers"]
    ((name, why),) = found["broken"].items()
    assert "faulty" in name and "RuntimeError: half done" in why


def test_installed_weight_format_opens_its_models(installed):
    folder = Path(installed["folder"]) / "jaxllama-folded"
    code = "import sys, pathlib, test_jaxllama_folded as t; t.write_model(pathlib.Path('model'))"
    python("-c", code, cwd=folder, PYTHONPATH=installed["PYTHONPATH"])
    told = program("inspect", "model", cwd=folder, PYTHONPATH=installed["PYTHONPATH"])
    assert "model: model (Folded)" in told and "21 tensors" in told.replace("  ", " ")


def test_installed_plugins_run_in_a_model(installed, tmp_path):
    model, out = tmp_path / "tiny.gguf", tmp_path / "said.json"
    write_gguf(model, MODEL, flatten(random_params(MODEL)), metadata=TOKENIZER)
    path = os.pathsep.join((installed["PYTHONPATH"], str(ROOT)))
    python("-c", SCRIPT, model, out, cwd=tmp_path, PYTHONPATH=path, **QUICK_PROCESS)
    said = json.loads(out.read_text())
    assert said["strict"] == said["greedy"] != said["free"]
    assert said["prompt"] == "[user]\nhi\n[end]\n[assistant]\n"
    assert said["chat"] == 6


def test_new_overwrites_nothing(run: Callable):
    assert run("new", "sampler", "daring").exit_code == 0
    Path("jaxllama-daring/README.md").write_text("mine")
    again = run("new", "sampler", "daring")
    assert again.exit_code == 2 and "exists already" in again.stderr
    assert Path("jaxllama-daring/README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("what", "name", "words"),
    [
        ("sampler", "Daring", "cannot be the name of a sampler"),
        ("sampler", "a/../b", "cannot be the name of a sampler"),
        ("format", "class", "cannot be the name of a prompt format"),
        ("sampler", "x" * 41, "cannot be the name of a sampler"),
        ("sampler", "top_p", "'top_p' is taken"),
        ("sampler", "seed", "'seed' is taken"),
        ("format", "chatml", "'chatml' is taken"),
        ("weights", "gguf", "'gguf' is taken"),
        ("tokenizer", "gguf", "'gguf' is taken"),
        ("dialect", "openai", "'openai' is taken"),
    ],
)
def test_new_refuses_names_that_do_not_do(run: Callable, what, name, words):
    result = run("new", what, name)
    assert result.exit_code != 0 and words in result.stderr
    assert not any(Path().iterdir())
