"""The Expect header: sends `100 Continue` when a handler reads the body, not earlier.

aiohttp answers the header before any handler runs, even if the route is unknown. So the server
removes the header from new requests and stores its value in `request[EXPECTATION]`.
"""

from collections.abc import Callable
from typing import Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_parser import RawRequestMessage

from jaxllama.errors import HttpError

RequestFactory = Callable[..., web.BaseRequest]

CONTINUE = "100-continue"
EXPECTATION = web.RequestKey("expectation", str)


def without_expectation(make: RequestFactory) -> RequestFactory:
    """Return a request factory that moves the Expect header to `request[EXPECTATION]`.

    `make` is aiohttp's own request factory, which makes the requests.
    """

    def make_request(message: RawRequestMessage, *more: Any) -> web.BaseRequest:
        if hdrs.EXPECT not in message.headers:
            return make(message, *more)
        headers = message.headers.copy()
        expected = ", ".join(headers.popall(hdrs.EXPECT))
        request = make(message._replace(headers=type(message.headers)(headers)), *more)
        if message.version >= HttpVersion11:  # an older client would not understand the answer
            request[EXPECTATION] = expected
        return request

    return make_request


def check_expectation(request: web.Request) -> None:
    """Raise HttpError 417 for an Expect header other than 100-continue."""
    expected = request.get(EXPECTATION, CONTINUE)
    if expected.lower() != CONTINUE:
        raise HttpError(
            f"the Expect header is {expected[:100]!r}; expected {CONTINUE} or no such header",
            417,
            "expectation_failed",
        )


async def send_continue(request: web.Request) -> None:
    """Send `100 Continue` if the client waits for it before it sends the body."""
    if EXPECTATION in request:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # otherwise the response would count as started
