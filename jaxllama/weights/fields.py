"""CheckedFields: named values of a header or JSON file, read with their type and bounds checked.

Built by weight readers. Every error names the file and the key. Knows no format and no model.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jaxllama.errors import BadHeader
from jaxllama.weights.binary import BinaryFile

MAX_SIZE = 2**24  # of one dimension: a matrix then has at most 2**48 weights, far from 2**63
MAX_HEADS = 2**12  # heads times head size is a dimension too
MAX_LAYERS = 2**10  # the largest models have some 130
BLOCK_TENSORS = 6  # Phi-3, the fewest: two norms, two matrices of attention and two of feed-forward
MAX_CONTEXT = 2**31 - 1
MAX_JSON = 16 << 20  # bytes; parsing may take twenty times as much memory
REQUIRED: Final[Any] = object()


class CheckedFields:
    """A mapping whose values are checked when they are read; null counts as absent."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self.values = values
        self.where = where

    def has(self, key: str) -> bool:
        """Say whether the key is present and not null."""
        return self.values.get(key) is not None

    def whole(
        self, key: str, default: int = REQUIRED, *, low: int = 1, high: int = MAX_SIZE
    ) -> int:
        """Return field `key` as an integer from `low` to `high`; `default` if it is absent.

        Raise BadHeader if it is wrong, or absent without a default.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "a whole number")
        if not low <= value <= high:
            raise BadHeader(
                f"{self.where}: {key} is {shown(value)}; it must lie in [{low}, {high}]"
            )
        return value

    def real(self, key: str, default: float = REQUIRED, *, above: float = -math.inf) -> float:
        """Return field `key` as a finite float greater than `above`; `default` if it is absent.

        Raise BadHeader if it is wrong, or absent without a default.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._wrong(key, value, "a finite number")
        if number <= above:
            raise self._wrong(key, value, f"a number greater than {above:g}")
        return number

    def text(self, key: str, default: str = REQUIRED) -> str:
        """Return field `key` as a string; `default` if it is absent.

        Raise BadHeader if it is no string, or absent without a default.
        """
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def flag(self, key: str, default: bool = REQUIRED) -> bool:
        """Return field `key` as a boolean; `default` if it is absent.

        Raise BadHeader if it is no boolean, or absent without a default.
        """
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def items(self, key: str) -> list[object]:
        """Return field `key` as a list; [] if it is absent. Raise BadHeader if it is no list."""
        value = self._get(key, [])
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list")
        return value

    def inner(self, key: str) -> "CheckedFields":
        """Return the fields of the JSON object in field `key`; no fields if it is absent.

        Raise BadHeader if it is no object.
        """
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return CheckedFields(value, f"{self.where}: {key}")

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is REQUIRED:
            raise BadHeader(f"{self.where}: {key} is missing")
        return default

    def _wrong(self, key: str, value: object, expected: str) -> BadHeader:
        return BadHeader(f"{self.where}: {key} is {shown(value)}; expected {expected}")


def read_layers(fields: CheckedFields, key: str, tensors: int) -> int:
    """Return the number of layers in field `key`; raise BadHeader if the file has too few tensors.

    `tensors` is the number of tensors in the file. The check bounds memory, since the parameter
    tree is built for this number of layers.
    """
    layers = fields.whole(key, high=MAX_LAYERS)
    if layers * BLOCK_TENSORS > tensors:
        raise BadHeader(
            f"{fields.where}: {key} is {layers}; so many blocks need at least "
            f"{layers * BLOCK_TENSORS} tensors, and there are {tensors}"
        )
    return layers


def read_json(path: Path, longest: int = MAX_JSON) -> CheckedFields:
    """Return the fields of the JSON object in the file at `path`.

    Raise BadHeader if the file holds no JSON object or more than `longest` bytes.
    """
    file = BinaryFile(path)
    try:
        if file.size > longest:
            raise BadHeader(f"{path} has {file.size} bytes; expected at most {longest}")
        return CheckedFields(parse_json(file.read(0, file.size).tobytes(), str(path)), str(path))
    finally:
        file.close()


def parse_json(raw: bytes, where: str) -> dict[str, object]:
    """Return the JSON object in `raw`; raise BadHeader if there is none, or a key is given twice.

    A key given twice is refused because readers would disagree on its value. `where` names the
    source in errors.
    """
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=dict_of_unique_keys)
    except (ValueError, RecursionError) as error:
        raise BadHeader(f"{where}: not valid JSON: {shown(str(error))}") from error
    if not isinstance(value, dict):
        raise BadHeader(f"{where}: holds {shown(value)}; expected a JSON object")
    return value


def dict_of_unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build a dict from pairs; raise ValueError if a key occurs twice."""
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} is given twice")
    return values


def shown(value: object) -> str:
    """Format any value for an error message: short and on one line."""
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 128:  # noqa: PLR2004
        return f"a number of {value.bit_length()} bits"
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 100 else text[:97] + "..."  # noqa: PLR2004
