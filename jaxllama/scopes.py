"""Scopes: the names under which parts of a compiled program appear in a profile.

Used by the model, the kernels and the engine's programs. A scope changes no compiled code.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


def scoped(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Decorate a function so that a profile shows its part of a compiled program under its name."""

    @wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        with jax.named_scope(function.__name__):
            return function(*args, **kwargs)

    return run
