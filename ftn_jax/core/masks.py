"""Masks without a search: blocks, all ones, and the largest of many values."""

from typing import Any

import jax
import jax.numpy as jnp


def fixed_block(task: jax.Array | int, k: int) -> jax.Array:
    """The active indices int32[k] of the block reserved for a task: the oracle of FixedMask."""
    return jnp.asarray(task, jnp.int32) * k + jnp.arange(k, dtype=jnp.int32)


def all_ones(size: int) -> jax.Array:
    """The indices of all components, int32[H]."""
    return jnp.arange(size, dtype=jnp.int32)


def kth_largest(values: jax.Array, k: Any, bits: int) -> jax.Array:
    """The k-th largest of nonnegative values int32[..., n], as [..., 1]: bisection from the highest bit down.

    Args:
      values: each below 2^bits.
      k: an integer, or an array that broadcasts to [..., 1].
      bits: how many bits are searched.
    """

    def narrow(i, floor):
        higher = floor | (1 << (bits - 1 - i))
        return jnp.where((values >= higher).sum(-1, keepdims=True) >= k, higher, floor)

    return jax.lax.fori_loop(0, bits, narrow, jnp.zeros((*values.shape[:-1], 1), jnp.int32))
