"""The page: a chat in the browser, made of the files in this folder.

Implemented as a dialect with the routes `/` and the page's files. Files are read once and served
from memory; the browser revalidates its copy each time. The page loads nothing from other hosts,
and its Content-Security-Policy forbids it: no inline script or style, no other host, no frame
around the page, and no text that becomes HTML. The page uses the server's API like any client; this
module does not know the API.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from aiohttp import web

from jaxllama.errors import HttpError, JaxLlamaError
from jaxllama.serve.dialect import Dialect
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
    """A file of the page, in memory."""

    body: bytes
    content_type: str
    tag: str  # hash of the content, for the browser's cache


class Page(Dialect):
    """The routes of the page; the page itself is at `/`, and at `/page/index.html` in any case."""

    name = "page"

    def error_body(self, error: JaxLlamaError, /) -> dict[str, Any]:
        """Return the body of an error response: message and code."""
        return {"error": {"message": str(error), "code": error.code}}

    def routes(self, service: GenerationService, /) -> list[web.RouteDef]:
        """Read the page's files and return the routes that serve them."""
        del service
        assets = dict(read_assets(files(__name__)))

        @open_to_all
        async def front(request: web.Request) -> web.Response:
            """Serve the page itself."""
            return respond(request, assets[FRONT])

        @open_to_all
        async def file(request: web.Request) -> web.Response:
            """Serve a file of the page; 404 if it does not exist."""
            asset = assets.get(request.match_info["path"])
            if asset is None:
                raise HttpError(f"the page has no file {request.path[:100]!r}", 404, "not_found")
            return respond(request, asset)

        return [web.get("/", front), web.get("/page/{path:.+}", file)]


def respond(request: web.Request, asset: Asset) -> web.Response:
    """Make the response with a file, or 304 if the browser's copy is the same."""
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
    """Read all files of a folder, recursively; return pairs of path below `/page/` and file."""
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
