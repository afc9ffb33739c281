"""Routing: which dialect owns a route, and which one a client meant that found no route.

Used by `app.py`. Where two dialects want `/`, our page keeps it unless the operator gave it away;
where two want the same path, the body tells whose it is (`RequestShape.told_by`). Knows no dialect.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from jaxllama.errors import ConfigError
from jaxllama.serve.decode import peek_names
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.endpoints import told_by
from jaxllama.serve.guard import Handler
from jaxllama.serve.keys import DIALECT

ROOT = "/"


@dataclass(frozen=True)
class OwnedRoute:
    """A route, and the dialect that it belongs to."""

    dialect: Dialect
    route: web.RouteDef


class RouteTable:
    """All routes of a server, with their dialects."""

    def __init__(self, root_dialect: str | None = None) -> None:
        """Make an empty table.

        `root_dialect` is the name of the dialect (HTTP API) that gets the path `/`; None: the
        server's own web page gets it.
        """
        self._root_dialect = root_dialect
        self._routes: dict[tuple[str, str], list[OwnedRoute]] = {}
        self._owners: dict[Any, Dialect] = {}  # handler -> dialect
        self._default: Dialect | None = None

    def add(self, dialect: Dialect, routes: Iterable[web.RouteDef]) -> None:
        """Add the routes of a dialect.

        A dialect is an HTTP API. The one added last is also given requests for paths that resemble
        no route.
        """
        for route in routes:
            if route.path == ROOT and not has_root(dialect, self._root_dialect):
                continue
            self._routes.setdefault((route.method, route.path), []).append(
                OwnedRoute(dialect, route)
            )
        self._default = dialect

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to register with aiohttp.

        Raises ConfigError if two dialects (HTTP APIs) have the same route and no field of the
        request's body tells which of them is meant.
        """
        found = []
        for (method, path), owned in self._routes.items():
            handler: Handler = owned[0].route.handler
            if len(owned) > 1:
                handler = share(owned)
            self._owners[handler] = owned[0].dialect
            found.append(web.route(method, path, handler))
        return found

    def owner(self, handler: object, path: str) -> Dialect:
        """Return the dialect (the HTTP API) that a route handler belongs to.

        If `handler` belongs to none, return the dialect with a route that is most similar to
        `path`, the request's path: the most leading parts are equal.
        """
        dialect = self._owners.get(handler)
        return dialect if dialect is not None else self._closest(path)

    def meant(self, handler: object, path: str, names: Collection[str]) -> Dialect:
        """Return the dialect (the HTTP API) that a request is meant for.

        It is the dialect that the route's `handler` belongs to. If several dialects have the route,
        the names of the fields in the request's body, `names`, decide. If `handler` belongs to no
        dialect, the request's `path` decides.
        """
        shared = getattr(handler, "__self__", None)
        if isinstance(shared, SharedHandler):
            return shared.meant(names).dialect
        return self.owner(handler, path)

    def _closest(self, path: str) -> Dialect:
        assert self._default is not None
        best, most = self._default, 0.0
        parts = path.split("/")[1:]
        for dialect, place, bonus in self._places():
            count = common_parts(parts, place.split("/")[1:])
            if count and count + bonus > most:
                best, most = dialect, count + bonus
        return best

    def _places(self) -> Iterator[tuple[Dialect, str, float]]:
        """Yield (dialect, path, bonus) for all routes and for the dialects' path prefixes.

        A dialect is an HTTP API. Used to find the one whose path shares the most leading parts with
        a request's path. `bonus` is added to the number of shared parts: at an equal number, a
        prefix wins against a route.
        """
        for (_, route), owned in self._routes.items():
            yield owned[0].dialect, route, 0.0
        for dialect in dict.fromkeys(self._owners.values()):
            for prefix in dialect.prefixes:
                yield dialect, prefix, 0.5


def has_root(dialect: Dialect, chosen: str | None) -> bool:
    """Say whether a dialect (an HTTP API) gets the path `/`.

    `chosen` is the name of the dialect that the operator chose for this path; None: the server's
    own web page, the dialect "page", gets the path.
    """
    return dialect.name == (chosen or "page")


def common_parts(path: list[str], route: list[str]) -> int:
    """Count the leading parts that a request's path and a route share.

    Both are given as lists of the parts between slashes. A part of the route that begins with a
    brace is a variable, and is the same as any part of the path.
    """
    count = 0
    for given, own in zip(path, route, strict=False):
        if not given or not (given == own or own.startswith("{")):
            break
        count += 1
    return count


def share(owned: list[OwnedRoute]) -> Handler:
    """Make one handler for a path that several HTTP APIs have.

    `owned` are the APIs' routes at this path. The handler calls the route to which a field in the
    request's body belongs. Raises ConfigError if no field tells the APIs' bodies apart.
    """
    marked: dict[str, OwnedRoute] = {}
    rest: list[OwnedRoute] = []
    for each in owned:
        mark = told_by(each.route.handler)
        if mark is None or mark in marked:
            rest.append(each)
        else:
            marked[mark] = each
    if len(rest) > 1:
        names = " and ".join(each.dialect.name for each in rest)
        raise ConfigError(
            f"{names} both have the route {owned[0].route.method} {owned[0].route.path}; choose "
            f"one of them with --dialects"
        )
    usual = rest[0] if rest else owned[0]
    return SharedHandler(marked, usual).handle


class SharedHandler:
    """The handler of a path that several dialects have."""

    def __init__(self, marked: Mapping[str, OwnedRoute], usual: OwnedRoute) -> None:
        """Store the routes that share a path; a field of the request's body decides between them.

        `marked` maps a field's name to the only route whose bodies have this field. `usual` is the
        route for all other bodies.
        """
        self._marked, self._usual = marked, usual

    def meant(self, names: Collection[str]) -> OwnedRoute:
        """Return the route that a request is meant for, from the names of the fields in its body.

        A field that only one of the HTTP APIs at this path has tells the route; without such a
        field, the result is the usual route.
        """
        return next((own for mark, own in self._marked.items() if mark in names), self._usual)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Handle a request at a path that several HTTP APIs have, as the API that is meant.

        The API is told by a field of the request's body that only this API has. Without such a
        field, the usual API handles the request.
        """
        meant = self.meant(await peek_names(request))
        request[DIALECT] = meant.dialect
        answer: web.StreamResponse = await meant.route.handler(request)
        return answer
