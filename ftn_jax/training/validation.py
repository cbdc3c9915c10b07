"""The best step of a block: its parameters are kept beside the optimizer's moments, and put back at the block's end.

What is kept is a part of the optimizer's state, with one entry for each seed. So it is gathered, written back, moved,
saved and restored as moments are.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftn_jax.core.mesh import over_seeds, to_host
from ftn_jax.methods import Method, Selection, Stage
from ftn_jax.methods.base import joined
from ftn_jax.pools.base import Pool


class Best(NamedTuple):
    """The state of an optimizer that `keep_best` returns."""

    inner: Any  # the state of the optimizer itself
    params: Any  # those of the best step of the block so far; zeros before the first validation
    loss: jax.Array  # f32[], the validation loss of that step; infinite before
    worse: jax.Array  # int32[], validations since


class KeepsBest(optax.GradientTransformation):
    """An optimizer whose state is `Best`."""


@functools.cache  # equal optimizers give the same object, since it is a static argument of compiled functions
def keep_best(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with `Best` as its state; its updates are the same."""
    if isinstance(optimizer, KeepsBest):
        return optimizer

    def init(params):
        return Best(optimizer.init(params), optax.tree.zeros_like(params), jnp.float32(jnp.inf), jnp.int32(0))

    def update(updates, state, params=None):
        updates, inner = optimizer.update(updates, state.inner, params)
        return updates, state._replace(inner=inner)

    return KeepsBest(init, update)


@jax.jit
def begun(state: Best) -> Best:
    """The state at a block's start, leaves [E, ...]: no step is the best yet."""
    return state._replace(loss=jnp.full_like(state.loss, jnp.inf), worse=jnp.zeros_like(state.worse))


@jax.jit
def judged(state: Best, params: Any, losses: jax.Array) -> Best:
    """The state after a validation: for each seed whose loss f32[E] is less than before, ``params`` are the best."""

    def one(state, params, loss):
        better = loss < state.loss
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, state.params)
        worse = jnp.where(better, 0, state.worse + 1)
        return Best(state.inner, kept, jnp.where(better, loss, state.loss), worse)

    return over_seeds(one, (0, 0, 0))(state, params, losses)


@jax.jit
def best_of(state: Best, params: Any) -> Any:
    """The params of each seed's best step; ``params`` where there was no validation."""

    def one(state, params):
        return jax.tree.map(lambda old, new: jnp.where(jnp.isfinite(state.loss), old, new), state.params, params)

    return over_seeds(one, (0, 0))(state, params)


def is_over(state: Best, patience: int) -> bool:
    """Whether every seed's last ``patience`` validations were no better than one before; 0 waits for all steps."""
    return patience > 0 and bool(np.min(to_host(state.worse)) >= patience)


@functools.partial(jax.jit, static_argnames=("method", "axis"))
def validation_loss(
    pool: Pool, params: Any, extra: Any, whole: Any, selection: Selection, batch: Any, *, method: Method, axis: Any
) -> jax.Array:
    """The loss f32[E] of a batch as at the block's end; arguments as in `ftn_jax.training.loop.train_chunk`."""

    def one(pool, params, extra, whole, selection, batch):
        if whole is None:
            return pool.active_loss(method.params_of(params, extra, selection), batch)
        stage = Stage(selection.variant, np.int32(1), np.int32(1), whole=whole)
        rows = joined(method.realise(params, extra, stage), method.beside(whole, selection, stage))
        return pool.active_loss(rows, batch)

    return over_seeds(one, (None, 0, 0, 0, 0, axis))(pool, params, extra, whole, selection, batch)
