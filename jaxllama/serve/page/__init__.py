"""The pages: chat and tools in the browser, made of the files in this folder.

Implemented as a dialect with the routes `/`, `/docs` and `/page/...`. `PAGES` lists the pages;
`frame.py` puts each into the common frame. Files are read once and served from memory; the browser
revalidates its copy each time. The pages load nothing from other hosts, and their
Content-Security-Policy forbids it: no inline script or style, no other host, no frame around a
page, and no text that becomes HTML.
The pages use the server's API like any client; this module does not know the API.
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
from jaxllama.serve.page.frame import Entry, Frame
from jaxllama.serve.routing import has_root
from jaxllama.service.served_models import ServedModels

PAGES = (
    Entry("chat", "Chat", "chat", scripts=("main",), skip_to="text"),
    Entry(
        "rooms",
        "Rooms",
        "rooms",
        styles=("rooms",),
        skip_to="text",
        settings_title="Settings of the room",
    ),
    Entry("batch", "Batch", "batch", styles=("work",)),
    Entry("classify", "Classify", "classify", styles=("work",)),
    Entry("fields", "JSON fields", "fields", styles=("work",)),
    Entry("bench", "Sampler bench", "bench", styles=("bench",), skip_to="prompt"),
    Entry("dashboard", "Dashboard", "dashboard", styles=("dashboard",), skip_to="scroller"),
    Entry("docs", "API", "docs", styles=("docs",), path="/docs"),
)
TYPES = {
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
    """A page or one of its files, in memory."""

    body: bytes
    content_type: str
    tag: str  # hash of the content, for the browser's cache


class Page(Dialect):
    """The routes of the pages; the first is at `/`, and all are at `/page/NAME` in any case."""

    name = "page"

    def __init__(self, root_dialect: str | None = None) -> None:
        """Prepare the web pages.

        `root_dialect` is the name of the HTTP API that gets the path `/`; None: the first page, the
        chat, gets it.
        """
        super().__init__()
        self._has_root = has_root(self, root_dialect)

    def error_body(self, error: JaxLlamaError, /) -> dict[str, Any]:
        """Return the body of an error response: message and code."""
        return {"error": {"message": str(error), "code": error.code}}

    def routes(self, models: ServedModels, /) -> list[web.RouteDef]:
        """Read the files of the web pages, make the pages, and return the routes that serve them.

        `models` has no effect: pages need no model.
        """
        del models
        folder = files(__name__)
        assets = dict(read_assets(folder))
        frame = Frame(folder, PAGES, has_root=self._has_root)
        for entry in PAGES:
            assets[entry.name] = make_asset(frame.document(entry).encode(), "text/html")

        @open_to_all
        async def front(request: web.Request) -> web.Response:
            """Answer GET / with the first page, the chat."""
            return respond(request, assets[PAGES[0].name])

        @open_to_all
        async def file(request: web.Request) -> web.Response:
            """Answer GET /page/... with a page or one of its files; 404 if it does not exist."""
            asset = assets.get(request.match_info["path"])
            if asset is None:
                raise HttpError(f"there is no page {request.path[:100]!r}", 404, "not_found")
            return respond(request, asset)

        @open_to_all
        async def docs(request: web.Request) -> web.Response:
            """Answer GET /docs with the page that describes the API."""
            return respond(request, assets["docs"])

        return [web.get("/", front), web.get("/docs", docs), web.get("/page/{path:.+}", file)]


def respond(request: web.Request, asset: Asset) -> web.Response:
    """Make the response with a file, or status 304 if the browser has the same version."""
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
    """Read all files of a folder, recursively; return (path below `/page/`, file) of each.

    `place` is the path of the folder below `/page/`, "" or with a slash at its end. Files of other
    types than TYPES are skipped.
    """
    found: list[tuple[str, Asset]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += read_assets(entry, f"{place}{entry.name}/")
            continue
        content_type = TYPES.get(entry.name.rpartition(".")[2])
        if content_type is not None:
            found.append((f"{place}{entry.name}", make_asset(entry.read_bytes(), content_type)))
    return found


def make_asset(body: bytes, content_type: str) -> Asset:
    """Return an asset with this content, its type, and the hash of the content."""
    return Asset(body, content_type, hashlib.sha256(body).hexdigest()[:32])
