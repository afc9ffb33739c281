"""A process that measures a peer: runs the calls that `peer.py` sends through a pipe.

Used by the workers, each in an environment of its own. Imports nothing but the standard library,
and knows nothing of the engines.
"""

import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any


class PeerError(Exception):
    """The peer refused a model, a setting or a call."""


def seconds(action: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def serve(makers: Mapping[str, Callable[..., Any]], *refusals: type[Exception]) -> None:
    """Make one object and run calls of its methods from the pipe, until the other end closes.

    A PeerError, or one of the exceptions that are given as refusals, is answered with its text.
    """
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    reported: tuple[type[Exception], ...] = (PeerError, *refusals)
    made: Any = None
    while True:
        try:
            name, arguments, named = connection.recv()
        except EOFError:
            return
        try:
            if made is None:
                made, answer = makers[name](*arguments, **named), None
            else:
                answer = getattr(made, name)(*arguments, **named)
            connection.send((None, answer))
        except reported as error:
            connection.send((" ".join(str(error).split()), None))
