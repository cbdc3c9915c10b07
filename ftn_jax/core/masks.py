"""Masks that nobody searches for: blocks and all ones."""

import jax
import jax.numpy as jnp


def fixed_block(task: jax.Array | int, k: int) -> jax.Array:
    """The active indices int32[k] of a task's own block: the oracle of FixedMask."""
    return jnp.asarray(task, jnp.int32) * k + jnp.arange(k, dtype=jnp.int32)


def all_ones(size: int) -> jax.Array:
    """Every component, int32[H]."""
    return jnp.arange(size, dtype=jnp.int32)
