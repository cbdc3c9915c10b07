"""Parts of the page's figures as shapes of SVG: axes, lines and labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from ftn_jax.report.tables import number, stat

LETTER = 6.4  # mean width of a character of a label, in CSS pixels
_LONGEST = 18  # characters of a label


class Shape(NamedTuple):
    """An element of SVG: `tip` is what it tells under the pointer, `text` is its content."""

    tag: str
    attributes: dict[str, Any]
    text: str = ""
    tip: str = ""


@dataclasses.dataclass(frozen=True)
class Chart:
    """One drawing of `width` x `height` CSS pixels, with a title above it; charts of one `row` stand together."""

    title: str
    width: float
    height: float
    shapes: tuple[Shape, ...]
    row: str = ""


class Line(NamedTuple):
    """A line through `values` [E, n] at the tasks `x` [n]: their mean, and a band of one std."""

    name: str
    colour: str
    x: np.ndarray
    values: np.ndarray


def limits(lines: Iterable[Line]) -> tuple[float, float]:
    """The least and the greatest number within one std of a line, with some room if they are the same."""
    bands = [line.values.mean(0) + sign * _std(line) for line in lines for sign in (-1, 1)]
    ends = np.concatenate([np.zeros(0), *bands])
    ends = ends[np.isfinite(ends)]
    low, high = (float(ends.min()), float(ends.max())) if ends.size else (0.0, 1.0)
    room = 0.1 * max(1.0, abs(high)) if high - low <= 1e-9 * max(1.0, abs(high)) else 0.0
    return low - room, high + room


def line_chart(title: str, names: Sequence[str], lines: Sequence[Line], y: tuple[float, float]) -> Chart:
    """A chart over the tasks of the stream, whose points tell their numbers; ``y`` is the vertical axis's range."""
    axes = Axes(max(300.0, 46.0 * len(names) + 60), 180, (-0.3, len(names) - 0.7), y)
    shapes = [*axes.grid()]
    shapes += [slanted(name, axes.x(i) + 4, axes.bottom + 14) for i, name in enumerate(names)]
    points = []
    for line in lines:
        mean = line.values.mean(0)
        if len(line.values) > 1:
            shapes += [Shape("path", {"class": "band", "fill": line.colour, "d": axes.band(line.x, mean, _std(line))})]
        shapes += [Shape("path", {"class": "line", "stroke": line.colour, "d": axes.path(line.x, mean)})]
        for i, value, values in zip(line.x, mean, line.values.T, strict=True):
            if np.isfinite(value):
                told = f"{line.name}\n{number(stat(values))}\nafter training {names[i]}"
                at = {"cx": f"{axes.x(i):.1f}", "cy": f"{axes.y(value):.1f}", "r": 4, "fill": line.colour}
                points.append(Shape("circle", {"class": "point", **at}, tip=told))
    return Chart(title, axes.width, axes.bottom + 14 + slanted_height(names), (*shapes, *points))


def _std(line: Line) -> np.ndarray:
    """Over seeds, [n]; 0 for one seed."""
    return line.values.std(0, ddof=1) if len(line.values) > 1 else np.zeros(len(line.x))


class Axes:
    """From numbers to places in a chart of `width` CSS pixels.

    Attributes:
        top: where the plot begins, as `bottom`, where it ends, and `left`.
    """

    def __init__(self, width: float, height: float, x: tuple[float, float], y: tuple[float, float], log: bool = False):
        """Axes of a plot of ``height`` CSS pixels; ``x`` and ``y`` are the least and the greatest number on each."""
        self.width, self.top, self.bottom, self.left, self._log = width, 8, 8 + height, 48, log
        self._x, self._y = x, (np.log10(y[0]), np.log10(y[1])) if log else y
        ticks = np.asarray((LogLocator(subs=(1, 2, 5)) if log else MaxNLocator(4)).tick_values(*y))
        if log and ((ticks >= y[0]) & (ticks <= y[1])).sum() < 2:
            ticks = MaxNLocator(4).tick_values(*y)
        self._ticks = [float(tick) for tick in ticks if y[0] <= tick <= y[1]]

    def x(self, value: float) -> float:
        """The place of a number on the horizontal axis."""
        low, high = self._x
        return self.left + (value - low) / (high - low) * (self.width - self.left - 10)

    def y(self, value: float) -> float:
        """The place of a number on the vertical axis."""
        low, high = self._y
        place = np.log10(value) if self._log else value
        return self.bottom - (place - low) / (high - low) * (self.bottom - self.top)

    def grid(self) -> Iterator[Shape]:
        """Horizontal lines with their numbers."""
        for tick in self._ticks:
            y = f"{self.y(tick):.1f}"
            yield Shape("line", {"class": "grid", "x1": self.left, "x2": self.width - 10, "y1": y, "y2": y})
            yield label(f"{tick:.4g}", self.left - 6, self.y(tick) + 4, anchor="end")

    def path(self, x: np.ndarray, y: np.ndarray) -> str:
        """A line through the points (``x``, ``y``), both [n], that have a place, with gaps at the others."""
        parts, pen = [], "M"
        for one, value in zip(x, y, strict=True):
            placed = np.isfinite(value) and (value > 0 or not self._log)
            parts += [f"{pen}{self.x(one):.1f} {self.y(value):.1f}"] if placed else []
            pen = "L" if placed else "M"
        return "".join(parts)

    def band(self, x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> str:
        """The area within ``std`` of ``mean``, both [n] as ``x``."""
        known = np.isfinite(mean + std)
        x, low, high = x[known], (mean - std)[known], (mean + std)[known]
        return f"{self.path(np.append(x, x[::-1]), np.append(low, high[::-1]))}Z" if x.size else ""


def label_width(names: Sequence[str]) -> float:
    """Room for the longest of the labels, in CSS pixels."""
    return 16 + LETTER * min(max(map(len, names)), _LONGEST)


def slanted_height(names: Sequence[str]) -> float:
    """Room below the place of the labels if they are slanted, in CSS pixels."""
    return 0.66 * label_width(names)


def label(text: str, x: float, y: float, *, anchor: str, longest: float = _LONGEST) -> Shape:
    """A label of at most ``longest`` characters whose ``anchor`` (start, middle or end) is at (x, y)."""
    shown = text if len(text) <= longest else f"{text[: int(longest) - 1]}…"
    return Shape("text", {"class": "label", "x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}, shown)


def slanted(text: str, x: float, y: float) -> Shape:
    """A label that rises to its end at (x, y)."""
    shape = label(text, x, y, anchor="end")
    return shape._replace(attributes=shape.attributes | {"transform": f"rotate(-40 {x:.1f} {y:.1f})"})


def is_dark(colour: str) -> bool:
    """Whether white is easier to read than black on a colour, #rrggbb."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 128
