"""Doubles and conformance checks, for our own tests and for plugin authors.

Imported by tests only. Names load what they need when first used: the NumPy reference needs no
JAX, the checks no model.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "FAMILIES": "models",
    "random_params": "models",
    "tiny": "models",
    "ByteTokenizer": "byte_tokenizer",
    "ScriptedEngine": "scripted",
    "check_sampler": "samplers",
    "check_format": "formats",
    "check_weights": "weights",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """The public name, from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
