"""The page's figures, drawn as SVG from the numbers of `results.json`; each cell tells its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex

from ftn_jax.core import metrics
from ftn_jax.core.metrics import PROTOCOLS
from ftn_jax.report import series
from ftn_jax.report.shapes import (
    LETTER,
    Axes,
    Chart,
    Line,
    Shape,
    is_dark,
    label,
    label_width,
    limits,
    line_chart,
    slanted,
    slanted_height,
)
from ftn_jax.report.tables import method_name, number, stat

_NUMBERED = 12  # tasks up to which a matrix's cells show their numbers without being pointed at
_STRIPS = 480  # places of a learning curve that tell their numbers


@dataclasses.dataclass(frozen=True)
class Figure:
    """Several charts under one heading; `legend` has names and their colours."""

    name: str
    title: str
    caption: str
    charts: tuple[Chart, ...]
    legend: tuple[tuple[str, str], ...] = ()

    @property
    def rows(self) -> list[list[Chart]]:
        """The charts, those of each row together; all together if no row has several."""
        rows = [[*row] for _, row in groupby(self.charts, key=lambda chart: chart.row)]
        return rows if any(len(row) > 1 for row in rows) else [[*self.charts]]


def all_figures(results: dict, losses: series.Losses) -> list[Figure]:
    """Every figure that `results` (docs/house.md) and `losses` (`series.Losses`) can fill, in the page's order."""
    figures = matrices(results), stream(results), forgetting(results), masks(results), wandering(results)
    return [figure for figure in (*figures, reuse(results), learning(results, losses)) if figure.charts]


def matrices(results: dict) -> Figure:
    """R of each method and protocol, mean over seeds, as heat maps with one scale of colours."""
    names, metric = results["task_names"], metrics.METRICS[results["metric"]]
    trained = np.tril(np.ones((len(names), len(names)), bool))
    found = {protocol: series.matrices(results, protocol) for protocol in PROTOCOLS}
    kept = [(name, protocol) for name in results["methods"] for protocol in PROTOCOLS if name in found[protocol]]
    means = np.array([found[protocol][name].mean(0)[trained] for name, protocol in kept])
    scale = Normalize(np.nanmin(means), np.nanmax(means)) if np.isfinite(means).any() else Normalize(0, 1)
    shades = colormaps["cividis_r" if metric.lower_is_better else "cividis"]
    charts = []
    for name, protocol in kept:
        title, values = f"{method_name(name)}, {protocol}", found[protocol][name]
        cells = {}
        for (i, j), value in np.ndenumerate(values.mean(0)):
            if np.isfinite(value):
                told = f"{title}\n{metric.label} {number(stat(values[:, i, j]))}"
                told += f"\non {names[j]}, after training {names[i]}"
                told += "" if trained[i, j] else f"\n({names[j]} is not trained yet)"
                cells[i, j] = _Cell(value, to_hex(shades(scale(value))) if trained[i, j] else None, told)
        charts.append(_heat_map(title, names, cells, row=name))
    what = series.metric_label(results)
    caption = f"{what} on each column's task after training through each row's task, mean over seeds. Dark is worse. "
    return Figure("matrices", "Matrices R", f"{caption}Tasks not trained yet have no colour.", tuple(charts))


def stream(results: dict) -> Figure:
    """After each task, the mean metric over the tasks so far and what was forgotten: a line for each method."""
    found, names = series.along_the_stream(results), results["task_names"]
    legend = _legend([method_name(name) for name in found])
    charts = []
    for part, what in enumerate((series.metric_label(results), "forgetting")) if len(names) > 1 else ():
        lines = [
            Line(name, colour, np.arange(part, len(names)), pair[part])
            for (name, colour), pair in zip(legend, found.values(), strict=True)
        ]
        charts += [line_chart(f"{what}, mean", names, lines, limits(lines))] if lines else []
    caption = (
        "After each task: the mean of the metric over the tasks so far, and how far it has fallen from each task's "
        "best; reconfig, mean over seeds; the band is one std."
    )
    return Figure("stream", "Averages after each task", caption, tuple(charts), legend)


def forgetting(results: dict) -> Figure:
    """Each task's metric from its own training on, reconfig: a chart for each method, a line for each task."""
    names = results["task_names"]
    legend = _legend(names)
    found = {
        method_name(name): [
            Line(task, colour, np.arange(j, len(names)), values[:, j:, j]) for j, (task, colour) in enumerate(legend)
        ]
        for name, values in series.matrices(results).items()
        if len(names) > 1
    }
    span = limits(line for lines in found.values() for line in lines)
    charts = [line_chart(name, names, lines, span) for name, lines in found.items()]
    caption = (
        f"{series.metric_label(results)} on each task from its own training to the end of the stream; reconfig, mean "
        "over seeds; the band is one std."
    )
    return Figure("forgetting", "Task by task", caption, tuple(charts), legend)


