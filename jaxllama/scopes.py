"""Scopes: the names under which parts of a compiled program appear in a profile.

Used by the model, the kernels and the engine's programs. A scope changes no compiled code.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

Given = ParamSpec("Given")
Result = TypeVar("Result")


def scoped(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Trace a function in a scope with the function's name; may be recursive."""

    @wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with jax.named_scope(function.__name__):
            return function(*args, **kwargs)

    return run
