"""The mask configurer: Algorithm 1 (SmoothKWTA) of Functional Task Networks.

Proposal by gradient, smoothing on a torus, k winners. The same cold-started call installs a mask in training and
recovers it at evaluation. Everything here is pure and knows only a function from masks to losses.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class MaskProposal(NamedTuple):
    """What `smooth_kwta` found."""

    logits: jax.Array  # [H], after the S Adam steps and the jitter
    smoothed: jax.Array  # [H], after the lateral steps and the bias: what the winners are taken from
    active: jax.Array  # int32[k], sorted


def propose(
    mask_loss: Callable[[jax.Array], jax.Array],
    size: int,
    *,
    steps: int,
    learning_rate: float,
    dtype: jnp.dtype | str = jnp.float32,
) -> jax.Array:
    """S Adam steps on sigmoid-relaxed mask logits, from zero (Algorithm 1, lines 2-5).

    Args:
      mask_loss: relaxed mask [H] -> loss f32[].
      size: H.
      steps: S.
      learning_rate: eta.
      dtype: of the logits.

    Returns:
      The logits [H].
    """
    adam = optax.adam(learning_rate)
    gradient = jax.grad(lambda logits: mask_loss(jax.nn.sigmoid(logits)))

    def step(carry, _):
        logits, state = carry
        updates, state = adam.update(gradient(logits), state)
        return (logits + updates, state), None

    logits = jnp.zeros(size, dtype)
    (logits, _), _ = jax.lax.scan(step, (logits, adam.init(logits)), length=steps)
    return logits


@functools.cache
def _lateral_operator(side: int, kernel: int, steps: int) -> np.ndarray:
    """C float64[D, D]: T circular box blurs of one axis as one circulant matrix."""
    blur = np.zeros((side, side))
    for offset in range(-(kernel // 2), kernel // 2 + 1):
        blur += np.roll(np.eye(side), offset, axis=0) / kernel
    return np.linalg.matrix_power(blur, steps)


def smooth(values: jax.Array, *, kernel: int, lateral_steps: int) -> jax.Array:
    """T circular convolutions of the D x D torus with a uniform s x s kernel (Algorithm 1, line 6).

    A uniform kernel is separable and T blurs of a circle are one circulant matrix C, so the whole is C M C^T.
    A kernel that is wider than the torus wraps around.

    Args:
      values: [H], H = D^2 where ``lateral_steps`` > 0.
      kernel: s, odd.
      lateral_steps: T; 0 returns ``values``.

    Raises:
      ValueError: an even kernel, or H that is not a square.
    """
    if lateral_steps == 0:
        return values
    side = math.isqrt(values.size)
    if side * side != values.size:
        raise ValueError(f"smoothing needs a square number of components, got {values.size}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"the smoothing kernel must be odd and positive, got {kernel}")
    operator = jnp.asarray(_lateral_operator(side, kernel, lateral_steps), values.dtype)
    matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return matmul(matmul(operator, values.reshape(side, side)), operator.T).reshape(-1)


def kwta(values: jax.Array, k: int) -> jax.Array:
    """The sorted indices int32[k] of the k largest values [H] (Algorithm 1, line 7).

    Raises:
      ValueError: k is not in 1..H.
    """
    if not 1 <= k <= values.size:
        raise ValueError(f"k must be between 1 and {values.size}, got {k}")
    return jnp.sort(jax.lax.top_k(values, k)[1]).astype(jnp.int32)


def smooth_kwta(
    mask_loss: Callable[[jax.Array], jax.Array],
    size: int,
    *,
    k: int,
    kernel: int,
    lateral_steps: int,
    steps: int,
    learning_rate: float,
    key: jax.Array | None = None,
    jitter: float = 0.0,
    bias: jax.Array | None = None,
    dtype: jnp.dtype | str = jnp.float32,
) -> MaskProposal:
    """Algorithm 1: propose, smooth, k winners; cold-started from zero logits.

    Call it inside a jitted (and perhaps vmapped) function that also builds ``mask_loss``.

    Args:
      mask_loss: relaxed mask [H] -> loss f32[].
      size: H; a square where ``lateral_steps`` > 0.
      k: winners.
      kernel: s, odd.
      lateral_steps: T; 0 is the KWTA-only ablation.
      steps: S.
      learning_rate: eta of the mask's Adam.
      key: for the jitter; required where ``jitter`` > 0. The key is consumed.
      jitter: standard deviation of the noise added to the logits before smoothing. Where all logits tie (LoRA's
        first task: B = 0), smoothed noise makes a compact blob whose place depends on the key.
      bias: [H], added after smoothing; -inf bars a component.
      dtype: of the logits.

    Raises:
      ValueError: k outside 1..H, an even kernel, H not a square, or jitter without a key.
    """
    logits = propose(mask_loss, size, steps=steps, learning_rate=learning_rate, dtype=dtype)
    if jitter:
        if key is None:
            raise ValueError(f"jitter {jitter} needs a key")
        logits = logits + jitter * jax.random.normal(key, logits.shape, logits.dtype)
    smoothed = smooth(logits, kernel=kernel, lateral_steps=lateral_steps)
    if bias is not None:
        smoothed = smoothed + bias
    return MaskProposal(logits, smoothed, kwta(smoothed, k))
