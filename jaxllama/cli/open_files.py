"""The limit of open files: every connection is one, and systems often allow 1,024 at first.

`serve` raises the limit before it listens. A server at the limit accepts no connection for a second
at a time.
"""

import logging

try:
    import resource
except ImportError:  # a system without limits of open files
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

OTHERS = 256  # files that are no connections: weights, pipes, sockets of devices


def allow(connections: int) -> None:
    """Raise this process's limit of open files, so that it can hold `connections` connections.

    Logs a warning with advice if the system's hard limit is lower.
    """
    if resource is None:
        return
    needed = connections + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    possible = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < needed:
        logger.warning(
            "%d connections need %d open files, and this process may open %d; raise the hard limit "
            "(ulimit -Hn) or lower --connections",
            connections,
            needed,
            possible,
        )
