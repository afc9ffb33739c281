"""The guard: who may come in.

Asked for every request before its handler, on the route that was matched: a route that does not
say `@open_to_all` needs a key as soon as there is one. On a loopback address it also looks at the
Host header, because a web page elsewhere can point its own name at this machine. Knows no service.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web

from jaxllama.errors import HttpError
from jaxllama.serve.settings import LONGEST_KEY, LOOPBACK, Settings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
H = TypeVar("H", bound=Handler)


def serve_always(handler: H) -> H:
    """Mark a handler that is served on connections in reserve, too."""
    handler.is_vital = True  # type: ignore[attr-defined]
    return handler


def open_to_all(handler: H) -> H:
    """Mark a handler that needs no key."""
    handler.open_to_all = True  # type: ignore[attr-defined]
    return handler


class Guard:
    """Keys, hosts and origins of one server."""

    def __init__(self, settings: Settings) -> None:
        self._keys = [digest(key) for key in settings.api_keys]
        names = (*LOOPBACK, "[::1]", *settings.allowed_hosts)
        self._hosts = frozenset(map(str.lower, names))
        self._checks_host = settings.is_loopback or bool(settings.allowed_hosts)
        self._origins = frozenset(settings.cors_origins)

    def client(self, request: web.BaseRequest) -> str:
        """Whom fairness counts this request for: a key, or an address."""
        found = self._match(request)
        return f"key-{found.hex()[:8]}" if found is not None else f"at {request.remote}"

    def check(self, request: web.BaseRequest, handler: object) -> None:
        """Refuse whoever may not use this handler."""
        if self._checks_host and host_of(request) not in self._hosts:
            raise HttpError(
                f"host {request.headers.get('Host', '')[:100]!r} is not this server's; connect as "
                f"localhost, or start it with --allowed-host",
                403,
                "forbidden_host",
            )
        if not self._keys or getattr(handler, "open_to_all", False):
            return
        if self._match(request) is None:
            raise HttpError(
                "this server needs an API key; send the header Authorization: Bearer KEY",
                401,
                "invalid_api_key",
            )

    def cors(self, request: web.BaseRequest) -> dict[str, str]:
        """What lets a page of an allowed origin read the response; nothing for any other."""
        origin = request.headers.get("Origin")
        if origin is None or origin not in self._origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": (
                "X-Request-Id, Retry-After, X-Ignored-Fields, X-Prompt-Format"
            ),
            "Vary": "Origin",
        }

    def preflight(self, request: web.BaseRequest) -> web.Response | None:
        """The answer to a browser that asks whether it may ask."""
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        if not self.cors(request):
            return None
        allowed = {
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
            "Access-Control-Max-Age": "600",
        }
        return web.Response(status=204, headers=allowed)

    def _match(self, request: web.BaseRequest) -> bytes | None:
        """The digest of the key that was brought, if it is one of ours; takes equally long."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        given = digest(key.strip()[:LONGEST_KEY])
        found = None
        for own in self._keys:
            if hmac.compare_digest(own, given):
                found = own
        return found if scheme.lower() == "bearer" else None


def digest(key: str) -> bytes:
    """What keys are compared by: its length says nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def host_of(request: web.BaseRequest) -> str:
    """The name in the Host header, without its port; "" for what is none."""
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1:
        return ""
    host = hosts[0].lower()
    name, colon, port = host.rpartition(":")
    if colon and (port.isdigit() or not port) and not host.endswith("]"):
        host = name
    return host.removesuffix(".")
