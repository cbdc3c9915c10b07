"""Which tasks reuse the components of which: a table and a figure."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from ftn_jax.report.series import Losses, reuse_counts, reusing
from ftn_jax.report.tables import Table, method_name, number, stat

FIRST = 25  # steps whose loss says how fast a task begins to learn
RESERVE = ("lora_ftn_reserve", "ftn_reserve")  # methods that are the same without reuse


def reuse_table(results: dict, losses: Losses) -> Table:
    """For each method that reuses: what each task has of its own, what it reuses, and how it begins to learn."""
    names, rows, notes = results["task_names"], [], []
    beside = next((name for name in RESERVE if name in results["methods"]), None)
    for method, entry in reusing(results).items():
        own = np.array([[len(mask) for mask in seed] for seed in entry["masks"]])
        every = np.array([[len(mask) for mask in seed] for seed in entry["answering"]])
        for i, task in enumerate(names):
            begun = [_first(losses.get((name, task), {})) for name in (method, beside) if name]
            cells = number(stat(own[:, i])), number(stat((every - own)[:, i])), _parts(entry, i, names), *begun
            rows.append((method_name(method), task, *cells))
        building = np.mean([[bool(parts) for parts in seed] for seed in entry["reuses"]], axis=0).sum()
        notes.append(
            f"{method_name(method)}: {building:.1f} of {len(names)} tasks reuse others; own components in all "
            f"{own.sum(1).mean():.0f}, without reuse {len(names) * entry['k']}."
        )
    others = (f"{method_name(beside)}'s",) if beside else ()
    first = f"loss, first {FIRST} steps"
    columns = (
        "method",
        "task",
        "own",
        "reused",
        "builds on",
        first,
        *others,
    )
    note = " ".join(notes)
    return Table("Reuse of components", columns, tuple(rows), note, left=("method", "task", "builds on"))


def reuse_figure(results: dict) -> Figure | None:
    """Tasks in their order, and an arc from each to those that build on it; wider where more seeds do. None if none."""
    drawn = {name: entry for name, entry in reusing(results).items() if any(map(any, entry["reuses"]))}
    if not drawn:
        return None
    names = results["task_names"]
    figure = Figure(figsize=(max(6.0, 0.9 * len(names)), 2.6 * len(drawn)), layout="constrained", dpi=150)
    for axis, (name, entry) in zip(figure.subplots(len(drawn), squeeze=False)[:, 0], drawn.items(), strict=True):
        for (later, earlier), count in reuse_counts(entry).items():
            angle = np.linspace(0, np.pi, 60)
            middle, radius = (later + earlier) / 2, (later - earlier) / 2
            x, y = middle - radius * np.cos(angle), np.sqrt(radius) * np.sin(angle)
            axis.plot(x, y, color="tab:blue", linewidth=3 * count / len(entry["reuses"]), alpha=0.7)
            axis.annotate("", (x[-1], y[-1]), (x[-4], y[-4]), arrowprops={"arrowstyle": "->", "color": "tab:blue"})
        axis.plot(range(len(names)), np.zeros(len(names)), "o", color="0.2", markersize=5)
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_ylim(-0.15, None)
        axis.set_yticks([])
        axis.set_ylabel(method_name(name))
        axis.spines[["top", "right", "left", "bottom"]].set_visible(False)
    return figure


def _first(steps: Mapping[int, list[float]]) -> str:
    """The mean loss of a task's first steps."""
    early = [np.mean(steps[step]) for step in sorted(steps) if step <= FIRST]
    return f"{np.mean(early):.3f}" if early else ""


def _parts(entry: dict, task: int, names: list[str]) -> str:
    """The tasks that a task reuses directly, each with the number of seeds in which it does, if these differ."""
    seeds = len(entry["reuses"])
    return ", ".join(
        names[earlier] + (f" ({count} of {seeds})" if count < seeds else "")
        for (later, earlier), count in reuse_counts(entry).items()
        if later == task
    )
