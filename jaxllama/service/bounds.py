"""Bounds: how much a service takes on; the operator's to set.

Read by the service and what belongs to it; the command line makes an option of each.
"""

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from jaxllama.errors import ConfigError

T = TypeVar("T")


def setting(default: T, help_: str) -> T:
    """A setting with its explanation, as a field of a dataclass."""
    return field(default=default, metadata={"help": help_})


def check_positive(settings: Any, *, may_be_zero: tuple[str, ...] = ()) -> None:
    """Refuse settings whose numbers make no sense."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value < 0 or (value == 0 and each.name not in may_be_zero):
            raise ConfigError(f"{each.name} is {value}; expected more than 0")


@dataclass(frozen=True)
class Bounds:
    """Of one service; durations in seconds."""

    queue_requests: int = setting(512, "answers that may wait; beyond, clients are told to retry")
    queue_tokens: int = setting(1_000_000, "prompt tokens that may wait")
    reserved_slots: int | None = setting(
        None,
        "slots kept free for clients that hold few, while several clients use the server; 0 keeps "
        "none [default: an eighth of the slots]",
    )
    request_tokens: int = setting(262_144, "prompt and answer tokens of one request, all choices")
    request_seconds: float | None = setting(None, "most seconds a request may take")
    render_seconds: float = setting(2.0, "most seconds a chat template may take")
    behind_events: int = setting(256, "tokens a client may be behind with reading ...")
    behind_seconds: float = setting(10.0, "... for so long, before it is dropped")
    patience_seconds: float = setting(
        10.0, "a busy engine that makes no step for so long, or 5 times its longest, is stalled"
    )

    def __post_init__(self) -> None:
        check_positive(self, may_be_zero=("reserved_slots",))
