"""Collects the results of a sweep's finished members in one table and one figure."""

import csv
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from members import MERGED, Member, Sweep, finished, place_of

from ftn_jax.core import metrics
from ftn_jax.core.errors import InputError, writing
from ftn_jax.report import tables

_STYLES = {"stored": ":s", "reconfig": "-o"}  # line and marker in the figure
_GAP = {"mean": math.nan, "std": math.nan}  # in the figure's lines
_SUMMARIES = ("final", "fm", "fm_rise", "bwt", "fwt", "anytime")


class Failure(NamedTuple):
    """A member that did not finish: one line that says why, and the file with its output, if there is one."""

    member: Member
    reason: str
    log: pathlib.Path | None


class Row(NamedTuple):
    """One method and protocol at one place of the grid."""

    place: tuple[str, ...]  # see `place_of`
    method: str
    protocol: str
    seeds: int
    summary: dict[str, Any]  # from `metrics.summarise`


def collect(members: Sequence[Member]) -> tuple[str, list[Row]]:
    """The metric and the rows of the table, from the finished members; their seeds are merged."""
    metric, matrices, untrained = "", {}, {}
    for member in members:
        try:
            results = finished(member)
        except InputError:
            continue
        if results is None:
            continue
        metric = results["metric"]
        for method, protocol in itertools.product(member.config.methods, metrics.PROTOCOLS):
            if protocol in results["methods"][method]:
                found = results["methods"][method][protocol]["matrix"]
                key = place_of(member), method, protocol
                matrices.setdefault(key, []).extend(found)
                before = results["methods"][method].get("untrained")
                untrained.setdefault(key, []).extend(before or [None] * len(found))
    rows = []
    for (place, method, protocol), found in matrices.items():
        before = untrained[place, method, protocol]
        summary = metrics.summarise(found, metric, None if None in before else before)
        rows.append(Row(place, method, protocol, len(found), summary))
    return metric, rows


def report(sweep: Sweep, failures: Sequence[Failure], console: rich.console.Console) -> None:
    """Prints the table of the finished members; writes `sweep.md`, `sweep.csv` and `sweep.png` to the sweep's folder.

    Does nothing if no member is finished.
    """
    metric, rows = collect(sweep.members)
    if not rows:
        return
    axes = [name for name in sweep.grid if name not in MERGED]
    heading = metrics.METRICS[metric].heading
    table = tables.Table(
        f"Sweep of {sweep.config}",
        (*axes, "method", "protocol", "seeds", heading, "FM ↓", "fm_rise ↓", "BWT ↑", "FWT ↑", f"anytime {heading}"),
        tuple(
            (
                *(*row.place, tables.method_name(row.method), row.protocol, str(row.seeds)),
                *(tables.number(row.summary[name]) for name in _SUMMARIES),
            )
            for row in rows
        ),
        "Mean ± std over seeds; the report.md of each member explains the columns.",
        left=(*axes, "method", "protocol"),
    )
    console.print(tables.terminal(table))
    parts = [tables.markdown(table), "![the sweep](sweep.png)\n"]
    if failures:
        listed = "".join(f"- `{failure.member.workdir.name}`: {failure.reason}\n" for failure in failures)
        parts.append(f"## Failed\n\n{listed}")
    with writing(sweep.out):
        (sweep.out / "sweep.md").write_text("\n".join(parts))
        with (sweep.out / "sweep.csv").open("w", newline="") as file:
            write = csv.writer(file)
            statistics = list(itertools.product(_SUMMARIES, ("mean", "std")))
            write.writerow([*axes, "method", "protocol", "metric", "seeds", *("_".join(pair) for pair in statistics)])
            for row in rows:
                numbers = [row.summary[name][statistic] for name, statistic in statistics]
                write.writerow([*row.place, row.method, row.protocol, metric, row.seeds, *numbers])
        draw({name: sweep.grid[name] for name in axes}, rows, heading).savefig(sweep.out / "sweep.png")


def draw(axes: dict[str, list[str]], rows: Sequence[Row], label: str) -> Figure:
    """The final metric over the values of the first of ``axes``: a panel per method, a line per choice of the others.

    Args:
      axes: the values of each setting whose values have rows of their own in the table.
      rows: the rows of the table; a failed member leaves a gap.
      label: the label of the metric.
    """
    first, *others = axes.values() if axes else [[""]]
    lines = list(itertools.product(*others))
    colours = dict(zip(lines, colormaps["viridis"](np.linspace(0, 0.85, len(lines))), strict=True))
    methods = list(dict.fromkeys(row.method for row in rows))
    columns = min(len(methods), 4)
    height = math.ceil(len(methods) / columns)
    figure = Figure((2.3 * columns + 2.8, 2.4 * height + 0.6), dpi=130, layout="constrained")
    panels = dict(itertools.zip_longest(figure.subplots(height, columns, squeeze=False, sharey=True).flat, methods))
    for panel, method in panels.items():
        if method is None:
            panel.set_visible(False)
            continue
        for line, protocol in itertools.product(lines, metrics.PROTOCOLS):
            key = (method, protocol, line)
            finals = {row.place[:1]: row.summary["final"] for row in rows if (*row[1:3], row.place[1:]) == key}
            drawn = [finals.get((value,) if axes else (), _GAP) for value in first]
            panel.errorbar(
                range(len(first)),
                [final["mean"] for final in drawn],
                [final["std"] or 0.0 for final in drawn],
                fmt=_STYLES[protocol],
                color=colours[line],
                linewidth=1.5,
                elinewidth=1,
                capsize=2,
                markersize=4.5,
            )
        panel.set_title(tables.method_name(method))
        panel.set_xticks(range(len(first)), first)
        panel.set_xlim(-0.3, len(first) - 0.7)
        panel.grid(axis="y", color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(next(iter(axes), ""))
    figure.supylabel(label)
    names = [name.rpartition(".")[2] for name in axes][1:]
    texts = {line: ", ".join(f"{n}={value}" for n, value in zip(names, line, strict=True)) for line in lines if line}
    handles = [Line2D([], [], color=colours[line], label=text) for line, text in texts.items()]
    for protocol, style in _STYLES.items():
        handles += figure.axes[0].plot([], [], style, color="0.3", markersize=4.5, label=protocol)
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    return figure
