"""What a stream of tasks is, and what there is to build one from.

A task's data is a pytree with ``batch(key, size)``, ``support(key, size)`` and ``test()``, each a batch that the
pool reads. The first two are pure functions of the key; the three never share an example.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.errors import InputError


class Context(NamedTuple):
    """What a run has before it has a stream."""

    seeds: tuple[int, ...]
    base: Any = None  # a `ftn_jax.models.pretrained.Base`, where the config names one


class Spec(NamedTuple):
    """What a stream's batches are: all that a pool has to know of them to build itself."""

    inputs: int = 0  # d of points
    classes: int = 0  # C of points; 0: regression
    tokens: bool = False  # text, in tokens of the base, and no points


TEXT = Spec(tokens=True)


class Stream(NamedTuple):
    """A stream of N tasks."""

    names: tuple[str, ...]
    tasks: list[Any]  # the data of each
    metric: str  # that results are matrices of: a name in `ftn_jax.core.metrics.METRICS`
    spec: Spec | None = None  # of the batches; a pool of your own may do without
    axis: int | None = None  # 0 where every seed has data of its own (leaves [E, ...])
    # Of each task: how many for "training", "recovery", and "installation" where that is fewer, if limited.
    examples: Sequence[Mapping[str, int]] = ()
    # (task, first step, steps, size) -> batches [E, steps, size, ...] that the host reads; None: `batch` draws.
    feed: Callable[[int, int, int, int], Any] | None = None
    pairs: Sequence[Sequence[tuple[str, str]]] = ()  # of each task of text: test pairs (prompt, completion)
    facts: Mapping[str, Sequence[float]] = {}  # what is known of each seed's data: name -> [E]
    task_facts: Mapping[str, Sequence[float]] = {}  # and of each task's: name -> [N]
    returns: Sequence[str] = ()  # of each block: the task that it is of, where one may come back; empty: its own


@flax.struct.dataclass
class ArrayTask:
    """A task whose examples are arrays on the device: batches with leaves [n, ...], in three splits that share none.

    Tasks of different size share compiled programs where their splits are padded to one size; `counts` then says how
    many examples there are.
    """

    train: Any
    recovery: Any
    held_out: Any
    counts: jax.Array | np.ndarray | None = None  # int32[2], the examples of train and of recovery; None: all rows are

    def batch(self, key: jax.Array, size: int) -> Any:
        """``size`` different training examples. The key is consumed."""
        return _draw(self.train, key, size, None if self.counts is None else self.counts[0])

    def support(self, key: jax.Array, size: int) -> Any:
        """``size`` different examples for recovery, from data that neither trains nor tests. The key is consumed."""
        return _draw(self.recovery, key, size, None if self.counts is None else self.counts[1])

    def test(self) -> Any:
        """The test set, always the same."""
        return self.held_out


def check_drawn(task: Any, *, batch: int = 0, support: int = 0) -> None:
    """Raises InputError where more is drawn at once than a task has; padding would be drawn in its place."""
    if isinstance(task, ArrayTask) and task.counts is not None:
        for size, count in zip((batch, support), np.asarray(task.counts).tolist(), strict=True):
            if size > count:
                raise InputError(
                    f"{size} examples are drawn at once, and a task has {count}: add examples, or draw fewer"
                )


def without_test(task: Any) -> Any:
    """What a task is trained on: programs that train are then compiled once, whatever the sizes of the test sets."""
    return dataclasses.replace(task, held_out=None) if isinstance(task, ArrayTask) else task


def _draw(split, key, size, count):
    n = len(jax.tree.leaves(split)[0])
    try:
        known = n if count is None else int(count)
    except jax.errors.ConcretizationTypeError:  # in a program, before which `check_drawn` has looked
        known = n
    if size > known:
        raise InputError(f"{size} examples are drawn at once, and a task has {known}: add examples, or draw fewer")
    if count is None:
        rows = jax.random.choice(key, n, (size,), replace=False)
    else:  # the largest of random numbers, where padding has zeros
        rows = jax.lax.top_k(jnp.where(jnp.arange(n) < count, jax.random.bits(key, (n,)), 0), size)[1]
    return jax.tree.map(lambda leaf: leaf[rows], split)


def task_of(block: str) -> str:
    """The task of a block: "upper" of "upper" and of "upper#2", which comes back to it."""
    return block.partition("#")[0]
