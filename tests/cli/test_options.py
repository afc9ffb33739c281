import json
import re

import click
import pytest
from click.testing import CliRunner

from jaxllama.cli import options
from jaxllama.cli.main import Program
from jaxllama.cli.options import GenerationCommand
from jaxllama.engine.choosing.knobs import catalogue
from jaxllama.errors import BrokenPlugin
from jaxllama.limits import LIMITS
from jaxllama.registry import PRESETS, SAMPLERS, Plugins, load_plugins
from jaxllama.sampling import NO_TOKEN, Filter, Knob, Preset, Sampler, knob

INSTALLED = catalogue(load_plugins(SAMPLERS, Sampler).loaded)


class Novel(Filter):
    """A sampler nobody has heard of."""

    novelty: Knob = knob(off=0.25, low=-1.5, high=2.5, help="how new it is")
    model: Knob = knob(off=0, help="called as an option is already")
    steps: Knob = knob(off=0, width=3, low=0, help="numbers")
    by_id: Knob = knob(off=0.0, width=2, by_token=True, low=-9.0, high=9.0, help="numbers by token")
    fresh: Knob = knob(off=False, help="whether")
    ids: Knob = knob(off=NO_TOKEN, width=3, tokens=True, help="tokens")
    sayings: Knob = knob(off=NO_TOKEN, width=9, phrases=True, help="texts")


def install(monkeypatch, **samplers):
    plugins = {SAMPLERS: Plugins(SAMPLERS, samplers), PRESETS: load_plugins(PRESETS, Preset)}
    monkeypatch.setattr(options, "load_plugins", lambda group, _: plugins[group])


def try_out(*arguments: str):
    """What a command with all options is called with."""
    seen = {}
    command = GenerationCommand("try", callback=lambda **values: seen.update(values))
    program = Program("program", commands={})
    program.get_command = lambda *_: command
    result = CliRunner().invoke(program, ["try", *arguments])
    return seen, result


@pytest.mark.parametrize("command", ["generate", "chat", "batch"])
def test_every_field_and_every_installed_knob_is_an_option(run, command):
    text = run(command, "--help").stdout
    assert len(INSTALLED) > 5
    for name in [*LIMITS, *INSTALLED]:
        assert f"--{name.replace('_', '-')}" in text


def test_a_new_sampler_is_an_option_with_its_help_bounds_and_default(monkeypatch):
    install(monkeypatch, novel=Novel)
    _, result = try_out("--help")
    text = " ".join(result.stdout.split())
    assert "--novelty NUMBER How new it is [-1.5 to 2.5; default: 0.25]." in text
    assert "--steps INTEGER,..." in text
    assert "--by-id TOKEN=NUMBER,..." in text
    assert "--fresh true|false" in text
    assert "--sayings TEXT Texts. May be given again." in text


def test_knobs_arrive_as_numbers_lists_and_mappings(monkeypatch):
    install(monkeypatch, novel=Novel)
    seen, result = try_out(
        *("--novelty", "1", "--steps", "3,4", "--by-id", "123=-5,456=2.5", "--fresh", "true"),
        *("-n", "7", "--stop", "a,b", "--stop", "c", "--stop-ids", "5,6", "--ignore-eos"),
    )
    assert result.exit_code == 0, result.output
    assert seen["knobs"] == {
        "novelty": 1.0,
        "steps": [3, 4],
        "by_id": {"123": -5.0, "456": 2.5},
        "fresh": True,
        "max_tokens": 7,
        "stop": ("a,b", "c"),
        "stop_ids": [5, 6],
        "ignore_eos": True,
    }


def test_only_what_was_given_arrives(monkeypatch):
    install(monkeypatch, novel=Novel)
    seen, _ = try_out()
    assert seen == {"knobs": {}, "loading": {}}


def test_a_knob_called_like_an_option_gets_a_longer_name(monkeypatch):
    install(monkeypatch, novel=Novel)
    seen, _ = try_out("--model", "some", "--knob-model", "5")
    assert seen == {"knobs": {"model": 5}, "loading": {"model": "some"}}


