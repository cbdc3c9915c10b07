"""Forgetting on request: makes a run as if it had never had one of its tasks, if that is possible exactly."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.lifelong.progress import Progress
from ftn_jax.lifelong.reuse import blocks_of, dependents, masks_of
from ftn_jax.methods import Method
from ftn_jax.pools.base import Pool
from ftn_jax.training.evaluation import Row
from ftn_jax.training.state import Training, renew


def check_forgettable(
    name: str, method: Method, own: Mapping[str, np.ndarray], answering: Mapping[str, np.ndarray], task: str
) -> None:
    """Raises InputError if a task can't be forgotten completely without changing the other tasks.

    Args:
      name: the method's name.
      method: the method that trained the run.
      own: task -> the components that its block has trained.
      answering: task -> the components of its mask.
      task: the task to forget.
    """
    if task not in own:
        raise InputError(f"no task {task!r} is trained, known: {', '.join(own) or '-'}")
    if method.oracle or method.every != "task":
        why = "is told each task's number" if method.oracle else "moves masks while it trains"
        raise InputError(f"{name} {why}: to forget tasks, use a method that installs masks once, such as ftn_reserve")
    later = blocks_of(own, task) if method.reserves else [task]
    shared = [other for other, mask in own.items() if other not in later and np.isin(mask, own[task]).any()]
    if shared and method.trains:
        raise InputError(
            f"{name}: task {task!r} shares components with {', '.join(shared)}, so it can't be forgotten alone: train "
            "with a method that reserves components, such as lora_ftn_reserve"
        )
    if reusing := dependents(own, answering, task):
        raise InputError(
            f"{name}: task {task!r} is reused by {', '.join(reusing)}: add with_dependents to forget these, too"
        )


def forget_task(
    progress: Progress, pool: Pool, method: Method, training: Training, *, names: Sequence[str], task: str, name: str
) -> Progress:
    """The progress of a run that never had the task: components, moments, masks and matrices.

    Where another block trains the same components, they stay: such blocks are forgotten one after another. The last row
    of the matrices is left out, so that the run computes it again.

    Args:
      progress: of the run.
      pool: the pool that the method trains.
      method: the method that trained the run.
      training: the settings of training.
      names: the names of the stream's tasks.
      task: the task to forget.
      name: the method's name in the config.

    Raises:
      InputError: as `check_forgettable`; or the task is not trained to its end; or the run found its tasks itself.
    """
    at = names.index(task)
    if at >= progress.task:
        raise InputError(f"{name} has not trained task {task!r} to its end: let the run end first")
    for seed in range(len(progress.state.keys)):
        own, answering = (dict(zip(names, masks, strict=False)) for masks in masks_of(progress, seed))
        check_forgettable(name, method, own, answering, task)
    number = int(progress.used[at][0])
    last = not any(int(numbers[0]) == number for numbers in without(progress.used, at))
    state = progress.state
    if last:
        state = renew(pool, state, progress.masks[number].active, method=method, training=training)
    if any(memory.events for memory in progress.memories):
        raise InputError(f"{name} found its tasks itself (config.stream.boundaries): these can't be forgotten by name")
    for memory in progress.memories if last else ():
        memory.own = without(memory.own, number)
    touched = progress.touched
    touched.counts, touched.path = np.delete(touched.counts, at, axis=1), without(touched.path, at)

    def without_column(scores):
        return {metric: np.delete(values, at, axis=1) for metric, values in scores.items()}

    rows = [Row(without_column(row.stored), without_column(row.reconfig), []) for row in without(progress.rows, at)]
    trained = progress.task - 1
    return dataclasses.replace(
        progress,
        state=state,
        touched=touched,
        task=trained,
        masks=without(progress.masks, number) if last else progress.masks,
        used=[numbers - (last and numbers > number) for numbers in without(progress.used, at)],
        rows=rows[: max(trained - 1, 0)],
    )


def forget_adapter(progress: Progress, pool: Pool, method: Method, training: Training, adapter: str) -> Progress:
    """The progress of the run as if the adapter had never been imported."""
    active = progress.imported[adapter].active
    state = renew(pool, progress.state, active, method=method, training=training)
    rest = {name: mask for name, mask in progress.imported.items() if name != adapter}
    return dataclasses.replace(progress, state=state, imported=rest)


def without(items: Sequence[Any], at: int) -> list[Any]:
    """A list of all items except the one at index ``at``."""
    return [item for i, item in enumerate(items) if i != at]