def masks(results: dict) -> Figure:
    """Training-time masks on the grid of components, a chart for each method and seed."""
    caption = (
        "Training-time masks on the grid of components, one square per seed, one colour per task. A component of "
        "several tasks has a stripe of each colour."
    )
    return _mask_figure("masks", "Masks", caption, results, series.mask_tiles(results))


def wandering(results: dict) -> Figure:
    """The masks of the first seed at several steps of each task's block, a chart for each method and step."""
    caption = "The first seed's masks at steps of each task's block, one square per step, one colour per block."
    return _mask_figure("wandering", "Masks while they move", caption, results, series.wandering_tiles(results))


def reuse(results: dict) -> Figure:
    """Tasks in their order, and an arc from each to those that build on it: a chart for each method that reuses."""
    names = results["task_names"]
    charts = []
    for method, entry in series.reusing(results).items():
        counts, seeds = series.reuse_counts(entry), len(entry["reuses"])
        if not counts:
            continue
        left, step = label_width(names), max(54.0, 640 / len(names))
        highest = max(later - earlier for later, earlier in counts)
        base = 24 + 34 * highest**0.5
        shapes = []
        for (later, earlier), count in sorted(counts.items(), key=lambda pair: pair[0][1] - pair[0][0]):
            x0, x1, up = left + earlier * step, left + later * step, 34 * (later - earlier) ** 0.5
            arc = f"M{x0:.1f} {base:.1f}A{(x1 - x0) / 2:.1f} {up:.1f} 0 0 1 {x1:.1f} {base:.1f}"
            told = f"{names[later]} builds on {names[earlier]}" + (
                f"\nin {count} of {seeds} seeds" if seeds > 1 else ""
            )
            shapes += [
                Shape("path", {"class": "arc", "d": arc, "stroke-width": f"{1 + 2.5 * count / seeds:.1f}"}),
                Shape("path", {"class": "tip", "d": f"M{x1:.1f} {base - 5:.1f}l-4.5 -9h9z"}),
                Shape("path", {"class": "hit", "d": arc}, tip=told),
            ]
        for i, name in enumerate(names):
            own = np.array([len(seed[i]) for seed in entry["masks"]], float)
            every = np.array([len(seed[i]) for seed in entry["answering"]], float)
            told = f"{name}\n{number(stat(own))} components of its own\n{number(stat(every - own))} reused"
            x = left + i * step
            shapes += [Shape("circle", {"class": "node", "cx": f"{x:.1f}", "cy": f"{base:.1f}", "r": 5}, tip=told)]
            shapes += [slanted(name, x, base + 16)]
        size = left + (len(names) - 1) * step + 24, base + 16 + slanted_height(names)
        charts.append(Chart(method_name(method), *size, tuple(shapes)))
    caption = "Tasks in their order; an arc leads from a task to one that builds on it, wider if more seeds do."
    return Figure("reuse", "Reuse graph", caption, tuple(charts))


