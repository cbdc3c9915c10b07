"""The contract of a method: a frozen record of functions (DESIGN.md section 4)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ftn_jax.pools.base import Params, Pool, gather


class Selection(NamedTuple):
    """The components that answer: their params [k, ...] and sorted indices int32[k]."""

    params_k: Params
    active: jax.Array


def select_rows(params: Params, active: jax.Array) -> Selection:
    """The selection of the rows ``active`` as they are."""
    return Selection(gather(params, active), active)


@dataclasses.dataclass(frozen=True)
class Configurer:
    """The settings of mask search that a run's methods share (``config.configurer``)."""

    k: int
    steps: int  # S
    learning_rate: float  # eta
    jitter: float


@dataclasses.dataclass(frozen=True)
class Method:
    """Which mask is used when, what is trained, and any extra loss.

    Attributes:
      select: (pool, params, extra, support, task, key) -> Selection. ``task`` is None unless ``oracle``.
      adapt_pool: the pool that the method trains, made from the config's.
      init: (pool, params, key) -> extra, a pytree with leaves [H, ...] of what the method keeps besides params.
      realise: (trainable, extra) -> params that the pool's losses take.
      penalty: (trainable_k, extra_k) -> f32[], added to the training loss.
      finish: (pool, params, extra, task_data, key) -> extra, at a task's end.
      every: how often select runs in training, "task" or "batch".
      oracle: told the task, in training and at evaluation.
    """

    select: Callable[..., Selection]
    adapt_pool: Callable[[Any], Pool] = lambda pool: pool
    init: Callable[[Pool, Params, jax.Array], Any] = lambda pool, params, key: {}
    realise: Callable[[Params, Any], Params] = lambda trainable, extra: trainable
    penalty: Callable[[Params, Any], jax.Array] = lambda trainable, extra: jnp.float32(0)
    finish: Callable[..., Any] = lambda pool, params, extra, task_data, key: extra
    every: str = "task"
    oracle: bool = False
