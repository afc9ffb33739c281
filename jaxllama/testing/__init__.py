"""Test doubles and conformance checks, for this project's tests and for plugin authors.

Imported by tests only. Each name is imported at its first use: the NumPy reference needs no JAX,
and the checks need no model.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "FAMILIES": "models",
    "random_params": "models",
    "flatten": "models",
    "byte_tokenizer_json": "models",
    "tiny": "models",
    "ByteTokenizer": "byte_tokenizer",
    "ScriptedEngine": "scripted",
    "check_sampler": "samplers",
    "check_format": "formats",
    "check_weights": "weights",
    "check_tokenizer": "tokenizer_files",
    "check_dialect": "dialects",
    "served": "dialects",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it, at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
