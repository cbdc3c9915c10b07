"""Examples in the prompt of other examples: their tokens one after another, without padding between them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.core.mesh import to_host


def prefix_of(examples: Any, most: int) -> tuple[jax.Array, jax.Array]:
    """The tokens that a model reads of several examples, one example after another, in their order.

    Of each example these are the tokens of its prompt and of its target, the token that ends it included.

    Args:
      examples: a `ftn_jax.pools.lora.TokenBatch` of n examples [n, Q].
      most: more tokens than this are never needed; see `check_room`.

    Returns:
      (tokens int32[P], valid bool[P]), padded on the left to P = min(n (Q + 1), most).
    """
    rows, columns = examples.tokens.shape
    sizes = whole_lengths(examples)
    scored = (jnp.asarray(examples.weights) > 0).sum(1)
    # The last target token is predicted but not read, so that it is only among the labels.
    last = jnp.take_along_axis(jnp.asarray(examples.labels), jnp.maximum(scored - 1, 0)[:, None], axis=1)
    at = jnp.arange(columns + 1)[None]
    tokens = jnp.pad(jnp.asarray(examples.tokens), ((0, 0), (0, 1)))
    tokens = jnp.where(at == sizes[:, None] - 1, last, tokens).ravel()
    kept = (at < sizes[:, None]).ravel()
    length, total = min(rows * (columns + 1), most), kept.sum()
    places = jnp.where(kept, length - total + jnp.cumsum(kept) - 1, length)
    prefix = jnp.zeros(length, jnp.int32).at[places].set(tokens, mode="drop")
    return prefix, jnp.arange(length) >= length - total


def whole_lengths(examples: Any) -> jax.Array:
    """The tokens of each example with the one that ends it, int32[..., n]; 0 for rows of padding."""
    last = jnp.where(jnp.asarray(examples.weights) > 0, jnp.asarray(examples.columns), -2).max(-1)
    return last + 2


def check_room(positions: int, examples: Any, others: Any, *, drawn: int | None = None) -> None:
    """Checks that ``examples`` fit before each one of ``others`` (of n and of m examples, leaves [..., n, ...]).

    Args:
      positions: of the base.
      examples: the examples that go into the prompt.
      others: the examples that follow them.
      drawn: how many of ``examples`` are drawn; they fit if the longest do. None: all of them.

    Raises:
      InputError: names the lengths, and what to lower.
    """
    sizes, longest = (np.asarray(whole_lengths(to_host(batch))) for batch in (examples, others))
    before = np.sort(sizes, axis=-1)[..., -drawn if drawn else None :]
    together, after = before.sum(-1).max(), longest.max()
    if together + after > positions:
        raise InputError(
            f"{before.shape[-1]} examples of {together} tokens together and one of {after} after them exceed the "
            f"{positions} positions of the base: lower config.configurer.support or config.stream.max_length"
        )
