"""Durations and sizes as people write them: "5m", "1h30m", "16GB"."""

import re

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
DURATION = re.compile(rf"-?(?:{PART.pattern})+|-?\d+(?:\.\d+)?")

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kMGT])(i?)B?|B)?")
POWERS = {"k": 1, "M": 2, "G": 3, "T": 4}


def seconds_in(text: str) -> float | None:
    """Return the seconds of a text such as "5m", "1h30m" or "90"; None if it is no duration.

    >>> seconds_in("1h30m"), seconds_in("-1"), seconds_in("soon")
    (5400.0, -1.0, None)
    """
    if not DURATION.fullmatch(text):
        return None
    sign = -1.0 if text.startswith("-") else 1.0
    parts = PART.findall(text)
    if not parts:
        return float(text)
    return sign * sum(float(number) * UNITS[unit] for number, unit in parts)


def bytes_in(text: str) -> int | None:
    """Return the bytes of a text such as "16GB" (decimal) or "16GiB" (binary), else None.

    >>> bytes_in("1.5 GB"), bytes_in("1GiB"), bytes_in("much")
    (1500000000, 1073741824, None)
    """
    found = SIZE.fullmatch(text.strip())
    if found is None:
        return None
    number, unit, is_binary = found.groups()
    base = 1024 if is_binary else 1000
    return int(float(number) * base ** POWERS.get(unit or "", 0))
