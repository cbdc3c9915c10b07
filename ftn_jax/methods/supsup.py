"""SupSup (Wortsman et al., 2020): a frozen random network and one learned binary supermask per task.

The FTN paper does not say whether supermasks are over components or weights. `supsup` masks the H components, as all
other methods do; `supsup_weights` masks single weights, as SupSup's own code does.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ftn_jax.core.configurer import kwta
from ftn_jax.core.errors import InputError
from ftn_jax.core.masks import all_ones, kth_largest
from ftn_jax.methods.base import Configurer, Method, Selection

_SPREAD = 0.01  # standard deviation of the components' scores before training


def supsup(configurer: Configurer, *, signed: bool = False, widen: int = 1) -> Method:
    """Trains a score for each component; the k with the highest scores answer. All params stay at their init.

    A straight-through gradient passes the choice on to every score. Scores start as N(0, 0.01^2).
    Args and the errors of `Method.adapt_pool` are those of `supsup_weights`.
    """

    def draw(params, key):
        return [_SPREAD * jax.random.normal(key, (len(params["readout"]),))]

    def keep(scores):
        return jnp.zeros(scores.shape, bool).at[kwta(scores, configurer.k)].set(True)

    def apply(params, masks):
        (mask,) = masks
        return params | {"readout": params["readout"] * mask[:, None]}

    return _supermasks(configurer, signed, widen, draw=draw, keep=keep, signal=lambda scores: scores, apply=apply)


def supsup_weights(configurer: Configurer, *, signed: bool = False, widen: int = 1) -> Method:
    """Trains a score for each frozen weight; the mask keeps the weights in their layer's top half by |score|.

    A straight-through gradient passes the choice on to |score|. The masks cover the components' weight matrices
    [fan_in, fan_out]; biases and readout are not masked, and stay at their init. `Method.adapt_pool` raises InputError
    unless the pool is one of small networks.

    Args:
      configurer: the settings of mask search; k (only for `supsup`) and the number of tasks are used.
      signed: freeze the weights at sign(W) sqrt(2 / fan_in) instead of W.
      widen: factor on the networks' inner width.
    """

    def draw(params, key):
        weights = _weights(params)
        # Kaiming uniform with a = sqrt 5, as SupSup draws its scores.
        return [
            jax.random.uniform(k, w.shape, w.dtype, -(w.shape[-2] ** -0.5), w.shape[-2] ** -0.5)
            for k, w in zip(jax.random.split(key, len(weights)), weights, strict=True)
        ]

    def apply(params, masks):
        return _with_weights(params, [w * mask for w, mask in zip(_weights(params), masks, strict=True)])

    return _supermasks(configurer, signed, widen, draw=draw, keep=top_half, signal=jnp.abs, apply=apply)


def _supermasks(
    configurer: Configurer,
    signed: bool,
    widen: int,
    *,
    draw: Callable,
    keep: Callable,
    signal: Callable,
    apply: Callable,
) -> Method:
    """A method that trains scores over frozen params, and stores the supermask of each finished task.

    Recovery takes the stored supermask with the least support loss.

    Args:
      configurer: the settings of mask search; the number of tasks is used here.
      signed: as in `supsup_weights`.
      widen: as in `supsup_weights`.
      draw: (params, key) -> fresh scores, a list of f32[H, ...].
      keep: scores f32[H, ...] -> the supermask, bool of the same shape.
      signal: scores -> the function of them that gets the mask's gradient.
      apply: (params, masks) -> the masked params.
    """

    def adapt_pool(pool):
        if not hasattr(pool, "width"):
            raise InputError("config.methods: supsup masks frozen random networks, expected pool.name=neurons")
        return pool.replace(width=pool.width * widen)

    def init(pool, params, key):
        scores = draw(params, key)
        if signed:
            params = _with_weights(params, [jnp.sign(w) * (2 / w.shape[-2]) ** 0.5 for w in _weights(params)])
        masks = [jnp.zeros((len(s), configurer.tasks, *s.shape[1:]), bool) for s in scores]
        return scores, {"frozen": params, "supermasks": masks}

    def through(scores):
        """The supermask in floats, with the gradient of the signal."""
        signals = signal(scores)
        # The difference is exactly zero. Added in another order, the mask would be rounded.
        return keep(scores).astype(scores.dtype) + (signals - jax.lax.stop_gradient(signals))

    def realise(scores, extra, stage):
        """The params under the variant's stored supermask; before it is stored, under the one of the scores."""
        return masked(scores, extra, stage.variant)

    def masked(scores, extra, variant):
        stored = [masks[:, variant] for masks in extra["supermasks"]]
        masks = [
            jnp.where(mask.any(), mask.astype(score.dtype), through(score))
            for mask, score in zip(stored, scores, strict=True)
        ]
        return apply(extra["frozen"], masks)

    def install(pool, scores, extra, given):
        return Selection(all_ones(pool.size), _stored(extra).sum().astype(jnp.int32))

    def select(pool, scores, extra, given):
        def loss(variant):
            return pool.active_loss(masked(scores, extra, variant), given.support)

        losses = jnp.where(_stored(extra), jax.lax.map(loss, jnp.arange(configurer.tasks)), jnp.inf)
        return Selection(all_ones(pool.size), jnp.argmin(losses).astype(jnp.int32))

    def finish(pool, scores, extra, task_data, selection, key):
        slot = _stored(extra).sum()
        masks = [stored.at[:, slot].set(keep(score)) for stored, score in zip(extra["supermasks"], scores, strict=True)]
        fresh, _ = init(pool, extra["frozen"], key)
        return fresh, extra | {"supermasks": masks}

    return Method(select, install=install, adapt_pool=adapt_pool, init=init, realise=realise, finish=finish)


def top_half(scores: jax.Array) -> jax.Array:
    """bool, shaped as ``scores`` f32[..., fan_in, fan_out]: the top half of each layer by |score|.

    The half is rounded up; among equal scores the first are taken.
    """
    size = math.prod(scores.shape[-2:])
    half = -(-size // 2)
    # Nonnegative floats are ordered like their bits as integers. On the CPU bisection is ten times as fast as a sort.
    bits = jax.lax.bitcast_convert_type(jnp.abs(scores), jnp.int32).reshape(*scores.shape[:-2], size)
    last = kth_largest(bits, half, 31)
    above = bits > last
    earliness = size - 1 - jax.lax.broadcasted_iota(jnp.int32, bits.shape, bits.ndim - 1)
    earliness = jnp.where(bits == last, earliness, -1)
    left = half - above.sum(-1, keepdims=True)
    return (above | (earliness >= kth_largest(earliness, left, size.bit_length()))).reshape(scores.shape)


def _stored(extra):
    """bool[N]: which supermasks are stored. A finished one is never empty."""
    masks = extra["supermasks"][0]
    return masks.any(axis=(0, *range(2, masks.ndim)))


def _weights(params):
    return [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 2]


def _with_weights(params, weights):
    leaves, structure = jax.tree.flatten(params)
    remaining = iter(weights)
    return jax.tree.unflatten(structure, [next(remaining) if leaf.ndim > 2 else leaf for leaf in leaves])
