"""The log: one line per event, as text or JSON.

Set up by the command that serves. A record may have `facts`, a flat dictionary: they become fields
of the JSON line, or name=value after the message. Values are escaped, so no client can forge lines.
"""

import json
import logging
import sys
import time
from typing import Any


class LineFormatter(logging.Formatter):
    """Formats records as text, with facts after the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line, followed by its stack trace if it has one."""
        facts = getattr(record, "facts", {})
        shown = [
            f"{name}={format_value(value)}" for name, value in facts.items() if value is not None
        ]
        line = f"{format_time(record)} {record.levelname.lower()} {record.getMessage()}"
        return " ".join([printable(line), *shown]) + self.trace(record)

    def trace(self, record: logging.LogRecord) -> str:
        """Return a line break and the stack trace of a record, or "" if the record has none."""
        return "\n" + self.formatException(record.exc_info) if record.exc_info else ""


class JsonLines(LineFormatter):
    """Formats records as JSON objects."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as a JSON object on one line, with its stack trace as a field."""
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
    """Return the time of a record, in UTC with milliseconds."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03}Z"


def format_value(value: object) -> str:
    """Format a value unambiguously: as JSON, unless it is a plain word."""
    if isinstance(value, str) and value.isprintable() and value and not set(value) & set(' ="'):
        return value
    return json.dumps(value, default=str)


def printable(line: str) -> str:
    """Return a line with unprintable characters, such as line breaks, escaped."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)


def set_up(*, as_json: bool) -> None:
    """Write log records from level INFO up to standard error, as text or (`as_json`) as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # JAX logs every kind of device that is missing; for a requested device it raises anyway.
    logging.getLogger("jax").setLevel(logging.WARNING)
