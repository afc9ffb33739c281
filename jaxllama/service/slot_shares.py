"""Slot shares: how the engine's slots are divided among clients, and between requests and probes.

Made by the dispatch once the engine is known, read by the fair queue. Plain numbers.
"""

from dataclasses import dataclass

from jaxllama.errors import ConfigError

FEWEST_DIVIDED = 4  # an engine with fewer slots has no reserve
# A step computes a piece of one probe, so running more probes at a time is no faster.
MOST_PROBES = 4


@dataclass(frozen=True)
class SlotShares:
    """The slots of one engine, and the reserve for clients that hold few slots.

    The reserve exists only while several clients use the server. A single client may fill all
    slots; then the first request of a second client waits until a slot is free, and its later
    requests find the reserve. Any client that holds few slots may use the reserve. It is refilled
    first, because clients that hold many slots get no slot before the reserve is free again.
    """

    slots: int
    reserved: int  # kept free for clients that hold few slots
    probes: int  # probes that may run at a time, one for each client

    def is_light(self, held: int, more: int) -> bool:
        """Say whether a client that holds `held` slots may take `more` slots from the reserve.

        The reserve is slots kept free for clients that hold few slots or none.
        """
        return held == 0 or held + more <= self.reserved


def divide_slots(slots: int, reserved: int | None = None) -> SlotShares:
    """Decide how many of the engine's slots are reserved for clients that hold few.

    `reserved` None: an eighth, or none if there are few slots. The result also says how many probes
    (work that reads tokens and generates none) may run at a time. Raises ConfigError unless at
    least one slot is not reserved.
    """
    if reserved is None:
        reserved = max(1, slots // 8) if slots >= FEWEST_DIVIDED else 0
    if reserved >= slots:
        raise ConfigError(
            f"reserved_slots is {reserved} and the engine has {slots} slots; expected fewer "
            f"reserved slots than slots (lower --reserved-slots or raise --slots)"
        )
    return SlotShares(slots, reserved, probes=min(MOST_PROBES, max(1, slots // 2)))
