"""What a run shows and records while it trains: a progress line, `metrics.csv`, TensorBoard event files."""

import csv
import pathlib
import shutil
from collections.abc import Collection
from typing import Any

import numpy as np
import rich.console
import rich.progress
import tensorboardX

from ftn_jax.report import tables

_EVERY = 10  # steps between two points of the curves
_FIELDS = ("method", "seed", "task", "step", "loss")


class Monitor:
    """Progress on a terminal, a line for each finished method anywhere, and the curves of a workdir.

    A context manager. The curves of the methods in ``keep`` stay, those of others go, for they will run anew.
    """

    def __init__(self, workdir: pathlib.Path, console: rich.console.Console, keep: Collection[str] = ()):
        self._table, self._events, self._console = workdir / "metrics.csv", workdir / "tensorboard", console
        self._progress = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.TimeRemainingColumn(compact=True),
            rich.progress.TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar: rich.progress.TaskID | None = None
        self._prune(keep)

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *exception):
        self._close()
        self._progress.stop()

    def start_method(self, method: str, seeds: tuple[int, ...], task_names: tuple[str, ...], steps: int) -> None:
        """A method begins; ``steps`` of each task."""
        self._method, self._seeds, self._names, self._steps = method, seeds, task_names, steps
        self._writer = tensorboardX.SummaryWriter(str(self._events / method))
        self._bar = self._progress.add_task(total=len(task_names) * steps, **self._fields(0, 0, "compiling"))

    def chunk(self, task: int, step: int, losses: np.ndarray) -> None:
        """Losses [E, n] of the steps that end with ``step`` of a task."""
        first = step - losses.shape[1] + 1
        with self._table.open("a", newline="") as file:
            writer = csv.writer(file)
            for offset in range(losses.shape[1]):
                at = first + offset
                if at % _EVERY and at != 1:
                    continue
                for seed, loss in zip(self._seeds, losses[:, offset], strict=True):
                    writer.writerow((self._method, seed, self._names[task], at, f"{loss:.6g}"))
                self._writer.add_scalar("loss", losses[:, offset].mean(), task * self._steps + at)
        self._show(task, step, f"loss {losses[:, -1].mean():.3f}")

    def evaluating(self, task: int) -> None:
        """The boundary of a task is being evaluated."""
        self._show(task, self._steps, "evaluating")

    def row(self, task: int, scores: dict[str, np.ndarray]) -> None:
        """The mean over seeds and trained tasks of a metric, by protocol, at a task's end."""
        for name, value in scores.items():
            self._writer.add_scalar(name, value, (task + 1) * self._steps)

    def finish_method(self, entry: dict[str, Any], metric: str) -> None:
        """One line of a method's entry in `results.json`: seconds, final metric and FM under both protocols."""
        name = tables.METRIC_NAMES[metric]
        scores = [
            f"{protocol} {name} {tables.number(entry[protocol]['final'])} FM {tables.number(entry[protocol]['fm'])}"
            for protocol in tables.PROTOCOLS
        ]
        self._close()
        line = f"{self._method}: {sum(entry['seconds'].values()):.0f} s, {', '.join(scores)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _show(self, task: int, step: int, status: str) -> None:
        assert self._bar is not None
        self._progress.update(self._bar, **self._fields(task, step, status))

    def _fields(self, task: int, step: int, status: str) -> dict[str, Any]:
        seeds = f"{len(self._seeds)} seed{'s' * (len(self._seeds) > 1)}"
        place = f"{self._names[task]} {task + 1}/{len(self._names)}, step {step}/{self._steps}"
        return {
            "completed": task * self._steps + step,
            "description": f"{self._method}, {seeds}, {place}, {status}",
        }

    def _prune(self, keep: Collection[str]) -> None:
        kept = []
        if self._table.exists():
            with self._table.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if row["method"] in keep]
        partial = self._table.with_suffix(".csv.partial")
        with partial.open("w", newline="") as file:
            csv.writer(file).writerows([_FIELDS, *([row[field] for field in _FIELDS] for row in kept)])
        partial.replace(self._table)
        for folder in self._events.glob("*"):
            if folder.name not in keep:
                shutil.rmtree(folder)

    def _close(self) -> None:
        if self._bar is not None:
            self._writer.close()
            self._progress.remove_task(self._bar)
            self._bar = None


class CompileClock:
    """Seconds that JAX has spent tracing, lowering and compiling.

    Its three durations follow one another, and a trace inside a trace reports none: nothing counts twice.
    """

    total = 0.0

    def listen(self, event: str, duration_secs: float, **_: Any) -> None:
        """For `jax.monitoring.register_event_duration_secs_listener`."""
        if event.startswith("/jax/core/compile/"):
            self.total += duration_secs
