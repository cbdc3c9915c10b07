"""Generation with a KV cache, under adapters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.models import gpt2


def pad_prompts(prompts: list[list[int]], pad: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Token lists as (tokens int32[B, Q], valid bool[B, Q]), padded on the left to Q = ``columns``."""
    tokens = np.full((len(prompts), columns), pad, np.int32)
    valid = np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
        tokens[row, columns - len(prompt) :] = prompt
        valid[row, columns - len(prompt) :] = True
    return tokens, valid


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def generate(
    params: Any,
    adapters: Any,
    tokens: jax.Array,
    valid: jax.Array,
    *,
    config: gpt2.GPT2Config,
    steps: int,
    key: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
) -> jax.Array:
    """The continuation int32[B, steps] of prompts padded on the left; end-of-text fills what follows it.

    Args:
      params: of `gpt2.GPT2`.
      adapters: of each layer, see `gpt2.apart`; with a row axis, each row has its own. None is the base alone.
      tokens: int32[B, Q].
      valid: bool[B, Q], False on padding.
      config: the model's.
      steps: tokens to write; Q + steps may not exceed the model's positions.
      key: of sampled tokens; None writes the arg-max of each.
      temperature: that logits are divided by before a token is sampled.

    Raises:
      ValueError: more columns than the model has positions.
    """
    rows, columns = tokens.shape
    if columns + steps > config.n_positions:
        raise ValueError(f"{columns} + {steps} tokens exceed the model's {config.n_positions} positions")
    model = gpt2.GPT2(config)
    layers = gpt2.with_blocks_apart(params, config)

    def forward(i, tokens, cache, valid=None):
        hidden, cache = model.apply({"params": layers}, tokens, adapters, cache, valid)
        scores = gpt2.logits(params, hidden[:, -1])
        if key is None:
            return jnp.argmax(scores, axis=-1).astype(jnp.int32), cache
        return jax.random.categorical(jax.random.fold_in(key, i), scores / temperature).astype(jnp.int32), cache

    def unfinished(carry):
        i, token, done, _, _ = carry
        return (i < steps) & ~jnp.all(done | (token == config.eos_token_id))

    def step(carry):
        i, token, done, cache, written = carry
        done = done | (token == config.eos_token_id)
        following, cache = forward(i, token[:, None], cache)
        following = jnp.where(done, config.eos_token_id, following)
        return i + 1, following, done, cache, written.at[:, i].set(following)

    first, cache = forward(0, tokens, gpt2.init_cache(config, rows, columns + steps), valid)
    written = jnp.full((rows, steps), config.eos_token_id, jnp.int32).at[:, 0].set(first)
    return jax.lax.while_loop(unfinished, step, (1, first, jnp.zeros(rows, bool), cache, written))[-1]
