"""A server behind a gateway of ours: who sent a request, and what to tell if the server dies.

The gateway (`jaxllama/deploy/gateway.py`) is the only client of such a server. It names the sender
of each request in a header. It gets the last words of each stream in a header of the response,
before the first chunk: the error in the stream's own framing, for the gateway to send if the server
is lost.
"""

import base64
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage

from jaxllama.errors import ReplicaLost

SENDER = "X-Jaxllama-Sender"  # of a request: the address of the client
LAST_WORDS = "X-Jaxllama-Last-Words"  # of a response
IS_FRONTED = web.AppKey("is_fronted", bool)

RequestFactory = Callable[..., web.BaseRequest]


def with_sender(make: RequestFactory) -> RequestFactory:
    """Return a request factory that sets `request.remote` to the address in the header SENDER.

    `make` is aiohttp's own request factory, which makes the requests.
    """

    def make_request(message: RawRequestMessage, *more: Any) -> web.BaseRequest:
        request = make(message, *more)
        sender = message.headers.get(SENDER)
        return request if sender is None else request.clone(remote=sender)

    return make_request


def last_words(error_body: Callable[[ReplicaLost], Any], join: Callable[[Any], bytes]) -> str:
    """Return the value of the response header LAST_WORDS of a stream.

    It has the error that the gateway sends to the client if this server is lost during the stream.
    `error_body` makes the body of an error in the form of the HTTP API. `join` encodes a list of
    such bodies as bytes of the stream.
    """
    return base64.b64encode(join([error_body(ReplicaLost())])).decode()


def read_last_words(header: str) -> bytes:
    """Decode a header LAST_WORDS: return the bytes to send to the client if the server is lost."""
    return base64.b64decode(header)
