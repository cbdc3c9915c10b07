"""Which of several masks fits a support batch best."""

from typing import Any

import jax
import jax.numpy as jnp

from ftn_jax.core.shortlist import least
from ftn_jax.methods.base import Selection, answering_rows
from ftn_jax.pools.base import Params, Pool, gather_padded

_BLOCK = 64  # components whose rows are gathered at a time


def best(pool: Pool, params: Params, masks: Selection, support: Any, *, shortlist: bool = True) -> Selection:
    """The one of the masks, leaves [M, ...], that leaves the least support loss; rows of H are no masks.

    Each comparison is one forward pass. If the pool has `slopes`, one gradient scores all masks, and only a shortlist
    is compared (`ftn_jax.core.shortlist.least`), beside the masks with frozen components: their own were trained where
    the frozen ones answered, which no slope at the empty mask foresees. Rows that are no masks cost nothing.

    Args:
      pool: the pool.
      params: leaves [H, ...].
      masks: as in `first_order_scores`.
      support: a batch.
      shortlist: False compares all masks.
    """

    def loss_of(number):
        mask = jax.tree.map(lambda leaf: leaf[number], masks)
        return pool.active_loss(answering_rows(params, mask), support)

    def first_order():
        return first_order_scores(pool, params, masks, support)

    there = masks.active[:, 0] < pool.size
    reusing = None if masks.frozen is None else masks.frozen[:, 0] < pool.size
    scores = first_order if shortlist and hasattr(pool, "slopes") else None
    number = least(loss_of, there, scores, unforeseen=reusing)
    return jax.tree.map(lambda leaf: leaf[number], masks)


def first_order_scores(pool: Any, params: Params, masks: Selection, support: Any) -> tuple[jax.Array, jax.Array]:
    """(The support loss f32[] without components, the scores f32[M] of the masks).

    A mask's score is <dL/dW, Delta W>: the sum of the slopes of its components, the frozen ones included.

    Args:
      pool: a pool with `slopes`.
      params: leaves [H, ...]; only the rows of the masks are read, a block at a time.
      masks: leaves [M, ...], padded with H. A mask's frozen components are active in others: tasks reuse only these.
      support: a batch.
    """
    without, slopes_of = pool.slopes(support)
    every = masks.active.reshape(-1)
    every = jnp.pad(every, (0, -len(every) % _BLOCK), constant_values=pool.size)
    last = jnp.max(jnp.where(every < pool.size, jnp.arange(1, len(every) + 1), 0))

    def note(block, slopes):
        own = jax.lax.dynamic_slice_in_dim(every, block * _BLOCK, _BLOCK)
        return slopes.at[own].set(slopes_of(gather_padded(params, own)), mode="drop")

    slopes = jax.lax.fori_loop(0, -(-last // _BLOCK), note, jnp.zeros(pool.size, without.dtype))
    parts = [part for part in (masks.active, masks.frozen) if part is not None]
    return without, sum(slopes.at[part].get(mode="fill", fill_value=0).sum(1) for part in parts)  # pyright: ignore
