"""Open files: a connection is one, and systems often allow a process only 1,024 at first.

Used by `serve` before it listens. A server at that limit accepts nobody for a second at a time.
"""

import logging

try:
    import resource
except ImportError:  # a system without such limits
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

OTHERS = 256  # files that are no connections: weights, pipes, sockets of devices


def allow(connections: int) -> None:
    """Raise the limit as far as so many connections need; log what to do where it cannot be."""
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
