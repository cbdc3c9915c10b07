"""Why a loss is not finite: draws the batch again and examines it, before blaming the learning rate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.errors import NonFiniteLoss
from ftn_jax.models.pretrained import Base
from ftn_jax.pools.base import Pool
from ftn_jax.training.state import TRAIN, Training, fold

_SHOWN = 60  # characters of a text
DIVERGED = "expected a finite number: lower config.optimizer.learning_rate"


def cause_of(
    error: NonFiniteLoss,
    pool: Pool,
    training: Training,
    data: Any,
    key: jax.Array,
    base: Base | None,
    *,
    axis: int | None = None,
    feed: Callable[[int, int, int], Any] | None = None,
) -> str:
    """The cause in words, found by examining the batch whose loss was not finite.

    Args:
      error: says which batch it was.
      pool: the pool that was trained on it.
      training: the settings of the training.
      data: what the block was trained on.
      key: the random key of the seed.
      base: the base of the pool, if it has one.
      axis: 0 if every seed has its own data, else None.
      feed: as in `ftn_jax.training.loop.train_task`.
    """
    batch = _batch_again(error, training, data, key, axis, feed)
    at = _first_not_finite(batch)
    if at:
        return f"example {at[1]} of its batch has a value in {at[0]} that is not finite"
    if base is not None:
        ids = np.concatenate([np.asarray(batch.tokens), np.asarray(batch.labels)], axis=1)
        bad = np.argwhere((ids < 0) | (ids >= base.config.vocabulary))
        if bad.size:
            return (
                f"example {bad[0, 0]} of its batch has the token id {ids[tuple(bad[0])]}, and base {base.name!r} has "
                f"embeddings for {base.config.vocabulary} tokens"
            )
    bad = np.flatnonzero(~np.isfinite(np.asarray(_losses_without_components(pool, key, batch))))
    if bad.size:
        text = f": {base.tokens.text(np.asarray(batch.tokens)[bad[0]].tolist())[:_SHOWN]!r}" if base else ""
        alone = f"base {base.name!r} alone" if base else "no component at all"
        return f"example {bad[0]} of its batch has no finite loss under {alone}{text}"
    return f"every example of its batch had a finite loss before training; {DIVERGED}"


@jax.jit
def _losses_without_components(pool: Pool, key: jax.Array, batch: Any) -> jax.Array:
    return pool.example_losses(pool.init(key), jnp.zeros(0, jnp.int32), batch)[0]


def _batch_again(error: NonFiniteLoss, training: Training, data: Any, key: jax.Array, axis: Any, feed: Any) -> Any:
    step = error.step - 1
    key = fold(key, TRAIN, error.task, step, 0)
    if axis == 0:
        data = jax.tree.map(lambda leaf: leaf[error.seed], data)
    if feed is None:
        return data.batch(key, training.batch)
    length = min(training.chunk, training.steps - error.first)
    given = feed(error.first, length, training.batch)
    read = jax.tree.map(lambda leaf: leaf[error.seed, step - error.first], given)
    return data.mix(key, read, training.batch) if hasattr(data, "mix") else read


def _first_not_finite(batch: Any) -> tuple[str, int] | None:
    """The name of the first leaf with a number that is not finite, and the example that has it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            bad = np.argwhere(~np.isfinite(np.asarray(leaf)))
            if bad.size:
                return jax.tree_util.keystr(path, simple=True), int(bad[0, 0])
    return None
