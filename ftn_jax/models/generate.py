"""Greedy generation with a KV cache, under adapters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.models import gpt2


def pad_prompts(prompts: list[list[int]], pad: int, multiple: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Token lists as (tokens int32[B, Q], valid bool[B, Q]), padded on the left to a multiple."""
    columns = -(-max(map(len, prompts)) // multiple) * multiple
    tokens = np.full((len(prompts), columns), pad, np.int32)
    valid = np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
        tokens[row, columns - len(prompt) :] = prompt
        valid[row, columns - len(prompt) :] = True
    return tokens, valid


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def greedy(
    params: Any, adapters: Any, tokens: jax.Array, valid: jax.Array, *, config: gpt2.GPT2Config, steps: int
) -> jax.Array:
    """The arg-max continuation int32[B, steps] of prompts padded on the left; end-of-text fills what follows it.

    Args:
      params: of `gpt2.GPT2`.
      adapters: of `gpt2.GPT2`; with a row axis, each row has its own.
      tokens: int32[B, Q].
      valid: bool[B, Q], False on padding.
      config: the model's.
      steps: tokens to write; Q + steps may not exceed the model's positions.

    Raises:
      ValueError: more columns than the model has positions.
    """
    rows, columns = tokens.shape
    if columns + steps > config.n_positions:
        raise ValueError(f"{columns} + {steps} tokens exceed the model's {config.n_positions} positions")
    model = gpt2.GPT2(config)

    def forward(tokens, cache, valid=None):
        hidden, cache = model.apply({"params": params}, tokens, adapters, cache, valid)
        return jnp.argmax(gpt2.logits(params, hidden[:, -1]), axis=-1).astype(jnp.int32), cache

    def step(carry, _):
        token, done, cache = carry
        done = done | (token == config.eos_token_id)
        following, cache = forward(token[:, None], cache)
        return (jnp.where(done, config.eos_token_id, following), done, cache), token

    first, cache = forward(tokens, gpt2.init_cache(config, rows, columns + steps), valid)
    _, written = jax.lax.scan(step, (first, jnp.zeros(rows, bool), cache), length=steps)
    return written.T