def test_arguments_of_load_arrive_by_its_names(monkeypatch):
    install(monkeypatch)
    seen, _ = try_out(
        *("-m", "x.gguf", "--slots", "3", "--context", "99", "--dtype", "float16"),
        *("--cache-dtype", "bfloat16", "--mesh", "stage=2", "--packed", "--format", "plain"),
        *("--stage-layers", "3,4", "--no-compile-cache", "--kernels", "xla", "--threads", "2"),
        *("--prefill-chunk", "64", "--steps-per-sync", "2", "--sync-ms", "12.5"),
        "--no-pack-prompts",
    )
    assert seen["loading"] == {
        "model": "x.gguf",
        "slots": 3,
        "context": 99,
        "dtype": "float16",
        "cache_dtype": "bfloat16",
        "mesh": "stage=2",
        "stage_layers": "3,4",
        "kernels": "xla",
        "threads": 2,
        "prefill_chunk": 64,
        "pack_prompts": False,
        "steps_per_sync": 2,
        "sync_ms": 12.5,
        "packed": True,
        "prompt_format": "plain",
        "compile_cache": False,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--novelty", "3"], "novelty is 3.0; it must lie in [-1.5, 2.5]"),
        (["--novelty", "nan"], "novelty is nan"),
        (["--novelty", "much"], "novelty is 'much'; expected a number"),
        (["--steps", "1,2,3,4"], "steps has 4 entries; at most 3"),
        (["--steps", "1,x"], "steps is 'x'; expected a whole number"),
        (["--steps", "1.5"], "steps is '1.5'; expected a whole number"),
        (["--by-id", "5"], "by_id holds '5'; expected TOKEN=NUMBER"),
        (["--by-id", "5=1,5=2"], "by_id names token 5 twice"),
        (["--by-id", "a=1"], "by_id names token 'a'"),
        (["--by-id", "5=10"], "by_id is 10.0"),
        (["--ids", "1,-1"], "ids holds -1; expected token ids"),
        (["--ids", "1,2,3,4"], "ids has 4 entries; at most 3"),
        (["--sayings", ""], "sayings holds ''; expected texts"),
        (["--sayings", "a" * 257], "sayings holds a text of 257 characters"),
        (["--preset", "spinx"], "unknown preset 'spinx'; did you mean 'sphinx'"),
        (["--fresh", "maybe"], "fresh is 'maybe'; expected true or false"),
        (["--temperature", "-1"], "temperature is -1.0; it must lie in"),
        (["-n", "0"], "max_tokens is 0; it must lie in"),
        (["--stop", ""], "stop holds ''; expected non-empty text"),
        (["--stop-ids", "7,-1"], "stop_ids is -1"),
        (["--seed", "1e3"], "seed is '1e3'; expected a whole number"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(monkeypatch, arguments, words):
    install(monkeypatch, novel=Novel)
    seen, result = try_out(*arguments)
    assert (result.exit_code, seen) == (2, {})
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {words}")


@pytest.mark.parametrize(
    "name", [name for name, spec in INSTALLED.items() if spec.high is not None]
)
def test_no_installed_knob_passes_its_bound(run, model, name):
    spec = INSTALLED[name]
    value = spec.kind(spec.high + 1)
    option = f"--{name.replace('_', '-')}"
    result = run("generate", "-p", "a", option, f"1={value}" if spec.by_token else value)
    assert result.exit_code == 2 and name in result.stderr
    assert model.loaded == []


def test_two_samplers_that_claim_one_knob_are_an_error(monkeypatch):
    install(monkeypatch, one=Novel, two=Novel)
    _, result = try_out()
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "'one'" in line and "'two'" in line and "novelty" in line


def test_options_that_collide_with_nothing_keep_click_quiet(monkeypatch):
    install(monkeypatch, novel=Novel)
    command = GenerationCommand("try", callback=lambda **_: None)
    names = [name for each in command.get_params(click.Context(command)) for name in each.opts]
    assert len(names) == len(set(names))


def test_plugins_lists_samplers_formats_readers_and_what_is_broken(run, monkeypatch):
    def broken_too(group, base):
        found = load_plugins(group, base)
        return Plugins(group, found.loaded, {"bad": BrokenPlugin("does not load: no module")})

    monkeypatch.setattr("jaxllama.cli.plugins.load_plugins", broken_too)
    result = run("plugins")
    assert result.exit_code == 0
    for name in [*INSTALLED, "sphinx", "chatml", "gguf", "huggingface", "bad", "no module"]:
        assert name in result.stdout


def test_plugins_fit_into_80_columns_and_follow_the_order_in_which_they_run(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("plugins").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "    top_p: number, 0.0 to 1.0 [default: 1.0]" in lines
    samplers = [
        line.split()[0] for line in lines if re.match(r"  \w+ \((adj|fil|sha)\w+\): ", line)
    ]
    assert samplers.index("repetition") < samplers.index("top_k") < samplers.index("xtc")


def test_plugins_as_json_carries_bounds_and_defaults(run):
    found = json.loads(run("plugins", "--json").stdout)
    top_p = found["samplers"]["top_p"]["knobs"]["top_p"]
    assert (top_p["low"], top_p["high"], top_p["off"], top_p["type"]) == (0.0, 1.0, 1.0, "float")
    assert found["presets"]["sphinx"]["knobs"]["top_k"] == 30
    assert found["broken"] == {}
