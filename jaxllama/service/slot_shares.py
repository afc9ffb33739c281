"""Slot shares: how the engine's slots are divided among clients, and among requests and probes.

Made by the dispatch once the engine is known, read by the fair queue. Plain numbers.
"""

from dataclasses import dataclass

from jaxllama.errors import ConfigError

FEWEST_DIVIDED = 4  # an engine with fewer slots keeps none back
MOST_PROBES = 4  # a step computes a piece of one probe, so more at a time finish none earlier


@dataclass(frozen=True)
class SlotShares:
    """The slots of one engine.

    Slots are kept back only while several clients use the server. A client that is alone may fill
    all of them, and loses nothing; the first request of a second client then waits until a slot is
    free, and from there on finds one of those that are kept back. Any client may take these as long
    as it holds few, and they are the first to be free again, because clients that hold many get no
    slot before the reserve is whole.
    """

    slots: int
    reserved: int  # kept free for clients that hold few
    probes: int  # that may run at a time, one for each client

    def is_light(self, held: int, more: int) -> bool:
        """Whether a client that holds so many slots may take `more` out of the reserve."""
        return held == 0 or held + more <= self.reserved


def divide_slots(slots: int, reserved: int | None = None) -> SlotShares:
    """The shares of an engine; `reserved` is the operator's wish, None an eighth of the slots."""
    if reserved is None:
        reserved = max(1, slots // 8) if slots >= FEWEST_DIVIDED else 0
    if reserved >= slots:
        raise ConfigError(
            f"reserved_slots is {reserved} and the engine has {slots} slots; expected fewer "
            f"reserved slots than slots (lower --reserved-slots or raise --slots)"
        )
    return SlotShares(slots, reserved, probes=min(MOST_PROBES, max(1, slots // 2)))
