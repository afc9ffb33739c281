"""`/openapi.json` and `/docs`: the description of the API, for programs and for people.

Implemented as a dialect. The page is one HTML document without scripts, made from the same
description; its Content-Security-Policy forbids loading anything.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from aiohttp import web

from jaxllama.errors import JaxLlamaError
from jaxllama.serve.answering.problem import error_body
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.guard import open_to_all
from jaxllama.serve.keys import CALLER, SETTINGS
from jaxllama.serve.openapi import PREFIX, Json, RouteName, describe
from jaxllama.serve.routing import ROOT, has_root
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem }
code { font-family: ui-monospace, monospace }
h2 { margin-top: 2.5rem; border-bottom: 1px solid; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0 }
td:first-child { overflow-wrap: anywhere }
"""
DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{DIGEST}'; "
    f"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class Docs(Dialect):
    """Serves the description of all endpoints of `dialects`."""

    name = "docs"

    def __init__(self, dialects: Sequence[Dialect], root_dialect: str | None = None) -> None:
        """Take the endpoints of the dialects, `/` only of `root_dialect`."""
        super().__init__()
        self._endpoints: dict[Endpoint, RouteName] = {}
        names: set[str] = set()
        for dialect in dialects:
            for endpoint, serve in dialect.endpoints.items():
                if endpoint.path == ROOT and not has_root(dialect, root_dialect):
                    continue
                name = serve.__name__
                name = f"{dialect.name}_{name}" if name in names else name
                names.add(name)
                self._endpoints[endpoint] = RouteName(name, dialect.name, dialect.error_type)

    def routes(self, service: GenerationService, /) -> list[web.RouteDef]:
        """Return the routes `/openapi.json` and `/docs`."""

        async def description(request: web.Request) -> Json:
            settings = request.app[SETTINGS]
            return await service.off_loop(
                lambda model: describe(
                    model,
                    self._endpoints,
                    needs_key=bool(settings.api_keys),
                    strict=settings.strict,
                ),
                request[CALLER],
                is_dear=True,
            )

        @open_to_all
        async def openapi(request: web.Request) -> web.Response:
            """Serve the description of the API as JSON."""
            return one_json(await description(request))

        @open_to_all
        async def docs(request: web.Request) -> web.Response:
            """Serve the description of the API as an HTML page."""
            text = "".join(page(await description(request)))
            return web.Response(text=text, content_type="text/html", headers=HEADERS)

        return [web.get("/openapi.json", openapi), web.get("/docs", docs)]

    def error_body(self, error: JaxLlamaError, /) -> dict[str, Any]:
        """Return the body of an error response, in OpenAI's form."""
        return error_body(error)


def page(document: Json) -> Iterator[str]:
    """Yield the parts of the description as HTML."""
    yield "<!doctype html><html lang=en><meta charset=utf-8><title>API</title>"
    yield f"<style>{STYLE}</style>"
    yield '<meta name=viewport content="width=device-width">'
    yield "<h1>API</h1><p>For programs: <a href=openapi.json>openapi.json</a>.</p>"
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation['summary'])}.</p>"
            body = operation.get("requestBody")
            if body is not None:
                schema = body["content"]["application/json"]["schema"]
                for each in schema.get("anyOf", [schema]):
                    yield from fields_of(schemas[each["$ref"].removeprefix(PREFIX)])


def fields_of(schema: Json) -> Iterator[str]:
    """Yield the HTML table of a request body's fields."""
    required = schema.get("required", [])
    yield "<table><tr><th>field<th>type<th>meaning</tr>"
    for name, field in schema["properties"].items():
        kind = escape(type_of(field)) + (", required" if name in required else "")
        yield f"<tr><td><code>{escape(name)}</code><td>{kind}"
        yield f"<td>{escape(field.get('description', ''))}</tr>"
    yield "</table>"


def type_of(schema: Json) -> str:
    """Describe the type of a schema in words."""
    if "anyOf" in schema:
        parts = [type_of(each) for each in schema["anyOf"] if each != {"type": "null"}]
        return " or ".join(dict.fromkeys(parts))
    if "$ref" in schema:
        return str(schema["$ref"].removeprefix(PREFIX))
    if "enum" in schema:
        return " or ".join("null" if each is None else str(each) for each in schema["enum"])
    if schema.get("type") == "array" and "items" in schema:
        return f"list of {type_of(schema['items'])}{bounds_of(schema)}"
    return f"{schema.get('type', 'anything')}{bounds_of(schema)}"


def bounds_of(schema: Json) -> str:
    """Describe the bounds of a schema in words; "" if it has none."""
    names = ("minimum", "maximum", "maxLength", "maxItems", "maxProperties")
    found = [f"{name} {schema[name]}" for name in names if name in schema]
    return f" ({', '.join(found)})" if found else ""
