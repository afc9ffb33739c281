"""`jaxllama check`: a line for every check, and an exit code."""

import json
from pathlib import Path

import pytest

from jaxllama.cli.check import draw
from jaxllama.registry import Plugins
from jaxllama.testing.cost import added
from jaxllama.testing.samplers import CHECKS
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


def test_checks_that_need_another_are_not_tried_without_it(run):
    Path("shorter.py").write_text(SHORTER)
    found = outcomes(run, "shorter.py", 1)
    assert (found["declared"], found["compiled"]) == ("passed", "FAILED")
    assert {found[name] for name in list(CHECKS)[2:]} == {"not tried"}


def test_a_table_names_every_check_and_what_is_broken(run):
    Path("shorter.py").write_text(SHORTER)
    result = run("check", "shorter.py")
    assert result.exit_code == 1
    assert all(name in result.stdout for name in CHECKS)
    assert "Shorter" in result.stdout and "microseconds" not in result.stdout


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
    keys = ("alone", "company", "unseen")
    assert all(isinstance(each[key], float) for each in costs for key in keys)


def test_a_cost_that_cannot_be_seen_is_not_told_as_one(capsys):
    cost = {"vocabulary": 32768, "alone": 12.25, "company": -0.5, "unseen": 0.75}
    draw("sound", [], [cost])
    (line,) = capsys.readouterr().out.split("32,768 tokens: ")[1:]
    words = "12.2 microseconds per row and step alone, less than 0.8 in company"
    assert " ".join(line.split()) == words


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
        ("json:dumps", "expected a sampler or prompt format"),
        ("nowhere:Thing", "ModuleNotFoundError"),
    ],
)
def test_what_is_no_plugin_is_one_line(run, plugin, words):
    result = run("check", plugin)
    assert result.exit_code != 0 and words in result.stderr
    assert len(result.stderr.splitlines()) == 1
