"""`jaxllama check`: whether a plugin keeps the contract of its socket, and what it costs."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxllama.cli.terminal import as_json
from jaxllama.errors import BrokenPlugin
from jaxllama.formats import PromptFormat
from jaxllama.registry import FORMATS, SAMPLERS, load_plugins
from jaxllama.sampling import Adjuster, Filter, Sampler, Shaper
from jaxllama.testing import check_format
from jaxllama.testing.cost import VOCABULARIES, cost_of
from jaxllama.testing.proof import Proof
from jaxllama.testing.samplers import CHECKS, NEEDED

SOCKETS = (Sampler, Adjuster, Filter, Shaper, PromptFormat)
PASSED, FAILED, SKIPPED = "passed", "FAILED", "not tried"
COLOURS = {PASSED: "green", FAILED: "red", SKIPPED: "yellow"}

Outcome = dict[str, Any]


@click.command("check")
@click.argument("plugin")
@click.option("--no-cost", is_flag=True, help="Do not measure what a sampler costs.")
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object.")
def command(*, plugin: str, no_cost: bool, wants_json: bool) -> int:
    """Hold PLUGIN to the contract of its socket; exit code 1 if it breaks a rule.

    PLUGIN is the name of an installed sampler or prompt format, module:Class, or a .py file, of
    which every plugin is checked. What a sampler costs is what it adds to each row of a step, its
    knobs in the middle of their bounds: alone, and with every installed filter switched on.
    """
    kinds = find(plugin)
    results = {name: check_one(kind) for name, kind in kinds.items()}
    costs = {} if no_cost else dict(measured(kinds, results))
    if wants_json:
        click.echo(as_json({"checks": results, "microseconds": costs}))
    else:
        for name, outcomes in results.items():
            draw(name, outcomes, costs.get(name, []))
    every = [outcome["outcome"] for outcomes in results.values() for outcome in outcomes]
    return 0 if all(each == PASSED for each in every) else 1


def find(plugin: str) -> dict[str, type]:
    """The plugins that are meant, by name."""
    if plugin.endswith(".py"):
        return plugins_in(module_at(Path(plugin)), plugin)
    if ":" in plugin:
        name, _, attribute = plugin.partition(":")
        return {attribute: plugin_at(name, attribute)}
    samplers = load_plugins(SAMPLERS, Sampler)
    formats = load_plugins(FORMATS, PromptFormat)  # type: ignore[type-abstract]
    if plugin in formats.loaded or plugin in formats.broken:
        return {plugin: formats.one(plugin)}
    return {plugin: samplers.one(plugin)}


def module_at(path: Path) -> ModuleType:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise BrokenPlugin(f"{path} is no file; expected a Python file with a plugin in it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a plugin may raise anything while it is imported
        raise BrokenPlugin(f"{path} does not load: {type(error).__name__}: {error}") from error
    return module


def plugins_in(module: ModuleType, where: str) -> dict[str, type]:
    """Every plugin that a module defines."""
    found = {
        name: each
        for name, each in vars(module).items()
        if is_plugin(each) and each.__module__ == module.__name__
    }
    if not found:
        raise BrokenPlugin(f"{where} defines no sampler and no prompt format; expected one")
    return found


def plugin_at(name: str, attribute: str) -> type:
    """The class `attribute` of a module."""
    try:
        found = getattr(importlib.import_module(name), attribute)
    except Exception as error:  # a plugin may raise anything while it is imported
        raise BrokenPlugin(
            f"{name}:{attribute} does not load: {type(error).__name__}: {error}"
        ) from error
    if not is_plugin(found):
        raise BrokenPlugin(f"{name}:{attribute} is {found!r}; expected a sampler or prompt format")
    return found


def is_plugin(found: object) -> bool:
    """Whether it is a class of a socket, and not the socket itself."""
    return (
        isinstance(found, type)
        and issubclass(found, Sampler | PromptFormat)
        and found not in SOCKETS
    )


def check_one(kind: type) -> list[Outcome]:
    """What every check says of one plugin."""
    if issubclass(kind, Sampler):
        return list(check_rules(kind))
    try:
        check_format(kind)
    except AssertionError as error:
        return [outcome("format", FAILED, str(error))]
    return [outcome("format", PASSED, "It renders as formats promise.")]


def check_rules(kind: type[Sampler]) -> Iterator[Outcome]:
    """What every check says of one sampler; without the first ones the others mean nothing."""
    proof, stopped = Proof(kind), ""
    for name, check in CHECKS.items():
        if stopped:
            yield outcome(name, SKIPPED, f"It has to pass {stopped} first.")
            continue
        try:
            check(proof)
        except AssertionError as error:
            yield outcome(name, FAILED, str(error))
            stopped = name if name in NEEDED else ""
        else:
            yield outcome(name, PASSED, " ".join((check.__doc__ or "").split()))


def outcome(check: str, result: str, words: str) -> Outcome:
    """One line of the table."""
    return {"check": check, "outcome": result, "words": words}


def measured(
    kinds: Mapping[str, type], results: Mapping[str, list[Outcome]]
) -> Iterator[tuple[str, list[Outcome]]]:
    """What each sampler that can be compiled costs."""
    company = load_plugins(SAMPLERS, Sampler).loaded
    for name, kind in kinds.items():
        if issubclass(kind, Sampler) and all(
            each["outcome"] == PASSED for each in results[name] if each["check"] in NEEDED
        ):
            others = {key: each for key, each in company.items() if each is not kind}
            found = [cost_of(kind.__name__, kind, others, size) for size in VOCABULARIES]
            yield name, [cost._asdict() for cost in found]


def draw(name: str, outcomes: list[Outcome], costs: list[Outcome]) -> None:
    """The same, for people."""
    console = Console()
    table = Table("check", "", "", title=name, title_justify="left")
    for each in outcomes:
        colour = COLOURS[each["outcome"]]
        table.add_row(each["check"], Text(each["outcome"], style=colour), Text(each["words"]))
    console.print(table)
    for cost in costs:
        alone, company = (
            f"{cost[key]:.1f}" if cost[key] >= cost["unseen"] else f"less than {cost['unseen']:.1f}"
            for key in ("alone", "company")
        )
        console.print(
            f"{cost['vocabulary']:,} tokens: {alone} microseconds per row and step alone, "
            f"{company} in company"
        )
