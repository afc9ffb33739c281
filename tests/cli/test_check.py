"""`jaxllama check`: a line for every check, and an exit code."""

import json
from pathlib import Path

import jax
import pytest

from jaxllama.cli.check import draw
from jaxllama.registry import Plugins
from jaxllama.testing.cost import added
from jaxllama.testing.kept import programs_kept
from jaxllama.testing.samplers import CHECKS
from jaxllama.weights.store import cache_folder
from jaxllama_samplers.min_p import MinP

SOUND = """
from jaxllama.sampling import Filter, knob
class Sound(Filter):
    strength = knob(off=0.0, low=0.0, high=1.0, help="a number")
    __annotations__ = {"strength": object}
    def __call__(self, best, context):
        return best.p >= self.strength * best.p[0]
"""
BANS_ALL = (
    SOUND.replace("Sound(Filter)", "BansAll(Adjuster)")
    .replace("import Filter", "import Adjuster")
    .replace("best.p >= self.strength * best.p[0]", "best - float('inf')")
)
SHORTER = BANS_ALL.replace("BansAll", "Shorter").replace("best - float('inf')", "best[1:]")


# No time is looked at here, so nothing has to run fast.
pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled checks are kept in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def outcomes(run, plugin: str, expected: int) -> dict[str, str]:
    result = run("check", plugin, "--no-cost", "--json")
    assert result.exit_code == expected, result.stdout + result.stderr
    (found,) = json.loads(result.stdout)["checks"].values()
    return {each["check"]: each["outcome"] for each in found}


@pytest.mark.parametrize("plugin", ["min_p", "jaxllama_samplers.min_p:MinP"])
def test_a_sound_sampler_passes_every_check(run, plugin):
    found = outcomes(run, plugin, 0)
    assert list(found) == list(CHECKS) and set(found.values()) == {"passed"}


def test_a_sampler_that_breaks_a_rule_fails_that_check_alone(run):
    Path("bans.py").write_text(BANS_ALL)
    found = outcomes(run, "bans.py", 1)
    failed = {name for name, outcome in found.items() if outcome == "FAILED"}
    assert "nonempty" in failed and found["off"] == found["host"] == "passed"


def test_checks_that_need_one_that_failed_are_not_listed(run):
    Path("shorter.py").write_text(SHORTER)
    assert outcomes(run, "shorter.py", 1) == {"declared": "passed", "compiled": "FAILED"}


def test_a_failure_is_shown_with_its_line_and_without_a_cost(run):
    Path("shorter.py").write_text(SHORTER)
    result = run("check", "shorter.py")
    assert result.exit_code == 1
    assert "compiled: " in result.stdout and "shorter.py:6" in result.stdout
    assert "def __call__(self, best, context):" in result.stdout
    assert "hint: return one number for each token" in result.stdout
    assert "µs" not in result.stdout


def test_a_format_is_held_to_its_contract(run):
    assert outcomes(run, "chatml", 0) == {"format": "passed"}
    Path("silent.py").write_text(
        "from jaxllama.formats import PromptFormat\n"
        "class Silent(PromptFormat):\n"
        "    name = 'silent'\n"
        "    def render(self, messages, *, answer=True):\n"
        "        return ''\n"
    )
    assert outcomes(run, "silent.py", 1) == {"format": "FAILED"}


def test_costs_are_told_for_both_sizes_of_vocabulary(run, monkeypatch):
    monkeypatch.setattr("jaxllama.cli.check.VOCABULARIES", (64, 128))
    monkeypatch.setattr("jaxllama.cli.check.check_rules", lambda _: iter(()))
    monkeypatch.setattr("jaxllama.testing.cost.CANDIDATES", 16)
    company = Plugins("samplers", {"min_p": MinP})
    monkeypatch.setattr("jaxllama.cli.check.load_plugins", lambda *_: company)
    Path("sound.py").write_text(SOUND)
    (costs,) = json.loads(run("check", "sound.py", "--json").stdout)["microseconds"].values()
    assert [each["vocabulary"] for each in costs] == [64, 128]
    assert all(isinstance(each[key], float) for each in costs for key in ("alone", "unseen"))
    assert isinstance(costs[0]["company"], float) and costs[1]["company"] is None


@pytest.mark.parametrize(
    ("company", "words"),
    [
        (None, "12.2 µs of processor time for each row and step (± 0.8 µs)"),
        (
            -0.5,
            "12.2 µs, beside all installed filters 0.0 µs of processor time for each row and step "
            "(± 0.8 µs)",
        ),
    ],
)
def test_a_cost_is_told_in_processor_time_with_its_doubt(capsys, company, words):
    cost = {"vocabulary": 32768, "alone": 12.25, "company": company, "unseen": 0.75}
    draw("sound", [], [cost])
    (line,) = capsys.readouterr().out.split("32,768 tokens: ")[1:]
    assert " ".join(line.split()) == words


def test_a_second_check_compiles_nothing(run, monkeypatch):
    Path("sound.py").write_text(SOUND)
    run("check", "sound.py", "--no-cost")
    (folder,) = (cache_folder() / "checks").iterdir()
    kept = {path.name for path in folder.iterdir()}
    compiled = []
    monkeypatch.setattr("jax._src.compiler.backend_compile_and_load", compiled.append)
    assert run("check", "sound.py", "--no-cost").exit_code == 0
    assert kept and {path.name for path in folder.iterdir()} == kept and compiled == []


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxllama.testing.kept.is_private", lambda _: False)
    before = jax.config.jax_compilation_cache_dir
    with programs_kept(tmp_path):
        assert jax.config.jax_compilation_cache_dir == before


def test_the_quickest_turn_counts_and_the_others_say_how_sure_it_is(monkeypatch):
    without, with_it = (0.5, 0.5, 0.5, 0.5), (1.0, 1.5, 1.25, 1.25)
    turns = [each for pair in zip(without, with_it, strict=True) for each in pair]
    taken = iter([0.01, 0.01, *turns])
    monkeypatch.setattr("jaxllama.testing.cost.seconds", lambda _call, _steps: next(taken))
    monkeypatch.setattr("jaxllama.testing.cost.TURNS", 4)
    found = added(lambda _steps: None, lambda _steps: None)
    assert found.best == pytest.approx(0.5)
    assert found.doubt == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ("nobody", "no plugin 'nobody'"),
        ("missing.py", "missing.py is no file"),
        ("json:dumps", "expected a subclass of jaxllama.sampling.Sampler"),
        ("nowhere:Thing", "No module named 'nowhere'"),
    ],
)
def test_what_is_no_plugin_is_one_line(run, plugin, words):
    result = run("check", plugin)
    assert result.exit_code != 0 and words in result.stderr
    assert len(result.stderr.splitlines()) == 1


SILENT = '''
from jaxllama.serve.dialects import Dialect
class Silent(Dialect):
    """Says nothing."""
    name = "silent"
    endpoints = {}
    def error_body(self, error):
        return {}
'''


def test_dialects_are_checked(run, tmp_path):
    assert outcomes(run, "ollama", 0) == {"dialect": "passed"}
    file = tmp_path / "silent_dialect.py"
    file.write_text(SILENT)
    result = run("check", str(file), "--no-cost")
    assert result.exit_code == 1 and "has no endpoints" in result.stdout
