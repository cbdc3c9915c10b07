"""What a run shows and records while it trains: a progress line, `metrics.csv`, TensorBoard event files."""

import csv
import pathlib
import shutil

import numpy as np
import rich.console
import rich.progress
import tensorboardX

_EVERY = 10  # steps between two points of the curves
_FIELDS = ("method", "seed", "task", "step", "loss")


class Monitor:
    """Progress on a terminal (nothing elsewhere), and the learning curves of a workdir. A context manager."""

    def __init__(self, workdir: pathlib.Path, console: rich.console.Console):
        self._workdir = workdir
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[loss]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = None

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *exception):
        self._progress.stop()
        self._close()

    def start_method(self, method: str, seeds: tuple[int, ...], task_names: tuple[str, ...], steps: int) -> None:
        """A method begins, or begins anew: its rows of earlier attempts go."""
        self._close()
        self._method, self._seeds, self._names, self._steps = method, seeds, task_names, steps
        table = self._workdir / "metrics.csv"
        kept = []
        if table.exists():
            with table.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if row["method"] != method]
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, _FIELDS)
            writer.writeheader()
            writer.writerows(kept)
        events = self._workdir / "tensorboard" / method
        if events.exists():
            shutil.rmtree(events)
        self._writer = tensorboardX.SummaryWriter(str(events))
        self._bar = self._progress.add_task(method, total=len(task_names) * steps, loss="")

    def chunk(self, task: int, step: int, losses: np.ndarray) -> None:
        """Losses [E, n] of the steps that end with ``step`` of a task."""
        first = step - losses.shape[1] + 1
        with (self._workdir / "metrics.csv").open("a", newline="") as file:
            writer = csv.writer(file)
            for offset in range(losses.shape[1]):
                at = first + offset
                if at % _EVERY and at != 1:
                    continue
                for seed, loss in zip(self._seeds, losses[:, offset], strict=True):
                    writer.writerow((self._method, seed, self._names[task], at, f"{loss:.6g}"))
                self._writer.add_scalar("loss", losses[:, offset].mean(), task * self._steps + at)
        self._show(task, "training", task * self._steps + step, f"loss {losses[:, -1].mean():.3f}")

    def row(self, task: int, scores: dict[str, np.ndarray]) -> None:
        """The mean over seeds and trained tasks of a metric, by protocol, at a task's end."""
        for name, value in scores.items():
            self._writer.add_scalar(name, value, (task + 1) * self._steps)

    def evaluating(self, task: int) -> None:
        """The boundary of a task is being evaluated."""
        self._show(task, "evaluating", (task + 1) * self._steps, "")

    def _show(self, task, doing, completed, loss):
        if self._bar is not None:
            seeds = f"{len(self._seeds)} seed" + "s" * (len(self._seeds) > 1)
            what = f"{self._method}, {seeds}, {doing} {self._names[task]} ({task + 1}/{len(self._names)})"
            self._progress.update(self._bar, completed=completed, description=what, loss=loss)

    def _close(self):
        if self._bar is not None:
            self._writer.close()
            self._bar = None
