"""The paper's figures as matplotlib Figures, drawn from the contents of `results.json`."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ftn_jax.core import metrics
from ftn_jax.report import series
from ftn_jax.report.tables import method_name

_MARKERS = "osD^vP*X"


def matrices(results: dict) -> Figure | None:
    """Figure 2: R[i, j] under reconfig, mean over seeds, one heat map per method on a common colour scale.

    Dark is worse. Tasks not trained yet (j > i) show their number without a colour and do not affect the scale.
    None if no method has the protocol.
    """
    blocks, names = series.matrices(results), results["task_names"]
    if not blocks:
        return None
    lower = np.tril(np.ones((len(names), len(names)), bool))
    means = {name: values.mean(0) for name, values in blocks.items()}
    trained = np.concatenate([mean[lower] for mean in means.values()])
    scale = Normalize(np.nanmin(trained), np.nanmax(trained))
    shades = colormaps["cividis_r" if metrics.METRICS[results["metric"]].lower_is_better else "cividis"]

    figure, axes = _panels(len(means), width=1.6 + 0.62 * len(names), height=1.3 + 0.45 * len(names))
    for axis, (name, mean) in zip(axes, means.items(), strict=True):
        image = axis.imshow(np.where(lower, mean, np.nan), cmap=shades, norm=scale, aspect="auto")
        for (i, j), value in np.ndenumerate(mean):
            dark = lower[i, j] and np.dot(shades(scale(value))[:3], (0.299, 0.587, 0.114)) < 0.5
            colour = "white" if dark else "black" if lower[i, j] else "0.6"
            if np.isfinite(value):
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=colour)
        axis.set_title(method_name(name))
        axis.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.supxlabel("evaluated on task")
    figure.supylabel("after training through task")
    figure.colorbar(image, ax=list(axes), label=series.metric_label(results), shrink=0.8)
    return figure


def forgetting(results: dict) -> Figure | None:
    """Figure 3: each task's metric from its own training on, reconfig; one panel per method; the band is one std.

    None if no method has the protocol.
    """
    blocks, names = series.matrices(results), results["task_names"]
    if not blocks:
        return None
    figure, axes = _panels(len(blocks), width=1.2 + 0.62 * len(names), height=3.0)
    positions = np.arange(len(names))
    for axis, (name, values) in zip(axes, blocks.items(), strict=True):
        for j, colour in enumerate(series.colours(len(names))):
            _line(
                axis, positions[j:], values[:, j:, j], color=colour, marker=_MARKERS[j % len(_MARKERS)], label=names[j]
            )
        axis.set_title(method_name(name))
        axis.set_xticks(positions, names, rotation=35, ha="right", rotation_mode="anchor")
    figure.supxlabel("after training through task")
    figure.supylabel(series.metric_label(results))
    figure.legend(*axes[0].get_legend_handles_labels(), title="task", loc="outside right upper", frameon=False)
    return figure


def stream(results: dict) -> Figure | None:
    """After each task: the mean metric over the tasks so far, and forgetting (`metrics.fm_rise`); a line per method.

    Reconfig, mean over seeds; the band is one std. None for a single task, or if no method has the protocol.
    """
    found, counts = series.along_the_stream(results), np.arange(1, len(results["task_names"]) + 1)
    if not found or len(counts) == 1:
        return None
    figure = _figure(10.5, 3.6)
    axes = figure.subplots(1, 2)
    for (name, pair), colour, marker in zip(found.items(), series.colours(len(found)), _MARKERS * 9, strict=False):
        for axis, values, x in zip(axes, pair, (counts, counts[1:]), strict=True):
            _line(axis, x, values, color=colour, marker=marker, label=method_name(name))
    for axis, label in zip(axes, (f"{series.metric_label(results)}, mean", "forgetting, mean"), strict=True):
        axis.set_xlabel("tasks so far")
        axis.set_ylabel(label)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def masks(results: dict) -> Figure | None:
    """Figure 4 (Figure 1 in classification): training-time masks on the grid, a row per method, a tile per seed.

    One colour per task; masks are summed and clipped per channel; black is a component that no task uses.
    None if no method has both a grid and a sparse mask.
    """
    rows = series.mask_tiles(results)
    return _mask_tiles(results, rows) if rows else None


def wandering(results: dict) -> Figure | None:
    """The mask of each task's block at several steps, for the first seed: a row per method, a tile per step.

    None if no method's masks move.
    """
    rows = series.wandering_tiles(results)
    return _mask_tiles(results, rows) if rows else None


def learning(results: dict, losses: series.Losses) -> Figure | None:
    """Training loss through the stream, mean over seeds, smoothed within a task; boundaries are marked.

    Args:
        results: names of methods and tasks; methods without losses are not drawn.
        losses: `losses[method, task][step]`, one value per seed. Every task is drawn equally wide.

    Returns:
        The figure, or None if no method has losses.
    """
    names, curves = results["task_names"], series.learning_curves(results, losses)
    if not curves:
        return None
    figure = _figure(max(8.0, 1.5 * len(names)) + 1.6, 4.0)
    axis = figure.subplots()
    for (name, tasks), colour in zip(curves.items(), series.colours(len(curves)), strict=True):
        x, y = [], []
        for position, curve in enumerate(tasks):
            if not curve:
                continue
            # A gap after each task keeps the line from joining the end of one task to the start of the next.
            x += [*(position + np.arange(len(curve)) / len(curve)), np.nan]
            y += [*series.smooth(np.array([*curve.values()])), np.nan]
        axis.plot(x, y, color=colour, linewidth=1.5, label=method_name(name))
    for boundary in range(1, len(names)):
        axis.axvline(boundary, color="0.75", linewidth=1, linestyle="--", zorder=0)
    axis.set_xticks(np.arange(len(names)) + 0.5, names)
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(0, len(names))
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("task in training (each drawn equally wide)")
    axis.set_ylabel("training loss")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _line(axis: Axes, x: np.ndarray, values: np.ndarray, *, color: str, marker: str, label: str) -> None:
    """Draws the mean of ``values`` [E, len(x)], and a band of one std if there are several seeds."""
    mean = values.mean(0)
    axis.plot(x, mean, color=color, marker=marker, markersize=4.5, label=label)
    if len(values) > 1:
        std = values.std(0, ddof=1)
        axis.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
    axis.grid(axis="y", color="0.9")
    axis.spines[["top", "right"]].set_visible(False)


def _mask_tiles(results: dict, rows: series.Tiles) -> Figure:
    """A row of tiles for each method, a tile for each (label, active indices of each task), one colour a task."""
    names = results["task_names"]
    colours = np.array([to_rgb(colour) for colour in series.colours(len(names))])
    count = max(map(len, rows.values()))
    figure = _figure(max(1.35 * count, 2.0) + 1.9, 1.5 * len(rows) + 0.6)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (name, tiles) in zip(axes, rows.items(), strict=True):
        side = results["methods"][name]["grid"]
        row[0].set_ylabel(method_name(name).replace(", ", "\n"), fontsize=11)
        for axis, (label, masks) in zip(row, tiles, strict=True):
            tile = np.zeros((side * side, 3))
            for colour, active in zip(colours, masks, strict=True):
                tile[active] += colour
            axis.imshow(tile.clip(0, 1).reshape(side, side, 3), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(label, fontsize=9)
    patches = [Patch(color=colour, label=name) for name, colour in zip(names, series.colours(len(names)), strict=True)]
    figure.legend(handles=patches, title="task", loc="outside right upper", frameon=False)
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _panels(count: int, *, width: float, height: float) -> tuple[Figure, list]:
    """A figure of `count` panels of `width` x `height` inches with shared axes, two to four in a row."""
    columns = min(count, 2 if count <= 4 else 4)
    lines = math.ceil(count / columns)
    figure = _figure(width * columns + 1.6, height * lines + 0.4)
    axes = list(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis in axes[count - columns : count]:
        axis.tick_params(labelbottom=True)
    return figure, axes[:count]
