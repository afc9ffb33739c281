"""The filters that a template may use; each charges its work to the meter.

The sandbox creates them for every rendering. They know values and the meter, not templates.
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
MAX_SPLIT = 2 << 20  # characters; the parts of a split take much more memory than the text

# Filters that do not read the items of a value, or yield them one by one.
CHEAP_FILTERS = (
    "count d default first items last length map reject rejectattr reverse select selectattr"
)
# Filters that read a whole value and return one of about the same size.
WEIGHED_FILTERS = (
    "abs capitalize dictsort float int lower max min sort string title trim unique upper"
)

# Filter names that no template can spell: `Metering` inserts them.
JOIN, LOOP, WEIGH, MADE = "~join", "~loop", "~weigh", "~made"


class Filters:
    """The filters of one rendering, all charging the same meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def by_name(self) -> dict[str, Callable[..., Any]]:
        """Return all filters by name, including the names that `Metering` inserts."""
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
        """Join the items as text, with the separator `between`."""
        items = self.meter.take(value)
        self.meter.fits(self.meter.weigh(items) + len(items) * sys.getsizeof(between))
        return self.meter.made(str(between).join(map(str, items)))

    def replace(self, value: Any, old: str, new: str, count: int = -1) -> str:
        """Replace `old` by `new` in the text, `count` times at most (-1: everywhere)."""
        text = self.print(value)
        check_text_call(self.meter, text, "replace", (old, new))
        return self.meter.made(text.replace(old, new, count))

    def indent(
        self, value: Any, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        """Indent the lines of a text by `width` spaces, or by `width` itself if it is a string.

        `first`: the first line, too; `blank`: blank lines, too. Raises TemplateError for an indent
        of more than MAX_INDENT characters.
        """
        text = self.print(value)
        step = width if isinstance(width, str) else " " * min(width, MAX_INDENT + 1)
        if len(step) > MAX_INDENT:
            raise TemplateError(f"the chat template indents by more than {MAX_INDENT} characters")
        self.meter.fits((text.count("\n") + 1) * len(step))
        return self.meter.made(FILTERS["indent"](text, step, first, blank))

    def to_json(self, value: Any, **options: Any) -> str:
        """Return a value as JSON without HTML escapes, the spelling that models were trained on."""
        self.meter.weigh(value)
        if len(str(options.get("indent") or "")) > 1:  # a number of one digit, or one character
            raise TemplateError(f"the chat template indents JSON by {options['indent']!r:.20}")
        encoder = json.JSONEncoder(**{"ensure_ascii": False} | options)
        return "".join([self.meter.made(part) for part in encoder.iterencode(value)])

    def escape(self, value: Any) -> str:
        """Escape a value for HTML and return plain text."""
        return self.meter.made(str(FILTERS["escape"](self.print(value))))

    def print(self, value: Any) -> str:
        """Convert a value to text; the size of a container is checked before it is printed."""
        if not isinstance(value, str):
            self.meter.fits(self.meter.weigh(value))
        return str(value)

    def weigh(self, value: Any) -> Any:
        """Charge the meter one step per item of the value and return the value unchanged."""
        self.meter.weigh(value)
        return value


def weighing(meter: Meter, work: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter or test `work`, wrapped so that `meter` counts its arguments and result.

    The meter limits the steps and the memory of a template.
    """

    @functools.wraps(work)  # keeps Jinja's attribute that selects the first argument
    def charged(*args: Any, **kwargs: Any) -> Any:
        whole = [meter.take(arg) if isinstance(arg, Iterator) else arg for arg in args]
        meter.fits(meter.weigh(*whole, *kwargs.values()))
        return meter.made(work(*whole, **kwargs))

    return charged


def check_text_call(meter: Meter, text: str, method: str, args: tuple[Any, ...]) -> None:
    """Raise TemplateError if calling a string method would take too much memory.

    `method` is the name of the method of `text`, `args` are its arguments; `meter` knows how many
    bytes are left.
    """
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
    """Raise TemplateError if `left * right` would be too long a sequence or too large a number.

    `meter` knows how many bytes are left.
    """
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_BITS:
            raise TemplateError(f"the chat template makes a number of more than {MAX_BITS} bits")
        return
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(times, int):
            meter.fits(sys.getsizeof(sequence) * max(times, 0))
