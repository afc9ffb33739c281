"""Defaults of knobs that a dialect promises, where the sampler that has the knob is installed.

Used by dialects of systems whose requests have defaults of their own.
"""

from collections.abc import Mapping
from typing import Any

from jaxllama.service import Model


def with_defaults(
    model: Model, knobs: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `knobs` with the values in `defaults` for the knobs that are missing or None.

    Knobs are request parameters. A default is left out if `model` has no sampler with its knob.
    """
    given = {name: value for name, value in knobs.items() if value is not None}
    known = model.knobs
    return {name: value for name, value in defaults.items() if name in known} | given
