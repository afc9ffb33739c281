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

        `root_dialect` is the name of the dialect (HTTP API) that gets the path `/`; None: our page.
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

        Raises ConfigError if two dialects (HTTP APIs) have the same route and no field of their
        bodies decides.
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

        For a handler of no dialect it is the one with a path that shares the most leading parts
        with `path`.
        """
        dialect = self._owners.get(handler)
        return dialect if dialect is not None else self._closest(path)

    def meant(self, handler: object, path: str, names: Collection[str]) -> Dialect:
        """Return the dialect that a request is meant for: the one that `handler` belongs to.

        A dialect is an HTTP API. If several have the route, the fields of the request's body, whose
        names are `names`, decide. `path` decides if `handler` belongs to no dialect.
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

    `chosen` is the name of the dialect that the operator chose for it; None: our page gets it.
    """
    return dialect.name == (chosen or "page")


def common_parts(path: list[str], route: list[str]) -> int:
    """Count the leading parts that a path and a route share; a variable part fits any.

    Both are split at slashes; a variable part of the route begins with a brace.
    """
    count = 0
    for given, own in zip(path, route, strict=False):
        if not given or not (given == own or own.startswith("{")):
            break
        count += 1
    return count


def share(owned: list[OwnedRoute]) -> Handler:
    """Make one handler for a path that several HTTP APIs have: a field of the body decides.

    `owned` are their routes at this path. Raises ConfigError if no field tells their bodies apart.
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
        """Return the route for a body with these field names: the one whose marking field is there.

        Without such a field, the usual route.
        """
        return next((own for mark, own in self._marked.items() if mark in names), self._usual)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Call the handler whose field is in the request's body; without one, the usual handler."""
        meant = self.meant(await peek_names(request))
        request[DIALECT] = meant.dialect
        answer: web.StreamResponse = await meant.route.handler(request)
        return answer
