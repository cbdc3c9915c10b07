"""The contract of a method: a frozen record of functions (docs/add_a_method.md)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.pools.base import Params, Pool, gather, gather_padded


class Selection(NamedTuple):
    """The components that answer, and where a method keeps several variants of their params, which of these."""

    active: jax.Array  # int32[k], sorted: they answer, and in training they are trained; beside frozen, H is padding
    variant: Any = np.int32(0)  # int32[]
    frozen: jax.Array | None = None  # int32[m]: they answer beside, and are never trained; H is padding

    def answering(self, seed: int, size: int) -> np.ndarray:
        """All components of a seed that answer, int32 and sorted; ``size`` is H, leaves are [E, ...]."""
        parts = [np.asarray(part[seed]) for part in (self.active, self.frozen) if part is not None]
        every = np.concatenate(parts)
        return np.sort(every[every < size])


class Given(NamedTuple):
    """What a method may choose a mask by."""

    support: Any  # a batch: of the task's training data, or at evaluation of its recovery examples
    task: Any  # its index, which oracles are told; None for all other methods
    held: Selection | None  # the masks that tasks have, leaves [M, ...], padded with H; None unless it ``reserves``
    key: jax.Array


class Stage(NamedTuple):
    """Where a block stands at one of its steps; at evaluation it is at its end."""

    variant: Any  # int32[], of the block's selection
    step: Any  # int32[], how many of the block's steps were taken before
    steps: Any  # int32[], how many it has
    frozen: Any = None  # the trainable rows [m, ...] of the selection's frozen components, if it has any
    whole: Any = None  # (trainable, extra) [H, ...] of all components, those of this block as they were at its start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configurer:
    """The settings of mask search that a run's methods share (``config.configurer``), and what they have to fit.

    Defaults are those of the paper's Experiment 2.
    """

    k: int
    tasks: int  # N of the stream
    steps: int = 15  # S
    learning_rate: float = 0.5  # eta
    jitter: float = 1e-6
    proposal: str = "adam"  # the steps on mask logits, of `ftn_jax.core.configurer.PROPOSALS`
    moments: str = "fresh"  # of the proposal's optimizer at each search; or "kept" from batch to batch of training
    start: float = 0.5  # the relaxed mask before its first step


@dataclasses.dataclass(frozen=True)
class Method:
    """Which mask is used when, what is trained, and any extra loss.

    *Trainable* are the params that the optimizer sees, ``extra`` is what a method keeps besides; every leaf of both
    is [H, ...]. The suffix _k marks rows that are gathered to [k, ...].

    Attributes:
      select: (pool, trainable, extra, `Given`) -> Selection, in training and at evaluation.
      install: the same for a task's block in training, where that is not what ``select`` finds.
      search: the same arguments -> (Selection, extra), on each batch where ``every`` is "batch" and a search leaves
        something in ``extra`` for the next.
      adapt_pool: the pool that the method trains, made from the config's.
      init: (pool, params, key) -> (trainable, extra).
      realise: (trainable_k, extra_k, `Stage`) -> params_k that the pool's losses take.
      penalty: (trainable_k, extra_k, `Stage`) -> f32[], added to the training loss.
      gradients: (gradients_k, trainable_k, extra_k, `Stage`) -> gradients_k, before the optimizer sees them.
      updates: the same of the optimizer's updates, before they are added. Where the optimizer sees every row
        (``config.optimizer.rows`` "dense", or ``every`` "batch") both are called with all of them.
      finish: (pool, trainable, extra, task_data, selection, key) -> (trainable, extra), once, at a block's end, with
        the selection that it was trained with (the last one, where it moves).
      rehearse: (the stream's tasks, a block's index, their seed axis) -> the block's training data, where that is not
        its task's alone.
      every: how often select runs in training, "task" or "batch".
      oracle: told the task, in training and at evaluation.
      reserves: how many components it gives each task of those that no task has, by the masks in `Given`; 0: none. The
        pool can then grow, tasks can be forgotten, and boundaries need not be announced. Not for an oracle.
      reuses: how many components of other tasks may answer beside a task's own, at most; `Given.held` then has them.
      exclusive: gives each task components of its own, so that the pool has to have k for every task.
    """

    select: Callable[..., Selection]
    install: Callable[..., Selection] | None = None
    search: Callable[..., tuple[Selection, Any]] | None = None
    adapt_pool: Callable[[Any], Pool] = lambda pool: pool
    init: Callable[[Pool, Params, jax.Array], tuple[Params, Any]] = lambda pool, params, key: (params, {})
    realise: Callable[[Params, Any, Stage], Params] = lambda trainable, extra, stage: trainable
    penalty: Callable[[Params, Any, Stage], jax.Array] = lambda trainable, extra, stage: jnp.float32(0)
    gradients: Callable[..., Params] | None = None
    updates: Callable[..., Params] | None = None
    finish: Callable[..., tuple[Params, Any]] = lambda pool, trainable, extra, *_: (trainable, extra)
    rehearse: Callable[[Sequence[Any], int, int | None], Any] | None = None
    every: str = "task"
    oracle: bool = False
    reserves: int = 0
    reuses: int = 0
    exclusive: bool = False

    def training_data(self, tasks: Sequence[Any], index: int, axis: int | None) -> Any:
        """What block ``index`` is trained on; ``axis`` is 0 where every seed has data of its own."""
        return self.rehearse(tasks, index, axis) if self.rehearse else tasks[index]

    def params_of(self, trainable: Params, extra: Any, selection: Selection) -> Params:
        """The params [k + m, ...] with which a selection answers."""
        whole = trainable, extra
        stage = Stage(selection.variant, np.int32(1), np.int32(1), whole=whole)
        rows, extra_rows = own_rows(whole, selection)
        params = self.realise(rows, extra_rows, stage)
        return joined(params, self.beside(whole, selection, stage))

    def beside(self, whole: tuple[Params, Any], selection: Selection, stage: Stage) -> Params | None:
        """The params [m, ...] of a selection's frozen components; None where it has none."""
        if selection.frozen is None:
            return None
        rows, extra_rows = gather_padded(whole, selection.frozen)
        return self.realise(rows, extra_rows, stage)


def own_rows(tree: Params, selection: Selection) -> Params:
    """The rows [k, ...] of a selection's active components; those of padding are zeros."""
    take = gather if selection.frozen is None else gather_padded
    return take(tree, selection.active)


def joined(params: Params, others: Params | None) -> Params:
    """Params [k, ...] and [m, ...] as [k + m, ...]."""
    if others is None:
        return params
    return jax.tree.map(lambda own, other: jnp.concatenate([own, other]), params, others)
