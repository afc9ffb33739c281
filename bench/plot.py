"""Plots as SVG: bars and lines, as the report and the page of figures need them.

The same figures give the same bytes on every machine. Knows numbers and labels, not records.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LINE = 760, 20  # pixels
COLOURS = ("#2a6f97", "#c9a227", "#6a994e", "#a44a3f", "#7b5ea7", "#5c6770")
INK, GRID, PAPER = "#222222", "#dddddd", "#ffffff"
CHARACTER = 6.3  # pixels of one character, about
TICKS = 5  # at least so many steps of an axis, about


@dataclass(frozen=True)
class PlotLine:
    """One line of a plot: its name and a value for each place on the axis; None: no value there."""

    name: str
    values: Sequence[float | None]


def bars(
    title: str, labels: Sequence[str], values: Sequence[float], *, mark: float | None = None
) -> str:
    """Draw a bar for each label, on a logarithmic axis; `mark` is a line across all bars."""
    left = min(430, 16 + CHARACTER * max(map(len, labels)))
    top, room = 34, WIDTH - left - 70
    shown = [*values, *([] if mark is None else [mark])]
    low, high = min(shown) / 1.3, max(shown)
    scale = room / math.log(high / low) if high > low else 0.0

    def at(value: float) -> float:
        return left + scale * math.log(value / low)

    drawn = [text(8, 18, title, weight="bold")]
    for row, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = top + row * LINE
        drawn.append(text(left - 6, y + 13, shortened(label, left), anchor="end"))
        width = max(1.0, at(value) - left)
        drawn.append(f'<rect x="{left:.1f}" y="{y + 3}" width="{width:.1f}" height="13" ')
        drawn[-1] += f'fill="{COLOURS[0]}"/>'
        drawn.append(text(left + width + 4, y + 13, f"{figure(value)}x"))
    height = top + len(values) * LINE + 10
    if mark is not None:
        drawn.append(line(at(mark), top, at(mark), height - 8, COLOURS[1]))
    return picture(drawn, height)


def lines(
    title: str, unit: str, places: Sequence[str], curves: Sequence[PlotLine], *, height: int = 280
) -> str:
    """Draw lines over places that are named on the axis, in their order; the lowest value is 0."""
    left, right, top, bottom = 62.0, WIDTH - 16.0, 44.0, height - 34.0
    ends = [value for curve in curves for value in curve.values if value is not None]
    high, step = ceiling(max(ends, default=1.0))

    def x(place: int) -> float:
        return left + (right - left) * (place + 0.5) / len(places)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / high

    drawn = [text(8, 18, title, weight="bold"), text(8, 36, unit)]
    for tick in range(round(high / step) + 1):
        drawn.append(line(left, y(tick * step), right, y(tick * step), GRID))
        drawn.append(text(left - 6, y(tick * step) + 4, figure(tick * step), anchor="end"))
    every = math.ceil(len(places) * CHARACTER * max(map(len, places)) / (right - left) * 1.2)
    for place, name in enumerate(places):
        if place % max(1, every) == 0:
            drawn.append(text(x(place), bottom + 18, name, anchor="middle"))
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        points = [
            (x(place), y(value)) for place, value in enumerate(curve.values) if value is not None
        ]
        path = " ".join(f"{one:.1f},{other:.1f}" for one, other in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
    for row, curve in enumerate(curves):
        colour, at = COLOURS[row % len(COLOURS)], height + row * LINE
        drawn.append(text(left, at, shortened(curve.name, right - left), colour=colour))
    return picture(drawn, height + len(curves) * LINE)


def ceiling(most: float) -> tuple[float, float]:
    """Return the end of an axis that shows `most`, and its step: 1, 2 or 5 times a power of ten."""
    rough = (most or 1.0) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough)
    return math.ceil(most / step - 1e-9) * step or step, step


def figure(value: float) -> str:
    """Format a number with three significant digits, with commas between thousands."""
    return f"{float(f'{value:.3g}'):,g}"


def shortened(label: str, width: float) -> str:
    """Cut a label to the characters that fit into `width` pixels."""
    most = int((width - 16) / CHARACTER)
    return label if len(label) <= most else f"{label[: most - 1]}…"


def text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    weight: str = "normal",
    colour: str = INK,
) -> str:
    """Return a text element."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}">{escape(words)}</text>'
    )


def line(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    """Return a straight line."""
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" '
        f'stroke="{colour}" stroke-width="1"/>'
    )


def picture(drawn: Sequence[str], height: float) -> str:
    """Return a whole SVG file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )
