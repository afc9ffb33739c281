"""`jaxllama check`: check a plugin against the contract of its socket, and measure its cost."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxllama.cli.terminal import as_json
from jaxllama.errors import BrokenPlugin
from jaxllama.formats import PromptFormat
from jaxllama.mistakes import (
    SUBCLASS,
    explain,
    hidden_by,
    is_taken,
    line_of,
    missing_class,
    source_line,
    wrong_class,
)
from jaxllama.registry import DIALECTS, FORMATS, SAMPLERS, load_plugins
from jaxllama.sampling import Adjuster, Filter, Sampler, Shaper
from jaxllama.serve.dialect import Dialect
from jaxllama.testing import check_dialect, check_format
from jaxllama.testing.cost import VOCABULARIES, cost_of
from jaxllama.testing.kept import programs_kept
from jaxllama.testing.proof import Broken, Proof
from jaxllama.testing.samplers import CHECKS, NEEDED, run_check
from jaxllama.weights.store import cache_folder

SOCKETS = (Sampler, Adjuster, Filter, Shaper, PromptFormat, Dialect)
PASSED, FAILED = "passed", "FAILED"
COLOURS = {PASSED: "green", FAILED: "red"}

CheckOutcome = dict[str, Any]


@click.command("check")
@click.argument("plugin")
@click.option("--no-cost", is_flag=True, help="Do not measure the cost of a sampler.")
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object.")
def command(*, plugin: str, no_cost: bool, wants_json: bool) -> int:
    """Check that PLUGIN keeps the contract of its base class.

    PLUGIN is the name of an installed sampler, prompt format or dialect, module:Class, or a .py
    file, of which every plugin is checked. The exit code is 1 if a check fails. The cost of a
    sampler is the processor time, in microseconds, that it adds to each row of a decode step with
    its knobs in the middle of their bounds; --no-cost skips it. With --json one JSON object is
    printed.
    """
    with programs_kept(cache_folder() / "checks"):
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
    """Return the plugin classes that the command's argument PLUGIN names, by their names.

    PLUGIN is a .py file, "module:Class" or the name of an installed plugin. Raises BrokenPlugin if
    there is no such plugin.
    """
    if plugin.endswith(".py"):
        return plugins_in(module_at(Path(plugin)), plugin)
    if ":" in plugin:
        name, _, attribute = plugin.partition(":")
        return {attribute: plugin_at(name, attribute)}
    samplers = load_plugins(SAMPLERS, Sampler)
    formats = load_plugins(FORMATS, PromptFormat)  # type: ignore[type-abstract]
    if plugin in formats.loaded or plugin in formats.broken:
        return {plugin: formats.one(plugin)}
    dialects = load_plugins(DIALECTS, Dialect)  # type: ignore[type-abstract]
    if plugin in dialects.loaded or plugin in dialects.broken:
        return {plugin: dialects.one(plugin)}
    file = Path(f"{plugin}.py")
    if file.exists() and plugin not in {*samplers.loaded, *samplers.broken}:
        raise BrokenPlugin(
            f"no plugin {plugin!r} is installed, but {file} is in this folder",
            hint=f"check the file: jaxllama check {file}",
        )
    return {plugin: samplers.one(plugin)}


def module_at(path: Path) -> ModuleType:
    """Import a Python file as a module named after the file, and return the module.

    Raises BrokenPlugin if the import fails, or if Python or a dependency has a module of that name.
    """
    if not path.is_file():
        raise BrokenPlugin(f"{path} is no file; expected a Python file with a plugin in it")
    if is_taken(path.stem):
        raise BrokenPlugin(
            hidden_by(path), where=f"{path}:1", hint="rename the file, such as my_sampler.py"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        assert spec.loader is not None
        spec.loader.exec_module(module)
    except Exception as error:  # a plugin may raise anything while it is imported
        raise explain(f"{path.name} does not load", error, path.stem) from error
    return module


def plugins_in(module: ModuleType, where: str) -> dict[str, type]:
    """Return the plugin classes that a module defines, by name; raise BrokenPlugin if none.

    `where` is the path of the module's file, for the message.
    """
    found = {
        name: each
        for name, each in vars(module).items()
        if is_plugin(each) and each.__module__ == module.__name__
    }
    if not found:
        classes = [each for each in vars(module).values() if is_own_class(each, module)]
        named = ", ".join(each.__name__ for each in classes) or "no class"
        raise BrokenPlugin(
            f"{where} defines no sampler, prompt format or dialect; it defines {named}",
            where=line_of(classes[0]) if classes else f"{where}:1",
            hint=f"{SUBCLASS}, or PromptFormat of jaxllama.formats",
        )
    return found


def is_own_class(value: object, module: ModuleType) -> bool:
    """Say whether a value is a class that this module defines."""
    return isinstance(value, type) and value.__module__ == module.__name__


def plugin_at(name: str, attribute: str) -> type:
    """Import module `name` and return its plugin class `attribute`; raise BrokenPlugin if none."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a plugin may raise anything while it is imported
        raise explain(f"{name}:{attribute} does not load", error, name) from error
    found = getattr(module, attribute, None)
    if found is None:
        raise missing_class(f"{name}:{attribute}", module, attribute)
    if not is_plugin(found):
        raise wrong_class(f"{name}:{attribute}", found, Sampler)
    return found