def learning(results: dict, losses: series.Losses) -> Figure:
    """Training loss through the stream, mean over seeds, on a logarithmic axis; every task is equally wide."""
    names, curves = results["task_names"], series.learning_curves(results, losses)
    legend = _legend([method_name(name) for name in curves])
    seen = [value for tasks in curves.values() for curve in tasks for value in curve.values()]
    seen = [value for value in seen if 0 < value < np.inf]
    charts = ()
    if seen:
        width = max(860.0, 110.0 * len(names))
        low, high = min(seen), max(seen)
        axes = Axes(width, 240, (0, len(names)), (low, high if high > low else 2 * low), log=True)
        shapes = [*axes.grid()]
        for i, name in enumerate(names):
            if i:
                at = f"{axes.x(i):.1f}"
                shapes.append(Shape("line", {"class": "edge", "x1": at, "x2": at, "y1": axes.top, "y2": axes.bottom}))
            shapes.append(
                label(name, axes.x(i + 0.5), axes.bottom + 18, anchor="middle", longest=width / len(names) / LETTER)
            )
        for (_, colour), tasks in zip(legend, curves.values(), strict=True):
            for i, curve in enumerate(tasks):
                smoothed = series.smooth(np.array([*curve.values()])) if curve else np.zeros(0)
                x = i + (np.arange(len(smoothed)) + 0.5) / max(len(smoothed), 1)
                every = max(1, len(smoothed) * len(names) // 2000)
                path = axes.path(x[::every], smoothed[::every])
                shapes.append(Shape("path", {"class": "line", "stroke": colour, "d": path}))
        for i, task in enumerate(names):
            own = {method_name(name): tasks[i] for name, tasks in curves.items()}
            shapes += _strips(axes, i, task, own, most=-(-_STRIPS // len(names)))
        charts = (Chart("Training loss", axes.width, axes.bottom + 28, tuple(shapes)),)
    caption = (
        "Training loss, mean over seeds; each task is drawn equally wide. Lines are lightly smoothed within a task; "
        "the numbers under the pointer are not."
    )
    return Figure("learning", "Learning curves", caption, charts, legend)


def _strips(axes: Axes, i: int, task: str, curves: dict[str, dict[int, float]], most: int) -> Iterator[Shape]:
    """At most ``most`` strips across the part of a task, each of which tells the losses of all methods at a step."""
    steps = sorted({step for curve in curves.values() for step in curve})
    every = max(1, -(-len(steps) // most))
    for first in range(0, len(steps), every):
        step, x = steps[first], axes.x(i + first / len(steps))
        told = [f"{name} {curve[step]:.4g}" for name, curve in curves.items() if step in curve]
        width = axes.x(i + min(first + every, len(steps)) / len(steps)) - x
        box = {"x": f"{x:.1f}", "y": axes.top, "width": f"{width:.1f}", "height": axes.bottom - axes.top}
        yield Shape("rect", {"class": "strip", **box}, tip="\n".join((f"{task}, step {step}", *told)))


class _Cell(NamedTuple):
    """A cell of a heat map: its number, its colour (None: no colour), and what it tells."""

    value: float
    colour: str | None
    tip: str


def _heat_map(title: str, names: Sequence[str], cells: dict[tuple[int, int], _Cell], row: str) -> Chart:
    numbered = len(names) <= _NUMBERED
    wide, high = (46, 26) if numbered else (15, 15)
    left, bottom = label_width(names), len(names) * high
    shapes = []
    for i, name in enumerate(names):
        shapes.append(label(name, left - 8, (i + 0.5) * high + 4, anchor="end"))
        shapes.append(slanted(name, left + (i + 0.6) * wide, bottom + 14))
    for (i, j), cell in cells.items():
        box = {"x": f"{left + j * wide + 0.5:.1f}", "y": i * high + 0.5, "width": wide - 1, "height": high - 1}
        box |= {"class": "cell" if cell.colour else "empty", "fill": cell.colour}
        shapes.append(Shape("rect", box, tip=cell.tip))
        if numbered:
            ink = "later" if cell.colour is None else "on-dark" if is_dark(cell.colour) else "on-light"
            at = {"class": ink, "x": f"{left + (j + 0.5) * wide:.1f}", "y": (i + 0.5) * high + 4}
            shown = f"{cell.value:.2f}" if abs(cell.value) < 1000 else f"{cell.value:.0e}"
            shapes.append(Shape("text", at | {"text-anchor": "middle"}, shown))
    return Chart(title, left + len(names) * wide + 4, bottom + 14 + slanted_height(names), tuple(shapes), row)


def _mask_figure(name: str, title: str, caption: str, results: dict, tiles: series.Tiles) -> Figure:
    legend = _legend(results["task_names"])
    charts = [
        _mask_chart(f"{method_name(method)}, {what}", results["methods"][method]["grid"], active, legend, row=method)
        for method, own in tiles.items()
        for what, active in own
    ]
    return Figure(name, title, caption, tuple(charts), legend)


def _mask_chart(title: str, side: int, active: list, legend: tuple[tuple[str, str], ...], row: str) -> Chart:
    cell = max(6.0, min(20.0, 160 / side))
    owners: dict[int, list[int]] = {}
    for task, components in enumerate(active):
        for component in components:
            owners.setdefault(int(component), []).append(task)
    free = side * side - len(owners)
    size = f"{cell * side:.1f}"
    told = f"{title}\n{free} of {side * side} components are in no mask"
    shapes = [Shape("rect", {"class": "tile", "x": 1, "y": 1, "width": size, "height": size}, tip=told)]
    for component, tasks in sorted(owners.items()):
        y, x = divmod(component, side)
        told = f"{title}\ncomponent {component} (row {y}, column {x})\n{', '.join(legend[t][0] for t in tasks)}"
        for stripe, task in enumerate(tasks):
            box = {"x": f"{1 + x * cell + stripe * cell / len(tasks):.2f}", "y": f"{1 + y * cell:.2f}"}
            box |= {
                "width": f"{cell * (1 - stripe / len(tasks)):.2f}",
                "height": f"{cell:.2f}",
                "fill": legend[task][1],
            }
            shapes.append(Shape("rect", {"class": "stripe" if stripe else "mask", **box}, tip="" if stripe else told))
    return Chart(title, cell * side + 2, cell * side + 2, tuple(shapes), row)


def _legend(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple(zip(names, series.colours(len(names)), strict=True))
