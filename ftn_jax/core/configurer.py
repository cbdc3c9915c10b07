"""The mask configurer: Algorithm 1 (SmoothKWTA) of Functional Task Networks.

It proposes logits by gradient, smooths them on a torus and takes the k winners. The same cold-started call installs a
mask in training and recovers it at evaluation. Everything here is pure, and all it needs of a model is a function from
masks to losses.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftn_jax.core.torus import smooth


class MaskProposal(NamedTuple):
    """The result of `smooth_kwta`."""

    logits: jax.Array  # [H], relative to their start, after the S steps and the jitter
    smoothed: jax.Array  # [H], after the lateral steps and the bias; the winners are its k largest values
    active: jax.Array  # int32[k], sorted
    state: Any = ()  # state of the proposal's optimizer after the S steps

    @property
    def mask(self) -> jax.Array:
        """The binary mask bool[H]."""
        return jnp.zeros(self.smoothed.shape, bool).at[self.active].set(True)


def whole_vector(learning_rate: float | jax.Array) -> optax.GradientTransformation:
    """Updates -eta g / rms(g): one scale for all logits, whereas Adam's first step takes the sign of each.

    The components' gradients keep their proportions, so that smoothing weighs them as votes. At S = 1 the proposal is
    proportional to the gradient, and eta does not matter. A gradient of zeros gives updates of zeros.
    """

    def update(gradient, params=None):
        largest = jnp.abs(gradient).max()
        shares = gradient / jnp.where(largest > 0, largest, 1)  # so that their squares do not underflow
        rms = jnp.sqrt(jnp.mean(shares**2))
        return -learning_rate * shares / jnp.where(rms > 0, rms, 1)

    return optax.stateless(update)


PROPOSALS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "gradient": whole_vector,
}
"""Name -> a function from eta to the optimizer of the mask logits."""


def named_proposal(name: str, learning_rate: float) -> optax.GradientTransformation:
    """The proposal of this name in `PROPOSALS`.

    Raises:
      ValueError: an unknown name.
    """
    if name not in PROPOSALS:
        raise ValueError(f"unknown proposal {name!r}, known: {', '.join(PROPOSALS)}")
    return PROPOSALS[name](learning_rate)


def propose(
    mask_loss: Callable[[jax.Array], jax.Array],
    size: int,
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    state: Any = None,
    start: float = 0.5,
    dtype: jnp.dtype | str = jnp.float32,
) -> tuple[jax.Array, Any]:
    """S steps on sigmoid-relaxed mask logits (Algorithm 1, lines 2-5).

    Args:
      mask_loss: relaxed mask [H] -> loss f32[].
      size: H.
      steps: S.
      optimizer: turns gradients of the logits into steps; the paper's is Adam.
      state: the optimizer's state; None starts with a fresh one.
      start: the relaxed mask's value before the first step, between 0 and 1.
      dtype: of the logits.

    Returns:
      The logits [H] minus their initial value, and the optimizer's state.
    """
    origin = math.log(start / (1 - start))
    gradient = jax.grad(lambda moved: mask_loss(jax.nn.sigmoid(origin + moved)))

    def step(carry, _):
        moved, state = carry
        updates, state = optimizer.update(gradient(moved), state)
        return (moved + updates, state), None

    moved = jnp.zeros(size, dtype)
    state = optimizer.init(moved) if state is None else state
    (moved, state), _ = jax.lax.scan(step, (moved, state), length=steps)
    return moved, state


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
    learning_rate: float | None = None,
    proposal: str | optax.GradientTransformation = "adam",
    state: Any = None,
    start: float = 0.5,
    key: jax.Array | None = None,
    jitter: float = 0.0,
    bias: jax.Array | None = None,
    dtype: jnp.dtype | str = jnp.float32,
) -> MaskProposal:
    """Algorithm 1: propose, smooth, take k winners; the mask is always cold-started.

    Call it inside the jitted (and perhaps vmapped) function that builds ``mask_loss``.

    Args:
      mask_loss: relaxed mask [H] -> loss f32[].
      size: H; a square where ``lateral_steps`` > 0.
      k: number of winners.
      kernel: s, odd.
      lateral_steps: T; 0 is the KWTA-only ablation.
      steps: S.
      learning_rate: eta, for a proposal given by name; an optax transformation has its own learning rate.
      proposal: a name in `PROPOSALS`: "adam", the paper's, or "gradient" (`whole_vector`); or any optax transformation.
      state: the state of the proposal's optimizer from an earlier call; None starts with a fresh one.
      start: the value of the relaxed mask before the first step, from 1e-6 to 1 - 1e-6; the paper's is one half.
      key: for the jitter; required where ``jitter`` > 0. The key is consumed.
      jitter: standard deviation of the noise added to the logits before smoothing. Where all logits tie (LoRA's
        first task: B = 0), smoothed noise selects a compact blob at a random place.
      bias: [H], added after smoothing; -inf excludes a component.
      dtype: of the logits.

    Raises:
      ValueError: k outside 1..H, an even kernel, H not a square, a start outside 1e-6 ... 1 - 1e-6, an unknown
        proposal, a named proposal without a learning rate, an optax transformation with one, or jitter without a key.
    """
    if not 1e-6 <= start <= 1 - 1e-6:  # outside this range the sigmoid is flat in float32
        raise ValueError(f"a relaxed mask starts between 1e-6 and 1 - 1e-6, got {start}")
    if isinstance(proposal, str):
        if learning_rate is None:
            raise ValueError(f"the proposal {proposal!r} needs a learning_rate")
        proposal = named_proposal(proposal, learning_rate)
    elif learning_rate is not None:
        raise ValueError("a proposal that is an optax transformation has its own learning_rate")
    logits, state = propose(mask_loss, size, steps=steps, optimizer=proposal, state=state, start=start, dtype=dtype)
    if jitter:
        if key is None:
            raise ValueError(f"jitter {jitter} needs a key")
        logits = logits + jitter * jax.random.normal(key, logits.shape, logits.dtype)
    smoothed = smooth(logits, kernel=kernel, lateral_steps=lateral_steps)
    if bias is not None:
        smoothed = smoothed + bias
    return MaskProposal(logits, smoothed, kwta(smoothed, k), state)
