"""Recordings: explained answers with their logits, kept to be replayed without the model.

Filled by `/explain` if a client sets `keep`, read by `/explain/replay`. Bounded in memory and in
number per client; a client reads only its own. Runs on the event loop. Knows no samplers.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from jaxllama.errors import HttpError
from jaxllama.recording import Recording

MOST_BYTES = 256 << 20
MOST_OF_A_CLIENT = 8
SECONDS_KEPT = 900.0


@dataclass(frozen=True)
class KeptRecording:
    """A recording with its owner, and when it was used last."""

    client: str
    recording: Recording
    used: float


class Recordings:
    """The kept recordings of all clients, the one used last at the end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, KeptRecording] = OrderedDict()

    def keep(self, client: str, recording: Recording) -> str:
        """Keep a recording (an answer with its logits) for a client; return the recording's id.

        `client` is the client's name in the request queue. If there is no room, drops the
        recordings whose last use is longest ago.
        """
        id_ = f"rec-{secrets.token_hex(12)}"
        self._kept[id_] = KeptRecording(client, recording, self._clock())
        self._drop()
        return id_

    def get(self, id_: str, client: str) -> Recording:
        """Return the recording (an answer with its logits) that has this id.

        Raises HttpError (404) if there is none, or if it was not kept for `client`, the client's
        name in the request queue.
        """
        self._drop()
        kept = self._kept.get(id_)
        if kept is None or kept.client != client:
            raise HttpError(
                f"no recording {id_[:100]!r} of yours is kept; one is kept for "
                f"{SECONDS_KEPT / 60:.0f} minutes after its last use: explain the answer again",
                404,
                "recording_not_found",
            )
        self._kept[id_] = KeptRecording(client, kept.recording, self._clock())
        self._kept.move_to_end(id_)
        return kept.recording

    @property
    def bytes(self) -> int:
        """Number of bytes of the logits of all recordings."""
        return sum(kept.recording.logits.nbytes for kept in self._kept.values())

    def _drop(self) -> None:
        """Drop recordings that were not used for SECONDS_KEPT seconds.

        Then, while a client has too many or all together take too many bytes, drop those whose last
        use is longest ago.
        """
        now = self._clock()
        old = [id_ for id_, kept in self._kept.items() if now - kept.used > SECONDS_KEPT]
        for id_ in old:
            del self._kept[id_]
        for client in {kept.client for kept in self._kept.values()}:
            mine = [id_ for id_, kept in self._kept.items() if kept.client == client]
            for id_ in mine[:-MOST_OF_A_CLIENT]:
                del self._kept[id_]
        while self.bytes > MOST_BYTES and len(self._kept) > 1:
            self._kept.popitem(last=False)
