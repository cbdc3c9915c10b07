"""The contract of a method: a frozen record of functions (docs/add_a_method.md)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.pools.base import Params, Pool, gather


class Selection(NamedTuple):
    """What answers: the components, and where a method keeps several variants of their params, which of these."""

    active: jax.Array  # int32[k], sorted
    variant: Any = np.int32(0)  # int32[]


@dataclasses.dataclass(frozen=True)
class Configurer:
    """The settings of mask search that a run's methods share (``config.configurer``), and what they have to fit."""

    k: int
    steps: int  # S
    learning_rate: float  # eta
    jitter: float
    tasks: int  # N of the stream
    proposal: str = "adam"  # the steps on mask logits, of `ftn_jax.core.configurer.PROPOSALS`
    moments: str = "fresh"  # of the proposal's optimizer at each search; or "kept" from batch to batch of training
    start: float = 0.5  # the relaxed mask before its first step


@dataclasses.dataclass(frozen=True)
class Method:
    """Which mask is used when, what is trained, and any extra loss.

    *Trainable* are the params that the optimizer sees, ``extra`` is what a method keeps besides; every leaf of both
    is [H, ...]. The suffix _k marks rows that are gathered to [k, ...].

    Attributes:
      select: (pool, trainable, extra, support, task, key) -> Selection, in training and at evaluation. ``task`` is
        None unless ``oracle``.
      install: the same for a task's block in training, where that is not what ``select`` finds.
      search: the same arguments -> (Selection, extra), on each batch where ``every`` is "batch" and a search leaves
        something in ``extra`` for the next.
      adapt_pool: the pool that the method trains, made from the config's.
      init: (pool, params, key) -> (trainable, extra).
      realise: (trainable_k, extra_k, variant) -> params_k that the pool's losses take.
      penalty: (trainable_k, extra_k) -> f32[], added to the training loss.
      finish: (pool, trainable, extra, task_data, selection, key) -> (trainable, extra), at a task's end, with the
        selection that its block was trained with (the last one, where it moves).
      rehearse: (the stream's tasks, a block's index, their seed axis) -> the block's training data, where that is not
        its task's alone.
      claimed: extra -> bool[H], the components that tasks have, where a method gives each its own and is no oracle.
      every: how often select runs in training, "task" or "batch".
      oracle: told the task, in training and at evaluation.
      exclusive: gives each task components of its own, so that the pool has to have k for every task.
    """

    select: Callable[..., Selection]
    install: Callable[..., Selection] | None = None
    search: Callable[..., tuple[Selection, Any]] | None = None
    adapt_pool: Callable[[Any], Pool] = lambda pool: pool
    init: Callable[[Pool, Params, jax.Array], tuple[Params, Any]] = lambda pool, params, key: (params, {})
    realise: Callable[[Params, Any, jax.Array], Params] = lambda trainable, extra, variant: trainable
    penalty: Callable[[Params, Any], jax.Array] = lambda trainable, extra: jnp.float32(0)
    finish: Callable[..., tuple[Params, Any]] = lambda pool, trainable, extra, *_: (trainable, extra)
    rehearse: Callable[[Sequence[Any], int, int | None], Any] | None = None
    claimed: Callable[[Any], jax.Array] | None = None
    every: str = "task"
    oracle: bool = False
    exclusive: bool = False

    def training_data(self, tasks: Sequence[Any], index: int, axis: int | None) -> Any:
        """What block ``index`` is trained on; ``axis`` is 0 where every seed has data of its own."""
        return self.rehearse(tasks, index, axis) if self.rehearse else tasks[index]

    def params_of(self, trainable: Params, extra: Any, selection: Selection) -> Params:
        """The params [k, ...] with which a selection answers."""
        trainable_k, extra_k = gather((trainable, extra), selection.active)
        return self.realise(trainable_k, extra_k, selection.variant)
