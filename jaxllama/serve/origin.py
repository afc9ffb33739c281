"""Origins: which requests a web page of another site sends.

Such a page may send forms, and open event streams and WebSockets, without asking; routes that act
on those check here. The guard checks CORS. Knows no dialect.
"""

from urllib.parse import urlsplit

from aiohttp import web

from jaxllama.errors import HttpError
from jaxllama.serve.keys import SETTINGS

FOREIGN = ("cross-site", "same-site")


def is_from_page(request: web.BaseRequest) -> bool:
    """Say whether a web page in a browser sends the request, judged by its headers.

    The browser lets any page send forms of any content type but JSON, without asking the server.
    """
    return "Origin" in request.headers or "Sec-Fetch-Site" in request.headers


def check_origin(request: web.Request) -> None:
    """Raise HttpError 403 for a web page of another origin, unless the operator allows it."""
    origin = request.headers.get("Origin")
    allowed = request.app[SETTINGS].cors_origins
    if origin is None:
        if request.headers.get("Sec-Fetch-Site") in FOREIGN:
            raise forbidden("another site")
    elif origin not in allowed and urlsplit(origin).netloc.lower() != request.host.lower():
        raise forbidden(repr(origin[:100]))


def forbidden(origin: str) -> HttpError:
    """Make the HttpError 403 for a web page of another origin."""
    return HttpError(
        f"pages of {origin} may not use this route; allow them with --cors-origin",
        403,
        "forbidden_origin",
    )
