"""Removes a task from everything that a workdir holds on disk."""

import pathlib
import shutil
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import Config
from ftn_jax.lifelong.progress import Progress
from ftn_jax.lifelong.reuse import blocks_of, dependents, masks_of
from ftn_jax.lifelong.unlearning import forget_adapter, forget_task, without
from ftn_jax.runs.checkpoints import Checkpoints
from ftn_jax.runs.monitor import read_curves, write_curves
from ftn_jax.runs.own_parts import check_registered
from ftn_jax.runs.restore import Saved, read_saved
from ftn_jax.runs.workdir import lock, read_results, save_results
from ftn_jax.streams import STREAMS

_TASK = 2  # the column of the task in `metrics.csv`
_REPORTS = ("report.md", "report.html", "figures", "tensorboard", "metrics.csv")  # these mention the task too


def forget(
    workdir: pathlib.Path,
    task: str,
    *,
    with_dependents: bool = False,
    dry_run: bool = False,
    remove_older: bool = False,
    base: str | None = None,
) -> list[str]:
    """Removes a task, or an imported adapter, from everything that a workdir has trained.

    Args:
      workdir: the folder of a run.
      task: the name of the task or adapter.
      with_dependents: also remove the tasks that reuse the task's components; without it, such a task is refused.
      dry_run: change nothing; only return the lines.
      remove_older: also delete older checkpoints, and the reports and curves that mention the task.
      base: where the run's base is now, if it has moved.

    Returns:
      Lines that say what was removed, and which files still hold the task.

    Raises:
      InputError: no such task, the only task, a stream from which no task can be removed, or see `forget_task`.
      CheckpointError: checkpoints that can't be read or written.
    """
    results = read_results(workdir)
    check_registered(results, workdir)
    names: list[str] = results["task_names"]
    config: Config = ConfigDict(results["config"])
    if task not in names:
        if remove_older and not dry_run and (gone := _remove_rest(workdir, task)):
            return gone
        return _forget_adapter(workdir, results, task, dry_run=dry_run, remove_older=remove_older, base=base)
    kind = STREAMS[config.stream.name]
    if not kind.grows:
        raise InputError(f"the tasks of stream {config.stream.name!r} are drawn together: none can be removed")
    said, holding = [], [workdir / file for file in _REPORTS if (workdir / file).exists()]
    with lock(workdir):
        folders = sorted((workdir / "checkpoints").iterdir())
        read = {folder: read_saved(workdir, results, folder.name, base) for folder in folders}
        going = _with_dependents(read.values(), names, task) if with_dependents else [task]
        going = list(dict.fromkeys(block for one in going for block in _blocks_of(read.values(), names, one)))
        if len(names) == len(going):
            what = f"{task!r} is the only task" if len(names) == 1 else f"all tasks are {task!r} or reuse it"
            raise InputError(f"workdir {workdir}: {what}, delete the workdir instead")
        kept = {}
        for folder, saved in read.items():
            kept[folder], left = saved.progress, list(names)
            for one in going:
                at, seeds = left.index(one), range(len(results["seeds"]))
                own = [mask for seed in seeds for mask in masks_of(kept[folder], seed)[0][at : at + 1]]
                kept[folder] = forget_task(
                    kept[folder], saved.pool, saved.method, saved.training, names=left, task=one, name=folder.name
                )
                left.remove(one)
                of = f" of {one}" if len(going) > 1 else ""
                k = max(map(len, own))  # of a task that is not trained `forget_task` has told
                moments = "" if saved.training.reset else ", their moments"  # which else ended with the task
                said.append(f"{folder.name}: {k} components{of} of each seed{moments}, the mask and the task's scores")
            with Checkpoints(folder, read_only=True) as checkpoints:
                holding += checkpoints.paths()
        if dry_run:
            return [*(f"would go: {line}" for line in said), *(f"holds the task: {path}" for path in holding)]
        _save(kept, config.stream.steps, remove_older=remove_older)
        for one in going:
            at = results["task_names"].index(one)
            config.stream[kind.tasks] = tuple(without(config.stream[kind.tasks], at))
            results |= {"task_names": without(results["task_names"], at), "methods": {}}
            results.get("contents", {}).pop(one, None)
            results["task_facts"] = {fact: without(values, at) for fact, values in results["task_facts"].items()}
        save_results(results, config, workdir)
        if remove_older:
            for one in going:
                _remove_reports(workdir, one)
    left = [path for path in holding if path.exists() and not (remove_older and path.name == "metrics.csv")]
    return [*(f"gone: {line}" for line in said), *(f"still holds the task: {path}" for path in left)]


