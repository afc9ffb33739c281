"""Unknown fields: finds and removes fields of a body that its msgspec struct does not have.

Used by `decode.py`, which drops them unless the operator set --strict. Knows struct types and JSON
values; must not know HTTP or any field by name.
"""

import functools
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import inspect

LONGEST_NAME = 64  # most characters shown of a field name
LONGEST_LIST = 1024  # most characters shown of all field names
UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")


def drop_unknown(fields: dict[str, Any], shape: type[msgspec.Struct]) -> list[str]:
    """Remove unknown fields of a request's body, in place and at any depth; return their paths.

    `fields` is the body; a field that the struct type `shape` does not have is unknown. A path is
    like `messages[].id`; each is listed once.
    """
    dropped: dict[str, None] = {}
    drop_from_value(fields, type_of(shape), "", dropped)
    return list(dropped)


def drop_from_value(value: Any, kind: inspect.Type, path: str, dropped: dict[str, None]) -> None:
    """Remove unknown fields from a JSON value, in place and at any depth.

    A field that the type `kind` does not have is unknown. Adds the paths of the removed fields to
    `dropped`, as keys. `path` is the path of `value` in the request's body, with a dot at its end;
    "" for the whole body.
    """
    if isinstance(kind, inspect.UnionType):
        kind = pick_union_type(value, kind)
    if isinstance(value, dict) and isinstance(kind, inspect.StructType):
        drop_from_object(value, kind, path, dropped)
    elif isinstance(value, dict) and isinstance(kind, inspect.DictType):
        for each in value.values():
            drop_from_value(each, kind.value_type, f"{path}*.", dropped)
    elif isinstance(value, list) and isinstance(kind, inspect.CollectionType):
        for each in value:
            drop_from_value(each, kind.item_type, f"{path[:-1]}[].", dropped)


def drop_from_object(
    value: dict[str, Any], kind: inspect.StructType, path: str, dropped: dict[str, None]
) -> None:
    """Remove unknown fields from a JSON object, in place and at any depth.

    A field that the struct type `kind` does not have is unknown. Adds the paths of the removed
    fields to `dropped`, as keys. `path` is the path of `value` in the request's body, with a dot at
    its end; "" for the whole body.
    """
    own = {field.encode_name: field.type for field in kind.fields}
    for name in [name for name in value if name not in own and name != kind.tag_field]:
        dropped[f"{path}{name}"] = None
        del value[name]
    for name, each in value.items():
        if name in own and isinstance(each, dict | list):
            drop_from_value(each, own[name], f"{path}{name}.", dropped)


def pick_union_type(value: Any, union: inspect.UnionType) -> inspect.Type:
    """Return the member of a union that a JSON value belongs to, or the union if none fits.

    Among several structs, the value's tag decides.
    """
    structs = [each for each in union.types if isinstance(each, inspect.StructType)]
    if isinstance(value, dict) and len(structs) > 1:
        tagged = (each for each in structs if value.get(each.tag_field or "") == each.tag)
        return next(tagged, union)
    kinds: dict[type, Any] = {
        dict: inspect.StructType | inspect.DictType,
        list: inspect.CollectionType,
    }
    fitting = kinds.get(type(value), ())
    return next((each for each in union.types if isinstance(each, fitting)), union)


@functools.cache
def type_of(shape: type[msgspec.Struct]) -> inspect.Type:
    """Return msgspec's description of a struct type; the result is cached."""
    return inspect.type_info(shape)


@functools.cache
def names_in(shape: type[msgspec.Struct]) -> frozenset[str]:
    """Return all field names of a struct type, at any depth; the result is cached."""
    names: set[str] = set()
    seen: set[Any] = set()
    rest: list[Any] = [type_of(shape)]
    while rest:
        kind = rest.pop()
        if isinstance(kind, inspect.StructType) and kind.cls not in seen:
            seen.add(kind.cls)
            names |= {field.encode_name for field in kind.fields}
            rest += [field.type for field in kind.fields]
        elif isinstance(kind, inspect.UnionType):
            rest += kind.types
        elif isinstance(kind, inspect.CollectionType):
            rest.append(kind.item_type)
        elif isinstance(kind, inspect.DictType):
            rest.append(kind.value_type)
    return frozenset(names)


def join_names(names: Iterable[str]) -> str:
    """Join field names to a line for an HTTP header: of limited length, no special characters."""
    shown = [UNSAFE.sub("?", name[:LONGEST_NAME]) for name in names]
    line = ", ".join(shown)
    if len(line) <= LONGEST_LIST:
        return line
    kept = line[:LONGEST_LIST].rpartition(", ")[0]
    return f"{kept}, and {len(shown) - kept.count(', ') - 1} more"
