"""Generation with a KV cache and adapters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.models import decoder


def pad_prompts(prompts: list[list[int]], pad: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Token lists as (tokens int32[B, Q], valid bool[B, Q]), padded on the left to Q = ``columns``."""
    tokens = np.full((len(prompts), columns), pad, np.int32)
    valid = np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
        tokens[row, columns - len(prompt) :] = prompt
        valid[row, columns - len(prompt) :] = True
    return tokens, valid


def likely(scores: jax.Array, top_k: int | jax.Array, top_p: float | jax.Array) -> jax.Array:
    """Logits f32[B, V] with -inf on the tokens that top_k and top_p exclude.

    Args:
      scores: logits f32[B, V].
      top_k: how many of the likeliest tokens are kept, together with any that tie with the last of them; 0 keeps all.
      top_p: a token that is left is kept if the likelier tokens together have less than this probability; 1 keeps all.
    """
    ranked = -jnp.sort(-scores, axis=-1)
    count = jnp.where(top_k == 0, scores.shape[-1], top_k)
    allowed = ranked >= jnp.take(ranked, count - 1, axis=-1)[:, None]
    shares = jax.nn.softmax(jnp.where(allowed, ranked, -jnp.inf), axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    least = jnp.where(allowed & (before < top_p), ranked, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(scores >= least, scores, -jnp.inf)


@functools.partial(jax.jit, static_argnames=("config", "steps", "ends"))
def generate(
    params: Any,
    adapters: Any,
    tokens: jax.Array,
    valid: jax.Array,
    *,
    config: decoder.DecoderConfig,
    steps: int,
    ends: tuple[int, ...],
    key: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
    top_k: int | jax.Array = 0,
    top_p: float | jax.Array = 1.0,
) -> jax.Array:
    """The continuations int32[B, steps] of prompts padded on the left; a row is filled with ``ends[0]`` after its end.

    Args:
      params: of `decoder.Decoder`.
      adapters: one entry per layer, see `decoder.apart`; with a row axis, each row has its own. None is the base alone.
      tokens: the prompts, int32[B, Q].
      valid: bool[B, Q], False on padding.
      config: of the decoder.
      steps: tokens to write; Q + steps may not exceed the model's positions.
      ends: tokens that end a row.
      key: for sampling; None always takes the likeliest token.
      temperature: logits are divided by it before sampling.
      top_k: see `likely`; applied after the temperature.
      top_p: likewise.

    Raises:
      ValueError: Q + steps exceeds the model's positions.
    """
    rows, columns = tokens.shape
    if columns + steps > config.positions:
        raise ValueError(f"{columns} + {steps} tokens exceed the model's {config.positions} positions")
    model = decoder.Decoder(config)
    layers = decoder.with_blocks_apart(params, config)
    ending = jnp.array(ends, jnp.int32)

    def ended(token):
        return (token[:, None] == ending[None]).any(axis=1)

    def forward(i, tokens, cache, valid=None):
        hidden, cache = model.apply({"params": layers}, tokens, adapters, cache, valid)
        scores = decoder.logits(params, hidden[:, -1])
        if key is None:
            return jnp.argmax(scores, axis=-1).astype(jnp.int32), cache
        scores = likely(scores / temperature, top_k, top_p)
        return jax.random.categorical(jax.random.fold_in(key, i), scores).astype(jnp.int32), cache

    def unfinished(carry):
        i, token, done, _, _ = carry
        return (i < steps) & ~jnp.all(done | ended(token))

    def step(carry):
        i, token, done, cache, written = carry
        done = done | ended(token)
        following, cache = forward(i, token[:, None], cache)
        following = jnp.where(done, ends[0], following)
        return i + 1, following, done, cache, written.at[:, i].set(following)

    first, cache = forward(0, tokens, decoder.init_cache(config, rows, columns + steps), valid)
    written = jnp.full((rows, steps), ends[0], jnp.int32).at[:, 0].set(first)
    return jax.lax.while_loop(unfinished, step, (1, first, jnp.zeros(rows, bool), cache, written))[-1]