def _with_dependents(read: Iterable[Saved], names: list[str], task: str) -> list[str]:
    """The task, and before it the tasks that reuse it in one of the methods, for one of the seeds; the latest first."""
    found = set[str]()
    for saved in read:
        for seed in range(len(saved.progress.state.keys)):
            own, answering = (dict(zip(names, masks, strict=False)) for masks in masks_of(saved.progress, seed))
            found |= set(dependents(own, answering, task)) if saved.method.reuses and task in own else set()
    return [*sorted(found, key=names.index, reverse=True), task]


def _blocks_of(read: Iterable[Saved], names: list[str], task: str) -> list[str]:
    """All blocks that train a task's components, the latest first, in a method that reserves them."""
    found = {task}
    for saved in read:
        for seed in range(len(saved.progress.state.keys)) if saved.method.reserves else ():
            own = dict(zip(names, masks_of(saved.progress, seed)[0], strict=False))
            found |= set(blocks_of(own, task)) if task in own else set()
    return sorted(found, key=names.index, reverse=True)


def _save(kept: Mapping[pathlib.Path, Progress], steps: int, *, remove_older: bool) -> None:
    """Saves the progress of each folder of checkpoints; ``steps`` is the number of steps per task."""
    for folder, progress in kept.items():
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(progress, progress.task * steps + progress.step)
            checkpoints.wait()
            if remove_older:
                checkpoints.drop_older()


def _forget_adapter(
    workdir: pathlib.Path, results: dict, adapter: str, *, dry_run: bool, remove_older: bool, base: str | None
) -> list[str]:
    """Removes an imported adapter from the checkpoints that have it; arguments and result are those of `forget`."""
    config: Config = ConfigDict(results["config"])
    kept, holding, known = {}, [], set(results["task_names"])
    with lock(workdir):
        for folder in sorted((workdir / "checkpoints").iterdir()):
            saved = read_saved(workdir, results, folder.name, base)
            known |= saved.progress.imported.keys()
            if adapter in saved.progress.imported:
                kept[folder] = forget_adapter(saved.progress, saved.pool, saved.method, saved.training, adapter)
                with Checkpoints(folder, read_only=True) as checkpoints:
                    holding += checkpoints.paths()
        if not kept:
            raise InputError(f"workdir {workdir} has no task {adapter!r}, known: {', '.join(sorted(known))}")
        said = [f"{folder.name}: the components of adapter {adapter} in each seed" for folder in kept]
        if dry_run:
            return [*(f"would go: {line}" for line in said), *(f"holds the adapter: {path}" for path in holding)]
        _save(kept, config.stream.steps, remove_older=remove_older)
        for folder in kept:
            results["methods"].get(folder.name, {}).get("imported", {}).pop(adapter, None)
        save_results(results, config, workdir)
    return [*(f"gone: {line}" for line in said), *(f"still holds the adapter: {p}" for p in holding if p.exists())]


def _remove_rest(workdir: pathlib.Path, task: str) -> list[str]:
    """Removes what still mentions a task that was forgotten without ``remove_older``; returns a line for each path."""
    if not any(row[_TASK] == task for row in read_curves(workdir / "metrics.csv")):
        return []
    gone = [str(workdir / file) for file in _REPORTS if (workdir / file).exists()]
    with lock(workdir):
        for folder in sorted((workdir / "checkpoints").iterdir()):
            with Checkpoints(folder) as checkpoints:
                gone += [str(path) for path in checkpoints.paths()[:-1]]
                checkpoints.drop_older()
        _remove_reports(workdir, task)
    return [f"gone: {path}" for path in gone]


def _remove_reports(workdir: pathlib.Path, task: str) -> None:
    for file in _REPORTS:
        path = workdir / file
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name == "metrics.csv" and path.exists():
            write_curves(path, [row for row in read_curves(path) if row[_TASK] != task])
        else:
            path.unlink(missing_ok=True)
