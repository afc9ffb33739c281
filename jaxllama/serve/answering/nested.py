"""Nested options: knobs that a client sends inside an object of the body, such as `options`.

Used by dialects of APIs that have such an object. Unknown names follow the rule of unknown fields:
they are ignored and reported, or refused under --strict.
"""

from collections.abc import Collection, Mapping
from typing import Any

from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.limits import unknown_field
from jaxllama.serve.aliases import rename_aliases
from jaxllama.serve.decode import note_ignored
from jaxllama.serve.keys import SETTINGS


def read_options(
    request: web.Request,
    options: Mapping[str, Any],
    known: Collection[str],
    *,
    where: str = "options",
    unheeded: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the request parameters in the object `options`, and the client's path of each.

    The second dict maps names to paths such as "options.top_k", for errors. `where` is the
    request's field that holds `options`. `known` are the names of all parameters; other APIs' names
    for them are renamed. Names that are not in `known` are reported as ignored, or refused under
    --strict; `unheeded` are names of real options that have no effect here.
    """
    fields, aliased = rename_aliases(options, known)
    knobs = {name: value for name, value in fields.items() if name in known}
    ignored = [name for name in fields if name not in known]
    if ignored and request.app[SETTINGS].strict:
        raise refusal(ignored[0][:100], known, where, is_known=ignored[0] in unheeded)
    note_ignored(request, [f"{where}.{name}" for name in ignored])
    return knobs, {name: f"{where}.{aliased.get(name, name)}" for name in knobs}


def refusal(name: str, known: Collection[str], where: str, *, is_known: bool) -> InvalidParameter:
    """Make the error for the option `name` in the request's field `where`.

    `known` are the names of all supported options. With `is_known`, `name` is a real option that
    has no effect here; else the name is unknown.
    """
    if is_known:
        return InvalidParameter(f"{where}.{name} has no effect here; remove it", f"{where}.{name}")
    error = unknown_field(name, known)
    error.field = f"{where}.{name}"
    return error
