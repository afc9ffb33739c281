"""Pages: long lists of files and batches, a part at a time.

Part of the OpenAI dialect. The client asks for the items after the one that it saw last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.serve.decode import check_names


class HasId(Protocol):
    """An item of a list."""

    id: str


I = TypeVar("I", bound=HasId)  # noqa: E741 - an item


@dataclass(frozen=True)
class PageQuery:
    """Which items a client asks for."""

    after: str | None
    limit: int
    is_oldest_first: bool
    purpose: str | None

    def cut(self, newest_first: Sequence[I]) -> tuple[list[I], bool]:
        """Return the items of the page that the client asks for, and whether more items follow.

        `newest_first` has all items. The page is empty if the client asks for the items after an id
        that no item has.
        """
        items = list(reversed(newest_first)) if self.is_oldest_first else list(newest_first)
        if self.after is not None:
            ids = [item.id for item in items]
            items = items[ids.index(self.after) + 1 :] if self.after in ids else []
        return items[: self.limit], len(items) > self.limit


def read_page(request: web.Request, *, most: int, usual: int) -> PageQuery:
    """Read from a request's query which page of a list the client wants.

    The query's `limit` is the number of items of a page: at most `most`, by default `usual`. Raises
    InvalidParameter if the query is wrong.
    """
    query = request.query
    check_names(request, query, ("after", "limit", "order", "purpose"))
    limit = query.get("limit", str(usual))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= most):
        raise InvalidParameter(
            f"limit is {limit[:100]!r}; expected a whole number from 1 to {most}", "limit"
        )
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidParameter(f"order is {order[:100]!r}; expected asc or desc", "order")
    return PageQuery(query.get("after"), int(limit), order == "asc", query.get("purpose"))
