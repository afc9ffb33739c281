"""The form of errors of our own routes, which is OpenAI's; dialects may use it, too."""

from typing import Any

import msgspec

from jaxllama.errors import InvalidParameter, JaxLlamaError


class Problem(msgspec.Struct):
    """Description of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """Body of an error response."""

    error: Problem


ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
RATE_LIMITED, SERVER_FAULT = 429, 500


def error_body(error: JaxLlamaError) -> dict[str, Any]:
    """Return the body of an error response in OpenAI's form."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error")
    if error.status == RATE_LIMITED:
        kind = "rate_limit_error"
    elif error.status >= SERVER_FAULT:
        kind = "server_error"
    field = error.field if isinstance(error, InvalidParameter) else None
    problem = Problem(str(error), kind, field, error.code)
    return {"error": msgspec.to_builtins(problem)}
