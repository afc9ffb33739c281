"""Modules: layers that hold parameters and other layers as attributes.

A new module has no values: each of its parameters has a shape and logical axes. `params.py` and
`bert.py` read these, and give a module its weights inside a program. Knows no layer.
"""

from collections.abc import Iterator
from typing import Any


class Parameter:
    """A weight of a module: its shape and logical axes, and its value inside a program."""

    def __init__(self, *sizes: int, axes: tuple[str | None, ...] | None = None) -> None:
        self.shape = sizes
        self.axes = (None,) * len(sizes) if axes is None else axes
        self.value: Any = None


class Module:
    """A layer. Its parameters and the layers inside it are its attributes, or lists of these."""


Part = Module | Parameter | list[Any]


def parts_of(part: Module | list[Any]) -> Iterator[tuple[str | int, Part]]:
    """Yield (name or index, child) for each parameter, layer and list in a module or list.

    Only direct children of `part`; those of a module are sorted by name.
    """
    named = enumerate(part) if isinstance(part, list) else sorted(vars(part).items())
    for name, value in named:
        if isinstance(value, Module | Parameter | list):
            yield name, value


def parameters_of(module: Module | list[Any], prefix: str = "") -> Iterator[tuple[str, Parameter]]:
    """Yield every parameter of a module with its path, such as `blocks.0.attention.q.weight`.

    `prefix` comes before every path.
    """
    for name, part in parts_of(module):
        if isinstance(part, Parameter):
            yield f"{prefix}{name}", part
        else:
            yield from parameters_of(part, f"{prefix}{name}.")


def give_values(module: Module | list[Any], values: dict[Any, Any]) -> None:
    """Set every parameter of a module from a nested tree of values.

    Raises KeyError if a value has no parameter or a parameter no value.
    """
    parts = dict(parts_of(module))
    unknown = values.keys() - parts.keys()
    if unknown:
        raise KeyError(f"no parameter is called {sorted(map(str, unknown))}")
    for name, part in parts.items():
        if isinstance(part, Parameter):
            part.value = values[name]
        else:
            give_values(part, values[name])
