"""The scores of tokens under a base's head, without all of them in memory at once where a vocabulary is large."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftn_jax.models.decoder import logits

_MOST = 2**26  # numbers [B, P, V] that may be in memory at once: 256 MB in float32
_BLOCK = 2**14  # tokens of the vocabulary that are scored at once beyond that


def token_scores(params: Any, hidden: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy of each label in nats, and whether the label has the highest score: f32[B, P], bool[B, P].

    Scores of the whole vocabulary [B, P, V] would be the largest array of training where V is large. Beyond 256 MB they
    are computed by blocks of the vocabulary, once more for the gradient, and never stored.

    Args:
      params: of `ftn_jax.models.decoder.Decoder`.
      hidden: its output [B, P, d].
      labels: int32[B, P].
    """
    head = params.get("head", params["embed"])
    if labels.size * len(head) > _MOST:
        return _by_blocks(head, hidden, labels, _BLOCK)
    scores = logits(params, hidden)
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels), jnp.argmax(scores, -1) == labels


def _by_blocks(head: jax.Array, hidden: jax.Array, labels: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """`token_scores` with a sum of exponentials that is continued from block to block."""
    tokens, wide = len(head), jnp.promote_types(hidden.dtype, jnp.float32)
    size = min(size, tokens)

    @jax.checkpoint
    def block(carry, number):
        largest, total, of_label, best, best_token = carry
        first = jnp.minimum(number * size, tokens - size)  # the last block begins early, not to be a shorter one
        rows = jax.lax.dynamic_slice_in_dim(head, first, size)
        scores = jnp.einsum("...d,vd->...v", hidden, rows.astype(hidden.dtype), preferred_element_type=wide)
        token = jnp.broadcast_to(first + jnp.arange(size), scores.shape)
        scores = jnp.where(token >= number * size, scores, -jnp.inf)
        top = jax.lax.stop_gradient(scores).max(-1)
        above = jnp.maximum(largest, top)
        total = total * jnp.exp(largest - above) + jnp.exp(scores - above[..., None]).sum(-1)
        is_label = (token == labels[..., None]) & (token >= number * size)
        of_label = of_label + jnp.where(is_label, scores, 0).sum(-1)
        found = (first + scores.argmax(-1)).astype(best_token.dtype)
        best_token = jnp.where(top > best, found, best_token)
        return (above, total, of_label, jnp.maximum(best, top), best_token), None

    low, zero = jnp.full(labels.shape, -jnp.inf, wide), jnp.zeros(labels.shape, wide)
    start = low, zero, zero, low, jnp.zeros(labels.shape, jnp.int32)
    (above, total, of_label, _, best_token), _ = jax.lax.scan(block, start, jnp.arange(-(-tokens // size)))
    return above + jnp.log(total) - of_label, best_token == labels
