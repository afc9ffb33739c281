"""ExLlama's APIs: the example server's three endpoints, its WebSocket, and the web UI's sessions.

`examples.py` has the endpoints, `actions.py` the WebSocket, `sessions.py` keeps sessions on disk,
`shelf.py` has those that are open, `session_routes.py` has the web UI's routes, `speaking.py`
generates its replies, `room_routes.py` has routes of our own, which the page's rooms use.
"""

from pathlib import Path

from jaxllama.errors import InvalidParameter, JaxLlamaError
from jaxllama.serve.dialect import Dialect, DialectOptions
from jaxllama.serve.dialects.exllama.actions import ROOT, SOCKET, serve_actions
from jaxllama.serve.dialects.exllama.examples import EXAMPLES
from jaxllama.serve.dialects.exllama.room_routes import RoomRoutes
from jaxllama.serve.dialects.exllama.session_routes import SessionResult, SessionRoutes
from jaxllama.serve.dialects.exllama.shelf import SessionShelves


class ExLlamaOptions(DialectOptions, frozen=True):
    """Options of this dialect: the folder of the sessions."""

    sessions: str = "~/exllama_sessions"


class ExLlamaDialect(Dialect):
    """ExLlama's example endpoints, WebSocket protocol, and web UI sessions below /api."""

    name = "exllama"
    options_type = ExLlamaOptions
    error_type = SessionResult

    def __init__(self, options: DialectOptions | None = None) -> None:
        """Make the handlers; the folder of sessions is made when the first one is saved.

        `options` are those that the operator set, with the path of the folder.
        """
        super().__init__(options)
        shelves = SessionShelves(Path(self.options.sessions).expanduser())
        self.endpoints = {
            ROOT: serve_actions,
            SOCKET: serve_actions,
            **EXAMPLES,
            **SessionRoutes(shelves).endpoints,
            **RoomRoutes(shelves).endpoints,
        }

    def error_body(self, error: JaxLlamaError, /) -> SessionResult:
        """Return the body of an error response."""
        field = error.field if isinstance(error, InvalidParameter) else None
        return SessionResult("fail", str(error), field)
