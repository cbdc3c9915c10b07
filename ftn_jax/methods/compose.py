"""FTN-Compose: a new task reuses what earlier tasks have learned, and trains components of its own beside it."""

import jax
import jax.numpy as jnp

from ftn_jax.core.composition import MOST, helpful
from ftn_jax.core.configurer import kwta
from ftn_jax.core.errors import InputError
from ftn_jax.methods.base import Configurer, Given, Method, Selection
from ftn_jax.methods.claims import best
from ftn_jax.methods.masked import search_with
from ftn_jax.pools.base import Params, Pool, mean_losses


def compose(configurer: Configurer, *, kernel: int = 3, lateral_steps: int = 15, share: float = 1.0) -> Method:
    """FTN-Reserve whose tasks may reuse the components of earlier ones.

    When a task is installed, Algorithm 1 searches the masks of earlier tasks, one logit each, for those that help with
    the support batch (`ftn_jax.core.composition`): at most three, with at most 3 k components together. The task reuses
    them if, before any training, they certainly leave less loss than the base alone. They answer frozen beside the
    task's own components, which are chosen as FTN-Reserve chooses them. The optimizer never sees a reused row, so that
    Theorem 2.1 holds for reused tasks, too. A task's mask is its own components and those that it reuses; it is
    recovered as in FTN-Reserve.

    Args:
      share: of k, the components that a task has of its own where it reuses others; a task that reuses none has k.

    Raises:
      InputError: moments are to be kept.
    """
    if configurer.moments == "kept":
        raise InputError("configurer.moments is 'kept', expected 'fresh' where a mask is searched once per task")
    k = configurer.k
    few, reuses = max(1, round(share * k)), MOST * k
    find = search_with(configurer, kernel, lateral_steps)

    def install(pool, params, extra, given):
        held = given.held
        taken = jnp.zeros(pool.size, bool).at[held.active].set(True, mode="drop")
        found = find(pool, params, given.support, given.key, bias=jnp.where(taken, -jnp.inf, 0.0))
        reused = reusable(pool, params, given, size=reuses)
        own = jnp.concatenate([kwta(found.smoothed, few), jnp.full(k - few, pool.size, jnp.int32)])
        frozen = jnp.nonzero(reused, size=reuses, fill_value=pool.size)[0].astype(jnp.int32)
        return Selection(jnp.where(reused.any(), own, found.active), frozen=frozen)

    def select(pool, params, extra, given):
        return best(pool, params, given.held, given.support)

    return Method(select, install=install, reserves=k, reuses=reuses, exclusive=True)


def reusable(pool: Pool, params: Params, given: Given, *, size: int) -> jax.Array:
    """The components bool[H], ``size`` at most, of the held masks that together help with the support batch."""
    held = given.held
    assert held is not None and held.frozen is not None
    members = jnp.zeros((len(held.active), pool.size), bool)
    rows = jnp.arange(len(members))[:, None]
    for indices in (held.active, held.frozen):
        members = members.at[rows, indices].set(True, mode="drop")
    losses = mean_losses(pool, params, given.support)
    there = held.active[:, 0] < pool.size
    chosen = helpful(losses, members, there, most=MOST, size=size)
    return jnp.any(members & chosen[:, None], axis=0)
