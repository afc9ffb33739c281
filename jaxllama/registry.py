"""Plugins: the entry points of a group, loaded as classes, with clear errors.

Called by `llm.py`, the CLI and the weight opener. Knows no plugin by name and no socket's contract.
"""

import importlib
import logging
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Generic, TypeVar, cast

from jaxllama import mistakes
from jaxllama.errors import BrokenPlugin

logger = logging.getLogger(__name__)

SAMPLERS = "jaxllama.samplers"
FORMATS = "jaxllama.formats"
WEIGHTS = "jaxllama.weights"
TOKENIZERS = "jaxllama.tokenizers"
PRESETS = "jaxllama.presets"
DIALECTS = "jaxllama.dialects"

T = TypeVar("T")


@dataclass(frozen=True)
class Plugins(Generic[T]):
    """The plugins of one group: the loaded classes, and the errors of the broken ones."""

    group: str
    loaded: dict[str, type[T]]
    broken: dict[str, BrokenPlugin] = field(default_factory=dict)

    def one(self, name: str) -> type[T]:
        """Return the class of the plugin `name`.

        Raises BrokenPlugin with the reason if the plugin does not load, or with the installed names
        if there is no such plugin.
        """
        if name in self.broken:
            raise self.broken[name]
        if name not in self.loaded:
            raise BrokenPlugin(
                f"no plugin {name!r} in {self.group}; installed: "
                f"{', '.join(self.loaded) or 'none'}",
                hint=f"a plugin of yours needs an entry point in its pyproject.toml, and to be "
                f'installed again after that: [project.entry-points."{self.group}"] '
                f'{name} = "module:ClassName"',
            )
        return self.loaded[name]


def load_plugins(group: str, base: type[T]) -> Plugins[T]:
    """Load every entry point of `group`, sorted by name; a broken one does not stop the rest.

    A plugin has to be a subclass of `base`.
    """
    points: dict[str, EntryPoint] = {}
    broken: dict[str, BrokenPlugin] = {}
    for point in sorted(installed(folders()).select(group=group), key=lambda p: (p.name, p.value)):
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            broken[point.name] = BrokenPlugin(
                f"two packages register {point.name!r} in {group}: {other.value} and "
                f"{point.value}; uninstall one"
            )
    loaded: dict[str, type[T]] = {}
    for name, point in points.items():
        if name in broken:
            continue
        try:
            loaded[name] = load_one(point, base)
        except BrokenPlugin as error:
            broken[name] = error
    for reason in broken.values():
        logger.warning("%s", reason)
    return Plugins(group, loaded, broken)


def folders() -> tuple[tuple[str, float], ...]:
    """Return the folders of `sys.path`, each with the time when its contents last changed."""
    found = map(Path, sys.path)
    return tuple((str(each), each.stat().st_mtime) for each in found if each.is_dir())


@lru_cache(maxsize=1)
def installed(where: tuple[tuple[str, float], ...]) -> EntryPoints:
    """Return the entry points of all packages in the folders `where`.

    A search takes 10 ms, so it is repeated only if the folders have changed.
    """
    del where
    return cast(EntryPoints, entry_points())  # in Python 3.11 another class, used alike


def load_one(point: EntryPoint, base: type[T]) -> type[T]:
    """Import one entry point; raise BrokenPlugin unless it is a subclass of `base`."""
    what = f"plugin {point.name!r} ({point.value})"
    try:
        module = importlib.import_module(point.module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{point.module}.".startswith(f"{error.name}."):
            raise BrokenPlugin(
                f"{what}: there is no module {error.name}",
                hint="correct its name in the entry point of pyproject.toml, and install the "
                "package again",
            ) from error
        raise mistakes.explain(f"{what} does not load", error, point.module) from error
    except Exception as error:  # a plugin may raise anything while it is imported
        raise mistakes.explain(f"{what} does not load", error, point.module) from error
    try:
        found = point.load()
    except AttributeError as error:
        raise mistakes.missing_class(what, module, point.attr) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise mistakes.wrong_class(what, found, base)
    return found
