"""Growing pools: when there is no room for a task, the torus becomes wider, and components keep their values."""

import functools
import math

import jax
import numpy as np

from ftn_jax.core.mesh import over_seeds, to_host
from ftn_jax.core.torus import larger
from ftn_jax.lifelong.progress import Progress, place
from ftn_jax.lifelong.touched import Touched
from ftn_jax.methods import Method, Selection
from ftn_jax.pools.base import Pool, resized
from ftn_jax.training.state import State, Training, moved_moments, split_state, untrained

_SHARE = 1.5  # a pool grows by at least half its size, so that it grows seldom


def make_room(pool: Pool, method: Method, training: Training, progress: Progress, *, divisor: int = 1) -> Pool:
    """Enlarges the pool if some seed has too few free components for another mask; returns the pool.

    ``progress`` is then converted to the larger pool. Old components keep their params, moments and the method's extra
    state, and move to their new places, also in masks and counts. New components are untrained.

    Args:
      pool: the pool that the method trains.
      method: a method that reserves components.
      training: the settings of training.
      progress: changed in place.
      divisor: the new size is a multiple of it.
    """
    free = min(free_components(pool, method, progress))
    if free >= method.reserves:
        return pool
    size, places = larger(pool.size, max(pool.size - free + method.reserves, math.ceil(_SHARE * pool.size)), divisor)
    pool = resized(pool, size)
    places_and_none = np.append(places, size).astype(np.int32)
    progress.state = _grown(pool, progress.state, places, method=method, training=training)
    progress.masks = [place(_moved(mask, places_and_none)) for mask in to_host(progress.masks)]
    progress.imported = {
        name: place(_moved(mask, places_and_none)) for name, mask in to_host(progress.imported).items()
    }
    old = progress.touched
    progress.touched = touched = Touched(*old.counts.shape[:2], size)
    touched.counts[..., places] = old.counts
    touched.path = [[places[mask].tolist() for mask in path] for path in old.path]
    touched.steps = old.steps
    return pool


def free_components(pool: Pool, method: Method, progress: Progress) -> list[int]:
    """The number of components in no mask, for each seed."""
    taken = to_host([mask.active for mask in progress.held])
    seeds = len(progress.state.keys)
    every = [np.concatenate([np.zeros(0, np.int32), *(mask[seed] for mask in taken)]) for seed in range(seeds)]
    return [pool.size - len(np.unique(own[own < pool.size])) for own in every]


def _moved(mask: Selection, places: np.ndarray) -> Selection:
    """A selection with each component at its new place; ``places`` int32[H + 1] maps the padding H to the new H."""
    frozen = None if mask.frozen is None else places[mask.frozen]
    return mask._replace(active=places[mask.active], frozen=frozen)


@functools.partial(jax.jit, static_argnames=("method", "training"))
def _grown(pool, state, places, *, method, training):
    def one(pool, places, state):
        def put(old, new):
            return new.at[places].set(old, indices_are_sorted=True, unique_indices=True)

        params, extra = untrained(pool, method, state.keys)
        moments = moved_moments(put, state, params, method=method, training=training)
        params, extra = jax.tree.map(put, (state.params, state.extra), (params, extra))
        return split_state(State(params, moments, extra, state.keys), training.optimizer)

    return over_seeds(one, (None, None, 0))(pool, places, state)
