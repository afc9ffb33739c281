"""Stops: the stop strings and stop tokens of one request, and which of them ended an answer.

Used by every dialect that tells why an answer ended. Knows no dialect's JSON.
"""

from collections.abc import Mapping

from jaxllama.request import Finished


class ClientStops:
    """The stops that the client sent, without the stops of the model and its prompt format."""

    def __init__(self, knobs: Mapping[str, object]) -> None:
        self._texts, self._ids = as_list(knobs.get("stop")), as_list(knobs.get("stop_ids"))

    def text_met(self, end: Finished) -> str | None:
        """Return the client's stop string that ended an answer; None if none of them did.

        `end` is the last event of the answer.
        """
        return end.stop if end.stop in self._texts else None

    def met(self, end: Finished) -> str | int | None:
        """Return the client's stop string or stop token that ended an answer; None if none did.

        `end` is the last event of the answer.
        """
        if end.end_token is not None and end.end_token in self._ids:
            return end.end_token
        return self.text_met(end)


def as_list(stop: object) -> list[object]:
    """Return stop strings or stop tokens as a list; `stop` may be one, several or None."""
    if stop is None:
        return []
    if isinstance(stop, str | int):
        return [stop]
    return list(stop) if isinstance(stop, list | tuple) else []  # another type is refused later
