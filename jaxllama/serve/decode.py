"""Decoding: converts the JSON body of a request to a struct that a dialect declared.

Called by every handler that takes JSON. Strict about size, time, content type, nesting, repeated
keys and numbers out of range. Unknown fields are dropped and named in the response headers, or
refused if the operator set --strict. Knows no dialect.
"""

import asyncio
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from aiohttp import web

from jaxllama import strict_json
from jaxllama.errors import HttpError, InvalidParameter
from jaxllama.limits import unknown_field
from jaxllama.serve.aliases import rename_aliases
from jaxllama.serve.expect import send_continue
from jaxllama.serve.keys import ALIASED, CALLER, SETTINGS
from jaxllama.serve.origin import is_from_page
from jaxllama.serve.unknown import drop_unknown, join_names, names_in

T = TypeVar("T", bound=msgspec.Struct)

# Bytes of the largest body parsed on the event loop; larger ones are parsed in a thread.
ON_THE_LOOP = 32 << 10
BRACKETS = bytes.maketrans(b"{}", b"[]")
NO_BRACKETS = bytes(set(range(256)) - set(b"[]"))
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
PATH = re.compile(r" - at `\$\.?(.*)`$")
MISSING = re.compile(r"Object missing required field `(.*)`")
UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """A decoded body: its struct, knobs, ignored fields and aliases."""

    body: T
    knobs: dict[str, Any]
    ignored: list[str]  # unknown fields that were dropped
    aliased: dict[str, str]  # our field name -> alias that the client sent


async def read_json(
    request: web.Request, shape: type[T], *, knobs: Collection[str] = (), any_type: bool = False
) -> tuple[T, dict[str, Any]]:
    """Decode the JSON body as `shape`; return it and a dict of the fields named in `knobs`.

    Other fields are dropped and named in a response header, or refused under --strict. With
    `any_type`, the content type is not checked, unless a web page sends the body.
    """
    settings = request.app[SETTINGS]
    body = await read_body(request, any_type=any_type)

    def decode() -> Decoded[T]:
        fields = parse_object(body, settings.json_depth)
        return convert(fields, shape, knobs, strict=settings.strict)

    found = decode() if len(body) < ON_THE_LOOP else await asyncio.to_thread(decode)
    note_ignored(request, found.ignored)
    request[ALIASED] = found.aliased
    return found.body, found.knobs


def note_ignored(request: web.Request, names: list[str]) -> None:
    """Add names of ignored fields to the response headers and the log."""
    notes = request[CALLER].notes
    if names:
        notes["ignored"] = ", ".join(filter(None, [notes.get("ignored"), join_names(names)]))


async def peek_names(request: web.Request) -> Collection[str]:
    """Return the field names of the JSON body; a handler can read the body again."""
    body, depth = await read_body(request), request.app[SETTINGS].json_depth
    if len(body) < ON_THE_LOOP:
        return parse_object(body, depth).keys()
    return (await asyncio.to_thread(parse_object, body, depth)).keys()


def check_names(request: web.Request, given: Iterable[str], known: Collection[str]) -> None:
    """Report the names in `given` that are not in `known` as ignored; refuse them under --strict.

    `given` are the names of the fields of a query or a form. A response header reports ignored
    names.
    """
    unknown = [name for name in dict.fromkeys(given) if name not in known]
    if unknown and request.app[SETTINGS].strict:
        raise unknown_field(unknown[0][:100], known)
    note_ignored(request, unknown)


async def read_body(request: web.Request, *, any_type: bool = False) -> bytes:
    """Read a JSON body within the operator's limits of size and time, or raise HttpError.

    `any_type` accepts any content type, unless a web page sends the body.
    """
    settings = request.app[SETTINGS]
    check_head(request, settings.body_bytes, any_type=any_type and not is_from_page(request))
    return await read_raw(request)


async def read_raw(request: web.Request) -> bytes:
    """Read a body of any type; raise HttpError beyond the operator's limits of size and time."""
    settings = request.app[SETTINGS]
    if (request.content_length or 0) > settings.body_bytes:
        raise too_large(settings.body_bytes)
    try:
        async with asyncio.timeout(settings.body_seconds):
            await send_continue(request)
            return await request.read()
    except TimeoutError as error:
        raise HttpError(
            f"the body did not come within {settings.body_seconds} s", 408, "request_timeout"
        ) from error
    except web.HTTPRequestEntityTooLarge as error:
        raise too_large(settings.body_bytes) from error


async def read_text(request: web.Request) -> str:
    """Read a body of any type as text; raises InvalidParameter if it is no UTF-8."""
    try:
        return (await read_raw(request)).decode()
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"the body is not UTF-8: {error.reason}") from error


