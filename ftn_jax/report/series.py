"""The numbers that figures show, taken from the contents of `results.json`: one source for PNG files and the page."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from ftn_jax.core import metrics
from ftn_jax.report.tables import sparse_methods

Losses = Mapping[tuple[str, str], Mapping[int, list[float]]]  # [method, task][step] -> one value per seed
Tiles = dict[str, list[tuple[str, list]]]  # [method] -> a label and the active indices of each task, for each tile

# Okabe and Ito's colours, distinct with every kind of colour blindness.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#F0E442")
_SMOOTHING = 0.05  # window, as a share of a task's logged steps


def matrices(results: dict, protocol: str = "reconfig") -> dict[str, np.ndarray]:
    """R of each method that has the protocol, [E, N, N]; nan where a task was not scored."""
    methods = results["methods"].items()
    return {name: np.asarray(m[protocol]["matrix"], float) for name, m in methods if protocol in m}


def along_the_stream(results: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each method under reconfig, the mean metric over the tasks so far, [E, N], and forgetting, [E, N - 1].

    Forgetting is `metrics.fm_rise` after each task but the first.
    """
    counts = range(1, len(results["task_names"]) + 1)
    found = {}
    for name, values in matrices(results).items():
        so_far = [[matrix[:n, :n] for n in counts] for matrix in values]
        means = [[metrics.final(part) for part in parts] for parts in so_far]
        falls = [[metrics.fm_rise(part, results["metric"]) for part in parts[1:]] for parts in so_far]
        found[name] = np.array(means, float), np.array(falls, float)
    return found


def mask_tiles(results: dict) -> Tiles:
    """Training-time masks, a tile for each seed, of the methods that have both a grid and a sparse mask."""
    drawn = {name: method for name, method in sparse_methods(results).items() if method.get("grid")}
    seeds = [f"seed {seed}" for seed in results["seeds"]]
    return {name: [*zip(seeds, method["masks"], strict=True)] for name, method in drawn.items()}


def wandering_tiles(results: dict) -> Tiles:
    """The mask of each task's block at several steps, a tile for each step, for the first seed of moving masks."""
    tiles = {}
    for name, method in results["methods"].items():
        if method.get("wandering") and method.get("grid"):
            steps, path = method["wandering"]["steps"], method["wandering"]["path"]
            tiles[name] = [(f"step {step}", masks) for step, *masks in zip(steps, *path, strict=True)]
    return tiles


def learning_curves(results: dict, losses: Losses) -> dict[str, list[dict[int, float]]]:
    """For each method that has losses, each task's training loss by step, mean over seeds; empty for other tasks."""
    logged = [name for name in results["methods"] if any(method == name for method, _ in losses)]
    return {
        name: [
            {step: float(np.mean(seeds)) for step, seeds in sorted(losses.get((name, task), {}).items())}
            for task in results["task_names"]
        ]
        for name in logged
    }


def smooth(curve: np.ndarray) -> np.ndarray:
    """Centred running mean of `curve` [n]; at the ends, over the part of the window that exists."""
    window = np.ones(max(1, 2 * int(len(curve) * _SMOOTHING / 2) + 1))
    return np.convolve(curve, window, "same") / np.convolve(np.ones(len(curve)), window, "same")


def reusing(results: dict) -> dict[str, dict]:
    """The entries of the methods whose tasks can reuse the components of others."""
    return {name: entry for name, entry in results["methods"].items() if "reuses" in entry}


def reuse_counts(entry: dict) -> dict[tuple[int, int], int]:
    """For each pair (later, earlier) of tasks, in how many seeds the later one builds on the earlier; no zeros."""
    tasks = len(entry["reuses"][0])
    counts = {(i, j): sum(j in seed[i] for seed in entry["reuses"]) for i in range(tasks) for j in range(i)}
    return {pair: count for pair, count in counts.items() if count}


def metric_label(results: dict) -> str:
    """The metric and its unit, for an axis."""
    metric = metrics.METRICS[results["metric"]]
    return f"{metric.label} ({metric.unit})"


def colours(count: int) -> list[str]:
    """`count` colours as #rrggbb: Okabe and Ito's, or steps of viridis if these are too few."""
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    return [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 1, count))]
