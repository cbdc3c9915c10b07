"""The contract of a method: a frozen record of functions (docs/add_a_method.md)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.pools.base import Params, Pool, gather, gather_padded


class Selection(NamedTuple):
    """The components that answer and, for a method with several variants of their params, the variant."""

    active: jax.Array  # int32[k], sorted: components that answer, and that training trains; H is padding, if frozen
    variant: Any = np.int32(0)  # int32[]
    frozen: jax.Array | None = None  # int32[m]: components that answer, too, but are never trained; H is padding

    def answering(self, seed: int, size: int) -> np.ndarray:
        """All components that answer in one seed, int32, sorted; ``size`` is H, the selection's leaves are [E, ...]."""
        parts = [np.asarray(part[seed]) for part in (self.active, self.frozen) if part is not None]
        every = np.concatenate(parts)
        return np.sort(every[every < size])


class Given(NamedTuple):
    """The information by which a method may choose a mask."""

    support: Any  # a batch of the task's training data, or of its recovery examples at evaluation
    task: Any  # the task's index, for oracles only; None for all other methods
    held: Selection | None  # the masks of earlier tasks, leaves [M, ...] padded with H; None unless it ``reserves``
    key: jax.Array


class Stage(NamedTuple):
    """How far a block's training has come; at evaluation the block is at its end."""

    variant: Any  # int32[], of the block's selection
    step: Any  # int32[], the steps of the block taken so far
    steps: Any  # int32[], all steps of the block
    frozen: Any = None  # the trainable rows [m, ...] of the selection's frozen components, if it has any
    whole: Any = None  # (trainable, extra) [H, ...] of all components; if rows are gathered, as at the block's start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configurer:
    """The settings of mask search that a run's methods share (``config.configurer``), and the number of tasks.

    Defaults are those of the paper's Experiment 2.
    """

    k: int  # winners
    tasks: int  # N of the stream
    steps: int = 15  # S
    learning_rate: float = 0.5  # eta
    jitter: float = 1e-6
    proposal: str = "adam"  # the optimizer of mask logits, a name in `ftn_jax.core.configurer.PROPOSALS`
    moments: str = "fresh"  # the proposal's moments: "fresh" at each search, or "kept" between batches of training
    start: float = 0.5  # the value of the relaxed mask before its first step


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: the masks that it uses, the params that it trains, and any extra loss.

    *Trainable* are the params that the optimizer sees, ``extra`` is other state of the method; every leaf of both
    is [H, ...]. The suffix _k marks rows that are gathered to [k, ...].

    Attributes:
      select: (pool, trainable, extra, `Given`) -> Selection, in training and at evaluation.
      install: the same at the start of a task's block in training, if a method selects differently there.
      search: the same arguments -> (Selection, extra); replaces ``select`` in training if ``every`` is "batch" and a
        search leaves state in ``extra`` for the next one.
      adapt_pool: the config's pool -> the pool that the method trains.
      init: (pool, params, key) -> (trainable, extra).
      realise: (trainable_k, extra_k, `Stage`) -> the params_k for the pool's losses.
      penalty: (trainable_k, extra_k, `Stage`) -> f32[], added to the training loss.
      gradients: (gradients_k, trainable_k, extra_k, `Stage`) -> gradients_k, applied before the optimizer.
      updates: the same for the optimizer's updates, applied before they are added. If the optimizer sees every row
        (``config.optimizer.rows`` "dense", or ``every`` "batch"), both get all rows.
      finish: (pool, trainable, extra, task_data, selection, key) -> (trainable, extra); runs once at a block's end,
        with the selection that the block was trained with (its last one, if the mask moves).
      rehearse: (the stream's tasks, a block's index, their seed axis) -> the block's training data, if that is more
        than its own task's. From a stream that the host reads, each step has the examples that were read; if the data
        has ``mix(key, examples, size)``, what this returns is trained on instead.
      read: (the stream's feed, N, first step, steps, size) -> what the host reads for these steps of any block, leaves
        [E, steps, n, ...], if that is not ``size`` examples of the block's own task.
      every: how often ``select`` runs in training: once per "task", or on each "batch".
      oracle: whether the method is told the task, in training and at evaluation.
      reserves: how many free components each task gets (free by the masks in `Given`); 0 if the method reserves none.
        With a method that reserves, the pool can grow, tasks can be forgotten, and boundaries need not be announced.
        An oracle can't reserve.
      reuses: how many components of other tasks may answer beside a task's own, at most; `Given.held` then has them.
      exclusive: whether each task gets its own components, so that the pool needs k for every task.
      trains: whether blocks are trained; otherwise they have no steps.
      in_context: whether the support examples of a recovery are put into the prompt of each test example. Such a method
        stores no mask: both protocols have the same scores. Its pool needs `metrics_in_context` and `check_context`.
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
    read: Callable[..., Any] | None = None
    every: str = "task"
    oracle: bool = False
    reserves: int = 0
    reuses: int = 0
    exclusive: bool = False
    trains: bool = True
    in_context: bool = False

    def training_data(self, tasks: Sequence[Any], index: int, axis: int | None) -> Any:
        """The training data of block ``index``; ``axis`` is 0 if every seed has its own data, else None."""
        return self.rehearse(tasks, index, axis) if self.rehearse else tasks[index]

    def training_feed(
        self, feed: Callable[..., Any] | None, tasks: int, index: int
    ) -> Callable[[int, int, int], Any] | None:
        """(first step, steps, size) -> what the host reads for block ``index``; None if it does not read the stream."""
        if feed is None:
            return None
        return functools.partial(self.read, feed, tasks) if self.read else functools.partial(feed, index)

    def params_of(self, trainable: Params, extra: Any, selection: Selection) -> Params:
        """The params [k + m, ...] of a selection's active and frozen components."""
        whole = trainable, extra
        stage = Stage(selection.variant, np.int32(1), np.int32(1), whole=whole)
        rows, extra_rows = own_rows(whole, selection)
        params = self.realise(rows, extra_rows, stage)
        return joined(params, self.beside(whole, selection, stage))

    def beside(self, whole: tuple[Params, Any], selection: Selection, stage: Stage) -> Params | None:
        """The params [m, ...] of a selection's frozen components; None if it has none."""
        if selection.frozen is None:
            return None
        rows, extra_rows = gather_padded(whole, selection.frozen)
        return self.realise(rows, extra_rows, stage)


def own_rows(tree: Params, selection: Selection) -> Params:
    """The rows [k, ...] of a selection's active components; those of padding are zeros."""
    take = gather if selection.frozen is None else gather_padded
    return take(tree, selection.active)


def answering_rows(tree: Params, selection: Selection) -> Params:
    """The rows [k + m, ...] of all components of a selection."""
    beside = None if selection.frozen is None else gather_padded(tree, selection.frozen)
    return joined(own_rows(tree, selection), beside)


def joined(params: Params, others: Params | None) -> Params:
    """Concatenates params [k, ...] and [m, ...] to [k + m, ...]; with None, returns the first."""
    if others is None:
        return params
    return jax.tree.map(lambda own, other: jnp.concatenate([own, other]), params, others)
