"""The page: a chat in the browser, out of the files beside this one.

A dialect like any other, whose routes are `/` and the files it refers to. They are read once and
served from memory; the browser asks each time whether its copy still holds. The page loads nothing
from elsewhere, and its policy says so: no inline script or style, no other host, no frame around
it, and no text that becomes HTML. It talks to the server like any client; nothing here knows how.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from aiohttp import web

from jaxllama.errors import HttpError, JaxLlamaError
from jaxllama.serve.guard import open_to_all
from jaxllama.service import GenerationService

FRONT = "index.html"
TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # ask each time; the answer is mostly "not modified"
}


@dataclass(frozen=True)
class Asset:
    """A file of the page."""

    body: bytes
    content_type: str
    tag: str  # of this content, for the browser's cache


def routes(service: GenerationService) -> list[web.RouteDef]:
    """The page and its files."""
    del service
    assets = dict(read_assets(files(__name__)))

    @open_to_all
    async def front(request: web.Request) -> web.Response:
        """The page itself."""
        return respond(request, assets[FRONT])

    @open_to_all
    async def file(request: web.Request) -> web.Response:
        """One of its files."""
        asset = assets.get(request.match_info["path"])
        if asset is None:
            raise HttpError(f"the page has no file {request.path[:100]!r}", 404, "not_found")
        return respond(request, asset)

    return [web.get("/", front), web.get("/page/{path:.+}", file)]


def error_body(error: JaxLlamaError) -> dict[str, Any]:
    """An error as plain as can be."""
    return {"error": {"message": str(error), "code": error.code}}


def respond(request: web.Request, asset: Asset) -> web.Response:
    """A file, or the word that the browser's copy is the same."""
    known = {tag.value for tag in request.if_none_match or ()}
    if asset.tag in known:
        response = web.Response(status=304, headers=HEADERS)
    else:
        response = web.Response(
            body=asset.body, content_type=asset.content_type, charset="utf-8", headers=HEADERS
        )
    response.etag = asset.tag
    return response


def read_assets(folder: Traversable, place: str = "") -> list[tuple[str, Asset]]:
    """Every file of the page, by its path below `/page/`."""
    found: list[tuple[str, Asset]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += read_assets(entry, f"{place}{entry.name}/")
            continue
        content_type = TYPES.get(entry.name.rpartition(".")[2])
        if content_type is not None:
            body = entry.read_bytes()
            tag = hashlib.sha256(body).hexdigest()[:32]
            found.append((f"{place}{entry.name}", Asset(body, content_type, tag)))
    return found
