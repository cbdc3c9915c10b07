"""What a run shows, tells and records while it trains: a progress line, events, `metrics.csv`, TensorBoard files."""

import contextlib
import csv
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rich.console
import rich.progress
import tensorboardX

from ftn_jax.core import metrics
from ftn_jax.core.errors import InputError, writing
from ftn_jax.core.files import whole
from ftn_jax.lifelong.progress import Progress
from ftn_jax.report import tables
from ftn_jax.training.evaluation import Row

_EVERY = 10  # steps between two points of the curves
_FIELDS = ("method", "seed", "task", "step", "loss")


def read_curves(table: pathlib.Path) -> list[list[str]]:
    """The rows of a `metrics.csv`: method, seed, task, step and loss; empty if there is no such file.

    Skips the half line that a killed run may have left; its step was not saved either.
    """
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return [row for row in csv.reader(file) if len(row) == len(_FIELDS) and row != list(_FIELDS)]


def write_curves(table: pathlib.Path, rows: list[list[str]]) -> None:
    """Writes a `metrics.csv` atomically: a reader sees the old file or the new one.

    Raises:
      InputError: the file can't be written.
    """
    with whole(table) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows([_FIELDS, *rows])


OnEvent = Callable[[dict[str, Any]], None]


class _NotebookLine:
    """A progress line as one output of a notebook's cell; rich's own needs ipywidgets, and leaves a widget behind."""

    _LEAST = 0.5  # seconds between two updates, where steps are short

    def __init__(self, progress: rich.progress.Progress):
        from IPython.display import DisplayHandle  # not a dependency: every notebook has it

        self._progress, self._shown = progress, 0.0
        self._output = DisplayHandle()
        self._output.display(progress)

    def show(self, *, now: bool) -> None:
        if now or time.monotonic() - self._shown >= self._LEAST:
            self._output.update(self._progress)
            self._shown = time.monotonic()

    def clear(self) -> None:
        self._output.update({"text/plain": ""}, raw=True)


