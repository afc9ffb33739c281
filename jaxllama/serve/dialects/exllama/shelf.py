"""The sessions that are open: each once, however many clients and tabs use it.

Both the routes of ExLlama's web UI and those of rooms read and write sessions here. Knows the
store, not HTTP.
"""

import asyncio
import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from jaxllama.serve.dialects.exllama.sessions import ExLlamaSession, SessionStore, safe_name

KEYED = "key-"  # how the name of a client with an API key begins


class OpenSession:
    """A session that is used, and its name; a deleted one is not written any more."""

    def __init__(self, store: SessionStore, name: str, session: ExLlamaSession) -> None:
        self.name, self.session, self.is_deleted = name, session, False
        self.revision = 0  # grows with every change
        self._store = store
        self._watchers: set[asyncio.Event] = set()

    def save(self) -> None:
        """Write the session to its file, unless it was deleted."""
        if not self.is_deleted:
            self._store.save(self.name, self.session)

    def announce(self) -> None:
        """Increment the session's revision after a change, and wake the tasks that watch it."""
        self.revision += 1
        for watcher in self._watchers:
            watcher.set()

    @contextmanager
    def watched(self) -> Iterator[asyncio.Event]:
        """Watch the session: within the context, every change sets the event that is yielded.

        The watcher clears the event.
        """
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)


class SessionShelf:
    """The sessions of one folder; `lock` is held while they are read or written."""

    def __init__(self, folder: Path) -> None:
        self.lock = asyncio.Lock()
        self._store = SessionStore(folder)
        self._open: WeakValueDictionary[str, OpenSession] = WeakValueDictionary()

    async def names(self) -> list[str]:
        """Return the names of all sessions, also of open ones that are not saved yet."""
        saved = await asyncio.to_thread(self._store.names)
        unsaved = [name for name, each in self._open.items() if not each.is_deleted]
        return sorted({*saved, *unsaved})

    async def last(self) -> OpenSession:
        """Open the session that was used last; without any, make one."""
        name = await asyncio.to_thread(self._store.last)
        return await self.create() if name is None else await self.open(name)

    async def open(self, name: str) -> OpenSession:
        """Return the session of this name, loading it if needed; raise InvalidParameter if none."""
        name = safe_name(name)
        known = self._open.get(name)
        if known is not None and not known.is_deleted:
            return known
        return self._keep(name, await asyncio.to_thread(self._store.load, name))

    async def create(self, name: str | None = None) -> OpenSession:
        """Make a session, not saved yet; raise InvalidParameter if the name is taken.

        Without `name`, it gets one that is not used.
        """
        if name is None:
            name = await asyncio.to_thread(self._store.unused_name, tuple(self._open))
        else:
            name = safe_name(name)
            await asyncio.to_thread(self._store.check_unused, name, "name")
        return self._keep(name, ExLlamaSession())

    async def rename(self, session: OpenSession, new: str) -> None:
        """Give a session the name `new`; raise InvalidParameter if that name is taken."""
        old, new = session.name, safe_name(new)
        await asyncio.to_thread(self._store.rename, old, new, session.session)
        self._open.pop(old, None)
        session.name = new
        self._open[new] = session
        session.announce()

    async def delete(self, name: str) -> None:
        """Delete a session; raises InvalidParameter if there is none."""
        await asyncio.to_thread(self._store.delete, name)
        known = self._open.pop(safe_name(name), None)
        if known is not None:
            known.is_deleted = True
            known.announce()

    async def change(self, session: OpenSession, change: Callable[[ExLlamaSession], None]) -> None:
        """Apply `change` to a session and save it.

        `change` modifies the session in place. It is called twice: first on a copy, whose size is
        checked, then on the session. If the first call or the check raises an error, the session
        is unchanged.
        """
        trial = copy.deepcopy(session.session)  # a reply may be writing into the session
        change(trial)
        trial.check()
        change(session.session)
        session.announce()
        await asyncio.to_thread(session.save)

    def _keep(self, name: str, session: ExLlamaSession) -> OpenSession:
        known = self._open.get(name)
        if known is not None and not known.is_deleted:
            return known
        self._open[name] = kept = OpenSession(self._store, name, session)
        return kept


class SessionShelves:
    """The shelves of all clients: with API keys one for each key, else one for all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shelves: dict[str, SessionShelf] = {}

    def of(self, client: str) -> SessionShelf:
        """Return the sessions of a client: its own if it has an API key, else the shared ones.

        `client` is the client's name in the request queue, "key-..." if it has an API key.
        """
        name = folder_of(client)
        return self._shelves.setdefault(name, SessionShelf(self._folder / name))


def folder_of(client: str) -> str:
    """Return the name of the folder with a client's sessions; "." for clients without API key.

    `client` is the client's name in the request queue, "key-..." if it has an API key.
    """
    if not client.startswith(KEYED):
        return "."
    return hashlib.sha256(client.encode()).hexdigest()[:16]
