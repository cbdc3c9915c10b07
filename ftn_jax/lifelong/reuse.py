"""Which tasks reuse the components of which: read from their masks."""

from collections.abc import Mapping, Sequence

import numpy as np

from ftn_jax.lifelong.progress import Progress


def reused(own: Sequence[np.ndarray], answering: Sequence[np.ndarray]) -> list[list[int]]:
    """For each task the numbers of the tasks whose components answer beside its own.

    Args:
      own: the components that each task has trained.
      answering: the components with which each task answers.
    """
    return [
        [other for other, theirs in enumerate(own) if not np.isin(theirs, mine).any() and np.isin(theirs, every).any()]
        for mine, every in zip(own, answering, strict=True)
    ]


def masks_of(progress: Progress, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each block of a seed: the components that it has trained, and those with which it answers; sorted."""
    selections = progress.selections
    own = [np.asarray(selection.active[seed]) for selection in selections]
    own = [mask[mask < progress.size] for mask in own]
    return own, [selection.answering(seed, progress.size) for selection in selections]


def blocks_of(own: Mapping[str, np.ndarray], task: str) -> list[str]:
    """The blocks that train exactly the components of a task, itself among them; the latest first."""
    return [name for name in list(own)[::-1] if set(own[name].tolist()) == set(own[task].tolist())]


def dependents(own: Mapping[str, np.ndarray], answering: Mapping[str, np.ndarray], task: str) -> list[str]:
    """The tasks that reuse a task's components, directly or through others."""
    names = list(own)
    reuses = reused(list(own.values()), list(answering.values()))
    return [name for name, others in zip(names, reuses, strict=True) if names.index(task) in others]


def directly(reuses: Sequence[Sequence[int]]) -> list[list[int]]:
    """Of what each task reuses the tasks that it does not reuse through another one of them."""
    return [[other for other in own if not any(other in reuses[between] for between in own)] for own in reuses]
