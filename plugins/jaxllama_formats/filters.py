"""The filters a template may use, and what they pay.

Made by the sandbox for every rendering. Knows values and the meter, not templates.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2.filters import FILTERS

from jaxllama.errors import TemplateError
from jaxllama_formats.meter import MAX_BITS, Meter

MAX_INDENT = 64
MAX_SPLIT = 2 << 20  # characters; the parts of a split take much more room than the text

# Filters that look at the outside of a value only, or hand its items on one by one.
CHEAP_FILTERS = (
    "count d default first items last length map reject rejectattr reverse select selectattr"
)
# Filters that read all of a value and make about as much.
WEIGHED_FILTERS = (
    "abs capitalize dictsort float int lower max min sort string title trim unique upper"
)

# Names that only `Metering` can write into a template.
JOIN, LOOP, WEIGH, MADE = "~join", "~loop", "~weigh", "~made"


class Filters:
    """The filters that need care of their own, charging one meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def by_name(self) -> dict[str, Callable[..., Any]]:
        """All filters, under the names templates use and those of the sandbox."""
        meter = self.meter
        return {
            **{name: FILTERS[name] for name in CHEAP_FILTERS.split()},
            **{name: weighing(meter, FILTERS[name]) for name in WEIGHED_FILTERS.split()},
            "join": self.join,
            "replace": self.replace,
            "indent": self.indent,
            "tojson": self.to_json,
            "list": meter.take,
            "safe": self.weigh,
            "e": self.escape,
            "escape": self.escape,
            JOIN: self.join,
            LOOP: meter.take,
            WEIGH: self.weigh,
            MADE: meter.made,
        }

    def join(self, value: Iterable[Any], between: str = "") -> str:
        """The items as text, with `between` between them."""
        items = self.meter.take(value)
        self.meter.fits(self.meter.weigh(items) + len(items) * sys.getsizeof(between))
        return self.meter.made(str(between).join(map(str, items)))

    def replace(self, value: Any, old: str, new: str, count: int = -1) -> str:
        """The text with `old` replaced."""
        text = self.print(value)
        check_text_call(self.meter, text, "replace", (old, new))
        return self.meter.made(text.replace(old, new, count))

    def indent(
        self, value: Any, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        """The text with its lines moved to the right."""
        text = self.print(value)
        step = width if isinstance(width, str) else " " * min(width, MAX_INDENT + 1)
        if len(step) > MAX_INDENT:
            raise TemplateError(f"the chat template indents by more than {MAX_INDENT} characters")
        self.meter.fits((text.count("\n") + 1) * len(step))
        return self.meter.made(FILTERS["indent"](text, step, first, blank))

    def to_json(self, value: Any, **options: Any) -> str:
        """JSON, spelled as the models were trained on: not escaped for HTML."""
        self.meter.weigh(value)
        if len(str(options.get("indent") or "")) > 1:  # a number of one digit, or one character
            raise TemplateError(f"the chat template indents JSON by {options['indent']!r:.20}")
        encoder = json.JSONEncoder(**{"ensure_ascii": False} | options)
        return "".join([self.meter.made(part) for part in encoder.iterencode(value)])

    def escape(self, value: Any) -> str:
        """HTML escapes, as plain text."""
        return self.meter.made(str(FILTERS["escape"](self.print(value))))

    def print(self, value: Any) -> str:
        """The value as text; a container is measured before it is spelled out."""
        if not isinstance(value, str):
            self.meter.fits(self.meter.weigh(value))
        return str(value)

    def weigh(self, value: Any) -> Any:
        """The value itself, paid for item by item."""
        self.meter.weigh(value)
        return value


def weighing(meter: Meter, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, paying for what goes in and what comes out."""

    @functools.wraps(work)  # carries Jinja's mark for what it wants as first argument
    def charged(*args: Any, **kwargs: Any) -> Any:
        whole = [meter.take(arg) if isinstance(arg, Iterator) else arg for arg in args]
        meter.fits(meter.weigh(*whole, *kwargs.values()))
        return meter.made(work(*whole, **kwargs))

    return charged


def check_text_call(meter: Meter, text: str, method: str, args: tuple[Any, ...]) -> None:
    """Refuse methods of strings whose result cannot be paid for."""
    if method in ("split", "rsplit", "splitlines") and len(text) > MAX_SPLIT:
        raise TemplateError(
            f"the chat template splits a text of {len(text)} characters; expected at most "
            f"{MAX_SPLIT}"
        )
    if method == "join" and args:
        items = meter.take(args[0])
        meter.fits(meter.weigh(items) + len(items) * sys.getsizeof(text))
    if method == "replace" and len(args) > 1:
        old, new = str(args[0]), str(args[1])
        times = text.count(old)
        meter.fits(sys.getsizeof(text) + times * sys.getsizeof(new))


def check_product(meter: Meter, left: Any, right: Any) -> None:
    """Refuse products that are too long or too large."""
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_BITS:
            raise TemplateError(f"the chat template makes a number of more than {MAX_BITS} bits")
        return
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(times, int):
            meter.fits(sys.getsizeof(sequence) * max(times, 0))