class Monitor:
    """Shows progress, prints a line for each finished method, and writes the curves of a workdir.

    A context manager. Progress is shown on a terminal and in a notebook; the time left is that of all ``methods`` that
    are still to be trained. ``on_event`` is called with each event as a dict that JSON can hold; see
    docs/your_own_tasks.md.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        console: rich.console.Console,
        on_event: OnEvent = lambda event: None,
        methods: int = 1,
    ):
        self._on_event, self._methods, self._number = on_event, methods, 0
        self._table, self._events, self._console = workdir / "metrics.csv", workdir / "tensorboard", console
        self._progress = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.TimeRemainingColumn(compact=True),
            rich.progress.TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("", visible=False)
        self._notebook: _NotebookLine | None = None
        self._writer: Any = None

    def __enter__(self):
        self._progress.start()
        if self._console.is_jupyter and not self._console.quiet:
            self._notebook = _NotebookLine(self._progress)
        return self

    def __exit__(self, kind, *exception):
        self._progress.stop()
        if self._notebook:
            self._notebook.clear()
        # An error from closing would hide an earlier one.
        with contextlib.suppress(InputError) if kind else contextlib.nullcontext():
            self._close()

    def start_method(
        self, method: str, seeds: tuple[int, ...], task_names: tuple[str, ...], steps: int, progress: Progress
    ) -> None:
        """Starts or continues a method with ``steps`` per task; drops what its curves hold beyond ``progress``."""
        self._method, self._seeds, self._names, self._steps = method, seeds, task_names, steps
        self._number += 1
        self._means: dict[tuple[str, str], list[float]] = {}  # at each task's end so far, by protocol and metric
        curve = self._prune(progress.task * steps + progress.step)
        shutil.rmtree(self._events / method, ignore_errors=True)
        with writing(self._events):
            self._writer = tensorboardX.SummaryWriter(str(self._events / method))
        for at, losses in sorted(curve.items()):
            self._writer.add_scalar("loss", np.mean(losses), at)
        for task, step, losses in progress.validated:
            self.validation(task, step, losses)
        for task, row in enumerate(progress.rows):
            self.row(task, row)
        done = {"task": progress.task, "step": progress.step}
        self.tell("method", seeds=list(seeds), tasks=list(task_names), steps=steps, done=done)
        last = progress.task == len(task_names)  # training is complete; only the last row is missing
        place = self._fields(progress.task - last, steps if last else progress.step, "compiling")
        self._progress.reset(self._bar, total=self._methods * len(task_names) * steps, visible=True, **place)
        self._draw(now=True)

    def chunk(self, task: int, step: int, losses: np.ndarray) -> None:
        """Records the losses [E, n] of the n steps up to ``step`` of a task."""
        first = step - losses.shape[1] + 1
        with writing(self._table), self._table.open("a", newline="") as file:
            writer = csv.writer(file)
            for offset in range(losses.shape[1]):
                at = first + offset
                if at % _EVERY and at != 1:
                    continue
                for seed, loss in zip(self._seeds, losses[:, offset], strict=True):
                    writer.writerow((self._method, seed, self._names[task], at, f"{loss:.6g}"))
                self._writer.add_scalar("loss", losses[:, offset].mean(), task * self._steps + at)
        self.tell("steps", task=self._names[task], step=step, losses=losses.mean(1).tolist())
        self._show(task, step, f"loss {losses[:, -1].mean():.3f}", now=False)

    def validation(self, task: int, step: int, losses: np.ndarray) -> None:
        """Records the validation losses [E] after a task's step."""
        self._writer.add_scalar("validation_loss", np.mean(losses), task * self._steps + step)

    def evaluating(self, task: int) -> None:
        """Shows that the boundary after a task is being evaluated."""
        self._show(task, self._steps, "evaluating")

    def row(self, task: int, row: Row) -> None:
        """Records, at a task's end, the mean of each metric over seeds and trained tasks, and the means' mean.

        If some of these tasks are not scored there, the mean is over the others, and there is no mean of means.
        """
        for protocol in tables.PROTOCOLS:
            for metric, values in getattr(row, protocol).items():
                means = self._means.setdefault((protocol, metric), [])
                means.append(float(np.mean(values[:, : task + 1])))
                for tag, value in (
                    (metric, float(np.nanmean(values[:, : task + 1]))),
                    (f"anytime_{metric}", np.mean(means)),
                ):
                    if np.isfinite(value):
                        self._writer.add_scalar(f"{protocol}/{tag}", value, (task + 1) * self._steps)

    def finish_method(self, entry: dict[str, Any], metric: str) -> None:
        """Prints one line from a method's entry in `results.json`: seconds, final metric and FM in both protocols."""
        name = metrics.METRICS[metric].label
        scores = [
            f"{protocol} {name} {tables.number(entry[protocol]['final'])} FM {tables.number(entry[protocol]['fm'])}"
            for protocol in tables.PROTOCOLS
        ]
        self.tell("finished", seconds=entry["seconds"])
        self._close()
        line = f"{self._method}: {sum(entry['seconds'].values()):.0f} s, {', '.join(scores)}"
        self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def tell(self, event: str, **fields: Any) -> None:
        """Tells an event of the method in training."""
        self._on_event({"event": event, "time": time.time(), "method": self._method, **fields})

    def _show(self, task: int, step: int, status: str, *, now: bool = True) -> None:
        self._progress.update(self._bar, **self._fields(task, step, status))
        self._draw(now=now)

    def _draw(self, *, now: bool) -> None:
        if self._notebook:
            self._notebook.show(now=now)

    def _fields(self, task: int, step: int, status: str) -> dict[str, Any]:
        seeds = f"{len(self._seeds)} seed{'s' * (len(self._seeds) > 1)}"
        method = self._method if self._methods == 1 else f"{self._method} ({self._number} of {self._methods})"
        before = (self._number - 1) * len(self._names) * self._steps
        place = f"{self._names[task]} {task + 1}/{len(self._names)}, step {step}/{self._steps}"
        return {
            "completed": before + task * self._steps + step,
            "description": f"{method}, {seeds}, {place}, {status}",
        }

    def _prune(self, steps: int) -> dict[int, list[float]]:
        """Drops the method's rows after ``steps`` steps of the stream from the table; returns its losses by step."""
        kept, curve = [], {}
        for row in read_curves(self._table):
            method, _, task, step, loss = row
            if method == self._method:
                if task not in self._names:
                    continue
                at = self._names.index(task) * self._steps + int(step)
                if at > steps:
                    continue
                curve.setdefault(at, []).append(float(loss))
            kept.append(row)
        write_curves(self._table, kept)
        return curve

    def _close(self) -> None:
        if self._writer is not None:
            with writing(self._events):
                self._writer.close()
            self._writer = None


class CompileClock:
    """Seconds that JAX has spent tracing, lowering and compiling.

    The three phases do not overlap, and a trace inside a trace reports no duration, so nothing is counted twice.
    """

    total = 0.0

    def listen(self, event: str, duration_secs: float, **_: Any) -> None:
        """The callback for `jax.monitoring.register_event_duration_secs_listener`."""
        if event.startswith("/jax/core/compile/"):
            self.total += duration_secs
