"""The contract of a stream of tasks, and tasks whose examples are arrays.

A task's data is a pytree with ``batch(key, size)``, ``support(key, size)`` and ``test()``, which return batches for
the pool. The first two are pure functions of the key; the three never share an example.
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
    """What a stream may be built from: the run's seeds, and its base."""

    seeds: tuple[int, ...]
    base: Any = None  # a `ftn_jax.models.pretrained.Base`, if the config names one


class Spec(NamedTuple):
    """Describes a stream's batches, so that a pool can be built for them."""

    inputs: int = 0  # d of points
    classes: int = 0  # C of points; 0: regression
    tokens: bool = False  # whether batches are text, in tokens of the base, rather than points


TEXT = Spec(tokens=True)


class Stream(NamedTuple):
    """A stream of N tasks."""

    names: tuple[str, ...]
    tasks: list[Any]  # the data of each task
    metric: str  # the metric of the result matrices: a name in `ftn_jax.core.metrics.METRICS`
    spec: Spec | None = None  # of the batches; your own pool may work without one
    axis: int | None = None  # 0 if every seed has its own data (leaves [E, ...]), else None
    # For each task the number of examples for "training", "recovery" and, if fewer than for training, "installation".
    # Empty if examples are not limited.
    examples: Sequence[Mapping[str, int]] = ()
    # (task, first step, steps, size) -> batches [E, steps, size, ...] read by the host; None: `batch` draws them.
    feed: Callable[[int, int, int, int], Any] | None = None
    pairs: Sequence[Sequence[tuple[str, str]]] = ()  # for each task of text: its test pairs (prompt, completion)
    facts: Mapping[str, Sequence[float]] = {}  # statistics of each seed's data: name -> [E]
    task_facts: Mapping[str, Sequence[float]] = {}  # statistics of each task's data: name -> [N]
    returns: Sequence[str] = ()  # for each block its task, if tasks may come back; empty: each block is a task
    # For each block the earlier one whose mask a method that reserves components trains further, or None. Empty: none.
    continues: Sequence[int | None] = ()


@flax.struct.dataclass
class ArrayTask:
    """A task whose examples are arrays on the device: disjoint splits, each a batch with leaves [n, ...].

    Tasks of different size share compiled programs if their splits are padded to one size; ``counts`` then has the
    numbers of real examples. The other splits may end with rows of text in which nothing is scored.
    """

    train: Any
    recovery: Any
    held_out: Any
    counts: jax.Array | np.ndarray | None = None  # int32[2], of train and recovery; None: these have no padding
    validation: Any = None  # the batch by which the best step of the task's training is chosen; see `train_task`

    def batch(self, key: jax.Array, size: int) -> Any:
        """``size`` different training examples. The key is consumed."""
        return _draw(self.train, key, size, None if self.counts is None else self.counts[0])

    def support(self, key: jax.Array, size: int) -> Any:
        """``size`` different examples for recovery, never used to train or test. The key is consumed."""
        return _draw(self.recovery, key, size, None if self.counts is None else self.counts[1])

    def test(self) -> Any:
        """The test set, always the same."""
        return self.held_out


def with_rows(batch: Any, count: int) -> Any:
    """The batch, leaves [n, ...], padded to ``count`` rows of zeros at its end; of text, nothing in them is scored."""
    return jax.tree.map(lambda leaf: np.pad(leaf, [(0, count - len(leaf)), *[(0, 0)] * (leaf.ndim - 1)]), batch)


def check_drawn(task: Any, *, batch: int = 0, support: int = 0) -> None:
    """Raises InputError if more examples are drawn at once than a task has; the rest would be padding."""
    if isinstance(task, ArrayTask) and task.counts is not None:
        for size, count in zip((batch, support), np.asarray(task.counts).tolist(), strict=True):
            if size > count:
                raise InputError(
                    f"{size} examples are drawn at once, but a task has {count}: add examples, or draw fewer"
                )


def without_test(task: Any) -> Any:
    """The task as it is trained on, so that tasks whose other splits differ in size share programs for training."""
    return dataclasses.replace(task, held_out=None, validation=None) if isinstance(task, ArrayTask) else task


def _draw(split, key, size, count):
    n = len(jax.tree.leaves(split)[0])
    try:
        known = n if count is None else int(count)
    except jax.errors.ConcretizationTypeError:  # under jit, where `check_drawn` has been called before
        known = n
    if size > known:
        raise InputError(f"{size} examples are drawn at once, but a task has {known}: add examples, or draw fewer")
    if count is None:
        rows = jax.random.choice(key, n, (size,), replace=False)
    else:  # the rows with the largest random numbers, where padding gets zeros
        rows = jax.lax.top_k(jnp.where(jnp.arange(n) < count, jax.random.bits(key, (n,)), 0), size)[1]
    return jax.tree.map(lambda leaf: leaf[rows], split)


def task_of(block: str) -> str:
    """The task of a block's name: "upper" for "upper" and for "upper#2", a later block of the same task."""
    return block.partition("#")[0]
