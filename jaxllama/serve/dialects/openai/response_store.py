"""Response store: past responses with their conversations, so that a later request can go on.

Bounded: the response that was used longest ago makes room. In memory, or in a folder that a restart
finds again. Knows no HTTP.
"""

import logging
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgspec

from jaxllama.errors import CannotStore, HttpError
from jaxllama.serve.dialects.openai.file_store import MIB
from jaxllama.serve.whole_files import open_folder, write_whole

logger = logging.getLogger(__name__)

RESPONSE_ID = re.compile(r"resp-[0-9a-f]{24}")
MOST_RESPONSES = 10_000


class KeptResponse(msgspec.Struct):
    """A stored response, with the conversation that led to it and its answer."""

    owner: str
    response: msgspec.Raw
    turns: list[dict[str, Any]]  # the conversation without instructions


class ResponseStore:
    """The responses of all clients, with at most `most` bytes."""

    def __init__(self, most: int = 64 * MIB) -> None:
        self._most = most
        self._folder: Path | None = None
        self._sizes: OrderedDict[str, int] = OrderedDict()  # by id, the longest unused first
        self._held: dict[str, bytes] = {}  # without a folder
        self._total = 0

    def open(self, folder: Path) -> None:
        """Keep responses in a folder, instead of in memory, from now on.

        Responses that an earlier server left in the folder can be found, too.
        """
        open_folder(folder)
        self._folder = folder
        found = [path for path in folder.glob("resp-*.json") if RESPONSE_ID.fullmatch(path.stem)]
        for path in sorted(found, key=lambda path: path.stat().st_mtime):
            self._note(path.stem, path.stat().st_size)

    def keep(self, id_: str, kept: KeptResponse) -> None:
        """Store a response under its id.

        If the store is full, the responses unused for longest are deleted. If the disk cannot store
        the response, logs a warning and raises no error.
        """
        raw = msgspec.json.encode(kept)
        if self._folder is None:
            self._held[id_] = raw
        else:
            try:
                write_whole(self._folder / f"{id_}.json", raw)
            except CannotStore as error:
                logger.warning("response %s is not stored: %s", id_, error)
                return
        self._note(id_, len(raw))

    def find(self, id_: str, owner: str) -> KeptResponse:
        """Return the response `id_`; raise HttpError 404 if `owner` has none by this id.

        `owner` is the owner with which the response was stored: a client's name, or "" for all
        clients without an API key.
        """
        try:
            if id_ not in self._sizes:
                raise FileNotFoundError(id_)
            path = None if self._folder is None else self._folder / f"{id_}.json"
            raw = self._held[id_] if path is None else path.read_bytes()
            kept = msgspec.json.decode(raw, type=KeptResponse)
        except (OSError, msgspec.DecodeError) as error:
            raise no_response(id_) from error
        if kept.owner != owner:
            raise no_response(id_)
        self._sizes.move_to_end(id_)
        return kept

    def delete(self, id_: str, owner: str) -> None:
        """Delete the response `id_`; raise HttpError 404 if `owner` has none by this id.

        `owner` is the owner with which the response was stored: a client's name, or "" for all
        clients without an API key.
        """
        self.find(id_, owner)
        self._forget(id_)

    def _note(self, id_: str, size: int) -> None:
        self._sizes[id_] = size
        self._total += size
        while self._total > self._most or len(self._sizes) > MOST_RESPONSES:
            self._forget(next(iter(self._sizes)))

    def _forget(self, id_: str) -> None:
        self._total -= self._sizes.pop(id_)
        self._held.pop(id_, None)
        if self._folder is not None:
            (self._folder / f"{id_}.json").unlink(missing_ok=True)


def no_response(id_: str) -> HttpError:
    """Return the error (HTTP 404) for an id under which the client has no stored response."""
    return HttpError(
        f"there is no response {id_[:100]!r} of yours; it was not stored, or has been dropped",
        404,
        "response_not_found",
    )