def is_plugin(found: object) -> TypeGuard[type]:
    """Say whether a value is a subclass of Sampler, PromptFormat or Dialect.

    False for the base classes themselves, Adjuster, Shaper and Filter included.
    """
    return (
        isinstance(found, type)
        and issubclass(found, Sampler | PromptFormat | Dialect)
        and found not in SOCKETS
    )


def check_one(kind: type) -> list[CheckOutcome]:
    """Run all checks of one plugin class and return their outcomes."""
    if issubclass(kind, Sampler):
        return list(check_rules(kind))
    if issubclass(kind, Dialect):
        return [checked("dialect", check_dialect, kind, "Its routes and errors are as promised.")]
    return [checked("format", check_format, kind, "It renders as formats promise.")]


def checked(name: str, check: Callable[[Any], None], kind: type, words: str) -> CheckOutcome:
    """Call `check` with the class `kind` and return the outcome; an AssertionError is a failure.

    `name` is the name of the check, and `words` say what holds if it passes. Other exceptions are
    not caught.
    """
    try:
        check(kind)
    except AssertionError as error:
        return outcome(name, FAILED, str(error), where=line_of(kind))
    return outcome(name, PASSED, words)


def check_rules(kind: type[Sampler]) -> Iterator[CheckOutcome]:
    """Run the checks of one sampler, one after the other, and yield their outcomes.

    Stops after a failure of a check that the later ones depend on.
    """
    proof = Proof(kind)
    for name, check in CHECKS.items():
        try:
            run_check(name, proof)
        except Broken as error:
            yield outcome(name, FAILED, error.why, where=error.where, hint=error.hint)
            if name in NEEDED:
                return
        else:
            rule = " ".join((check.__doc__ or "").split()).removeprefix("Check that ")
            yield outcome(name, PASSED, rule[:1].upper() + rule[1:])


def outcome(
    check: str, result: str, words: str, *, where: str = "", hint: str = ""
) -> CheckOutcome:
    """Return the outcome of one check as a JSON object; only failures have `where` and `hint`.

    `result` is PASSED or FAILED; `words` say what holds, or what is wrong; `where` is "file:line"
    in the plugin.
    """
    found = {"check": check, "outcome": result, "words": words}
    return found if result == PASSED else {**found, "where": where, "hint": hint}


def measured(
    kinds: Mapping[str, type], results: Mapping[str, list[CheckOutcome]]
) -> Iterator[tuple[str, list[CheckOutcome]]]:
    """Measure the processor time of each sampler that passed every check; yield (name, costs).

    There is one cost for each size of vocabulary. `kinds` and `results` have the names of the
    plugins as keys.
    """
    company = load_plugins(SAMPLERS, Sampler).loaded
    for name, kind in kinds.items():
        if issubclass(kind, Sampler) and all(each["outcome"] == PASSED for each in results[name]):
            others = {key: each for key, each in company.items() if each is not kind}
            found = [
                # The installed filters take seconds to compile: once is enough.
                cost_of(kind.__name__, kind, {} if size != VOCABULARIES[0] else others, size)
                for size in VOCABULARIES
            ]
            yield name, [cost._asdict() for cost in found]


def draw(name: str, outcomes: list[CheckOutcome], costs: list[CheckOutcome]) -> None:
    """Print the checks of one plugin as a table, then details of the failures, then the costs.

    `outcomes` are those of the checks; `costs` has one entry per vocabulary size, [] if not
    measured.
    """
    console = Console()
    table = Table("check", "", "", title=name, title_justify="left")
    for each in outcomes:
        text = each["words"] if each["outcome"] == PASSED else "see below"
        colour = COLOURS[each["outcome"]]
        table.add_row(each["check"], Text(each["outcome"], style=colour), Text(text))
    console.print(table)
    for each in outcomes:
        if each["outcome"] == FAILED:
            console.print(Text("\n".join(failure(each))), soft_wrap=True)
    for cost in costs:
        console.print(Text(cost_line(cost)), soft_wrap=True)


def failure(failed: CheckOutcome) -> Iterator[str]:
    """Yield the lines about one failed check: the place, the source line, the rule, the hint."""
    yield f"{failed['check']}: {failed['where'] or 'FAILED'}"
    line = source_line(failed["where"])
    if line:
        yield f"    {line}"
    yield f"  {failed['words']}"
    if failed["hint"]:
        yield f"  hint: {failed['hint']}"


def cost_line(cost: CheckOutcome) -> str:
    """Return the cost at one vocabulary size as text: processor time per row and step."""
    doubt = f"± {cost['unseen']:.1f} µs"
    line = f"{cost['vocabulary']:,} tokens: {max(cost['alone'], 0.0):.1f} µs"
    if cost["company"] is not None:
        line += f", beside all installed filters {max(cost['company'], 0.0):.1f} µs"
    return f"{line} of processor time for each row and step ({doubt})"
