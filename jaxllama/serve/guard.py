"""The guard: access control by API key, Host header and origin.

Called for every request before its handler, with the matched route: a route without `@open_to_all`
needs a key if the server has keys. On a loopback address the guard also checks the Host header,
because a foreign web page can point its own host name at this machine. Knows no service.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from aiohttp import web

from jaxllama.errors import HttpError
from jaxllama.serve.settings import LONGEST_KEY, LOOPBACK, Settings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
H = TypeVar("H", bound=Handler)


def serve_always(handler: H) -> H:
    """Mark a handler to be served even on connections beyond the connection limit; return it."""
    handler.is_vital = True  # type: ignore[attr-defined]
    return handler


def open_to_all(handler: H) -> H:
    """Mark a handler that needs no API key; return it."""
    handler.open_to_all = True  # type: ignore[attr-defined]
    return handler


class Guard:
    """Checks keys, hosts and origins for one server."""

    def __init__(self, settings: Settings, headers: Iterable[str] = ()) -> None:
        """Read the API keys, the allowed hosts and the allowed origins from `settings`.

        `headers` are names of request headers that CORS allows, beside the usual ones.
        """
        self._keys = [digest(key) for key in settings.api_keys]
        names = (*LOOPBACK, "[::1]", *settings.allowed_hosts)
        self._hosts = frozenset(map(str.lower, names))
        self._checks_host = settings.is_loopback or bool(settings.allowed_hosts)
        self._origins = frozenset(settings.cors_origins)
        self._headers = ", ".join(("Authorization", "Content-Type", *headers))

    def client(self, request: web.BaseRequest, key: str) -> str:
        """Return a name for the client: made of its API key if that is valid, else of its address.

        `key` is the API key that the request sent, "" if none. The request queue is fair among
        these names.
        """
        found = self._match(key)
        return f"key-{found.hex()[:8]}" if found is not None else f"at {request.remote}"

    def check(self, request: web.BaseRequest, handler: object, key: str) -> None:
        """Raise HttpError if the Host header is foreign, or `key` is invalid where one is needed.

        `key` is the API key that the request sent, "" if none. A `handler` marked with
        `open_to_all` needs no key.
        """
        if self._checks_host and host_of(request) not in self._hosts:
            raise HttpError(
                f"host {request.headers.get('Host', '')[:100]!r} is not this server's; connect as "
                f"localhost, or start it with --allowed-host",
                403,
                "forbidden_host",
            )
        if not self._keys or getattr(handler, "open_to_all", False):
            return
        if self._match(key) is None:
            raise HttpError(
                "this server needs an API key; send the header Authorization: Bearer KEY",
                401,
                "invalid_api_key",
            )

    def cors(self, request: web.BaseRequest) -> dict[str, str]:
        """Return the CORS headers if the request's origin is allowed, else {}."""
        origin = request.headers.get("Origin")
        if origin is None or origin not in self._origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": (
                "X-Request-Id, Retry-After, X-Ignored-Fields, X-Prompt-Format, X-Dropped-Messages"
            ),
            "Vary": "Origin",
        }

    def preflight(self, request: web.BaseRequest) -> web.Response | None:
        """Return the response to a CORS preflight of an allowed origin; None for other requests."""
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        if not self.cors(request):
            return None
        allowed = {
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": self._headers,
            "Access-Control-Max-Age": "600",
        }
        return web.Response(status=204, headers=allowed)

    def _match(self, key: str) -> bytes | None:
        """Return the digest of an API key if it is valid, else None; compares in constant time."""
        given = digest(key[:LONGEST_KEY])
        found = None
        for own in self._keys:
            if hmac.compare_digest(own, given):
                found = own
        return found


def bearer_key(request: web.BaseRequest) -> str:
    """Return the key of the header `Authorization: Bearer KEY`; "" if there is none."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def digest(key: str) -> bytes:
    """Return a hash of a key, so that comparing keys does not reveal their lengths."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def host_of(request: web.BaseRequest) -> str:
    """Return the host name in the Host header, without port; "" if there is not exactly one."""
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1:
        return ""
    host = hosts[0].lower()
    name, colon, port = host.rpartition(":")
    if colon and (port.isdigit() or not port) and not host.endswith("]"):
        host = name
    return host.removesuffix(".")
