"""The log: one line per event, for people or for machines.

Set up by the command that serves. A record may bring `facts`, a flat dictionary: fields of the JSON
line, or name=value behind the message. Values are written so that no client can forge a line.
"""

import json
import logging
import sys
import time
from typing import Any


class Lines(logging.Formatter):
    """Text, with facts behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        facts = getattr(record, "facts", {})
        shown = [
            f"{name}={format_value(value)}" for name, value in facts.items() if value is not None
        ]
        line = f"{format_time(record)} {record.levelname.lower()} {record.getMessage()}"
        return " ".join([printable(line), *shown]) + self.trace(record)

    def trace(self, record: logging.LogRecord) -> str:
        """Where it happened, on lines of its own."""
        return "\n" + self.formatException(record.exc_info) if record.exc_info else ""


class JsonLines(Lines):
    """JSON objects."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever happened."""
        facts: dict[str, Any] = getattr(record, "facts", {})
        entry = {
            "time": format_time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **facts,
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def format_time(record: logging.LogRecord) -> str:
    """When it happened, in UTC."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03}Z"


def format_value(value: object) -> str:
    """A value that cannot be taken for anything else."""
    if isinstance(value, str) and value.isprintable() and value and not set(value) & set(' ="'):
        return value
    return json.dumps(value, default=str)


def printable(line: str) -> str:
    """Without line breaks and the like."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)


def set_up(*, as_json: bool) -> None:
    """Send everything from INFO up to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # JAX logs every kind of device that is not there; of one that was asked for it raises.
    logging.getLogger("jax").setLevel(logging.WARNING)
