"""Bounds: load limits and timeouts of a service, set by the operator.

Read by the service and its parts; the command line makes an option of each.
"""

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from jaxllama.errors import ConfigError

T = TypeVar("T")


def setting(default: T, help_: str) -> T:
    """Make a dataclass field with a default and a help text."""
    return field(default=default, metadata={"help": help_})


def check_positive(settings: Any, *, may_be_zero: tuple[str, ...] = ()) -> None:
    """Raise ConfigError if a number in the fields of `settings` is negative or 0.

    `may_be_zero` are the names of fields that may be 0.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value < 0 or (value == 0 and each.name not in may_be_zero):
            raise ConfigError(f"{each.name} is {value}; expected more than 0")


@dataclass(frozen=True)
class Bounds:
    """Load limits and timeouts of one service; durations in seconds."""

    queue_requests: int = setting(512, "let at most this many answers wait; refuse more with 429")
    queue_tokens: int = setting(1_000_000, "let at most this many prompt tokens wait; refuse more")
    reserved_slots: int | None = setting(
        None,
        "keep this many slots free for clients that hold few, while several clients use the "
        "server; 0 keeps none [default: an eighth of the slots]",
    )
    request_tokens: int = setting(
        262_144, "allow one request this many tokens, all answers; in a batch, one query"
    )
    request_seconds: float | None = setting(None, "end a request after this many seconds")
    render_seconds: float = setting(2.0, "end a chat template after this many seconds")
    behind_events: int = setting(256, "drop a client that is this many tokens behind ...")
    behind_seconds: float = setting(10.0, "... for this many seconds")
    patience_seconds: float = setting(
        10.0, "count a busy engine as stalled after this time, or 5 times its longest step"
    )

    def __post_init__(self) -> None:
        check_positive(self, may_be_zero=("reserved_slots",))
