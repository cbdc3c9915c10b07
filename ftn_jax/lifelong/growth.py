"""A pool that grows: when a task finds no room, the torus becomes wider and every component keeps its bits."""

import functools
import math

import jax
import jax.numpy as jnp

from ftn_jax.core.mesh import over_seeds, to_host
from ftn_jax.core.torus import larger
from ftn_jax.lifelong.progress import Progress
from ftn_jax.lifelong.touched import Wandering
from ftn_jax.methods import Method
from ftn_jax.pools.base import Pool, resized
from ftn_jax.training.state import State, Training, map_moments, split_state, untrained

_SHARE = 1.5  # a pool grows by half at least, so that it seldom has to


def make_room(pool: Pool, method: Method, training: Training, progress: Progress, *, k: int, divisor: int = 1) -> Pool:
    """The pool, larger than it was where some seed has fewer than k components that no mask has.

    Then ``progress`` is of the larger pool: old components keep params, moments and what the method keeps of them, new
    ones are as before any training. Masks and counts are those of the same components at their new places.
    """
    assert method.claimed is not None
    taken = int(to_host(method.claimed(progress.state.extra)).sum(1).max())
    if pool.size - taken >= k:
        return pool
    size, places = larger(pool.size, max(taken + k, math.ceil(_SHARE * pool.size)), divisor)
    pool = resized(pool, size)
    progress.state, progress.selections = _grown(
        pool, progress.state, progress.selections, places, method=method, training=training
    )
    old = progress.wandering
    progress.wandering = wandering = Wandering(*old.counts.shape[:2], size)
    wandering.counts[..., places] = old.counts
    wandering.path = [[places[mask].tolist() for mask in path] for path in old.path]
    wandering.steps = old.steps
    for memory in progress.memories:
        memory.masks = [places[mask].tolist() for mask in memory.masks]
    return pool


@functools.partial(jax.jit, static_argnames=("method", "training"))
def _grown(pool, state, selections, places, *, method, training):
    optimizer = training.optimizer

    def one(pool, places, state, selections):
        def put(old, new):
            return new.at[places].set(old, indices_are_sorted=True, unique_indices=True)

        params, extra = untrained(pool, method, state.keys)
        moments = map_moments(put, optimizer, state.opt_state, optimizer.init(params))
        params, extra = jax.tree.map(put, (state.params, state.extra), (params, extra))
        moved = [s._replace(active=places[s.active].astype(jnp.int32)) for s in selections]
        return split_state(State(params, moments, extra, state.keys), optimizer), moved

    return over_seeds(one, (None, None, 0, 0))(pool, places, state, selections)