def check_head(request: web.BaseRequest, most: int, *, any_type: bool = False) -> None:
    """Raise HttpError if the headers announce a body that the server does not accept.

    The body must be uncompressed JSON in UTF-8, of at most `most` bytes. `any_type` accepts any
    content type.
    """
    if (request.content_length or 0) > most:
        raise too_large(most)
    charset = (request.charset or "utf-8").lower()
    is_json = request.content_type == "application/json" or any_type
    if not is_json or charset not in ("utf-8", "utf8"):
        kind = request.headers.get("Content-Type", "missing")
        raise HttpError(
            f"content type is {kind[:100]!r}; expected application/json in UTF-8",
            415,
            "unsupported_media_type",
        )
    if "Content-Encoding" in request.headers:
        raise HttpError(
            "the body is compressed; send it as it is", 415, "unsupported_content_encoding"
        )


def too_large(most: int) -> HttpError:
    """Make the error for a body larger than `most` bytes."""
    return HttpError(f"the body is larger than {most} bytes", 413, "body_too_large")


def parse_object(body: bytes, depth: int) -> dict[str, Any]:
    """Parse a JSON object nested at most `depth` levels.

    Raises InvalidParameter for any other body.
    """
    fields = parse_json(body, depth)
    if not isinstance(fields, dict):
        raise InvalidParameter(f"the body is {type(fields).__name__}; expected a JSON object")
    return fields


def parse_json(body: bytes, depth: int) -> Any:
    """Parse JSON without repeated keys, nested at most `depth` levels.

    Raises InvalidParameter for any other body.
    """
    check_depth(body, depth)
    try:
        return strict_json.loads(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidParameter(
            f"the body is not UTF-8: byte {body[error.start]:#04x} at {error.start}"
        ) from error
    except json.JSONDecodeError as error:
        raise InvalidParameter(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error


def check_depth(body: bytes, depth: int) -> None:
    """Raise InvalidParameter if JSON is nested more than `depth` levels deep; does not recurse."""
    brackets = STRING.sub(b"", body).translate(BRACKETS, b"").translate(None, NO_BRACKETS)
    for _ in range(depth):  # each round removes the innermost level
        brackets = brackets.replace(b"[]", b"")
    if brackets.count(b"[") and brackets.count(b"]"):
        raise InvalidParameter(f"the body is nested more than {depth} levels deep")
    if len(brackets) > depth:
        raise InvalidParameter("the body is not JSON: brackets do not match")


def convert(
    fields: dict[str, Any], shape: type[T], knobs: Collection[str], *, strict: bool
) -> Decoded[T]:
    """Convert the JSON fields of a body to the struct `shape`; put those in `knobs` in a dict.

    `knobs` has the names of sampling options. Fields under another accepted name (alias) are
    renamed. Unknown fields are dropped and listed in the result; with `strict`, InvalidParameter
    is raised for them.
    """
    own = set(shape.__struct_encode_fields__)
    fields, aliased = rename_aliases(fields, own | set(knobs))
    given = {key: value for key, value in fields.items() if key in knobs and key not in own}
    rest = {key: value for key, value in fields.items() if key not in given}
    unknown = next((key for key in rest if key not in own), None)
    if strict and unknown is not None:
        raise unknown_field(unknown[:100], [*own, *knobs])
    ignored = [] if strict else drop_unknown(rest, shape)
    named = zip(shape.__struct_fields__, shape.__struct_encode_fields__, strict=True)
    aliased |= {field: name for field, name in named if field != name}
    try:
        return Decoded(msgspec.convert(rest, shape), given, ignored, aliased)
    except msgspec.ValidationError as error:
        raise as_invalid_parameter(str(error), rest, shape) from error


def as_invalid_parameter(
    message: str, fields: dict[str, Any], shape: type[msgspec.Struct]
) -> InvalidParameter:
    """Convert msgspec's validation error to InvalidParameter, which names the wrong field.

    `message` is the text of msgspec's error; `fields` is the body that was not a valid `shape`.
    """
    where, what = split_message(message)
    unknown = UNKNOWN.fullmatch(what)
    if unknown is not None:
        refusal = unknown_field(unknown[1][:100], names_in(shape))
        refusal.field = f"{where}.{unknown[1][:100]}"
        return refusal
    value = value_at(fields, where)
    if what.startswith("Expected `str` matching") and isinstance(value, str):
        what = f"{what}, got {value[:100]!r}"
    missing = MISSING.fullmatch(what)
    field = ".".join(filter(None, (where, missing[1]))) if missing is not None else where
    return InvalidParameter(f"{where}: {what}" if where else what, field)


def split_message(message: str) -> tuple[str | None, str]:
    """Split a msgspec error message into the path of the wrong field and the description.

    The path is None if the message has none.
    """
    found = PATH.search(message)
    return (found[1], message[: found.start()]) if found else (None, message)


def value_at(value: Any, path: str | None) -> Any:
    """Return the value at a path such as messages[0].content, or None if there is none."""
    for key in re.findall(r"[^.\[\]]+", path or ""):
        if isinstance(value, list) and key.isdigit():
            value = value[int(key)]
        elif isinstance(value, dict):
            value = value.get(key)
    return value
