"""One decoder in Flax for all families of language models; the differences between families are data in its config.

The base is frozen, so there is no dropout. Layers are stacked under a scan: a block's parameters are [L, ...]. Low-rank
updates of its linear modules are passed in as an argument.
"""

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS = {"gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True), "silu": jax.nn.silu}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: radians per position f32[head_width / 2], and a factor on cosines and sines."""

    frequencies: tuple[float, ...]
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and numerics of a decoder. ``dtype`` is the computation's; parameters keep their own dtype."""

    vocabulary: int  # rows of the embeddings
    positions: int  # the longest sequence, in tokens
    width: int  # d
    layers: int  # L
    heads: int
    kv_heads: int  # heads of keys and values; each serves heads / kv_heads query heads
    head_width: int
    inner: int  # width of the MLP's hidden layer
    # Role -> Hugging Face's name in a block. Roles: qkv (fused) or q, k, v; o; gate (of a gated MLP), up, down.
    linears: tuple[tuple[str, str], ...]
    block: str = "{}"  # full name of a block, with {} for its number
    biases: tuple[str, ...] = ()  # roles with a bias
    norm: str = "rms"  # or "layer"
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0  # added to a norm's scale
    post_norms: bool = False  # a norm on the outputs of attention and MLP, too
    qk_norm: bool = False  # a norm on each head's queries and keys
    activation: str = "silu"  # a name in `ACTIVATIONS`
    rope: Rope | None = None  # None: learned positions
    local: tuple[bool, ...] = ()  # which layers see only the last ``window`` tokens, the current one included; (): none
    window: int = 0
    local_rope: Rope | None = None  # rotary positions of local layers, if they differ
    query_scale: float = 1.0  # factor on the products of queries and keys
    embedding_scale: float = 1.0
    tied: bool = True  # whether the head shares the embeddings' weights
    dtype: str = "float32"
    remat: bool = False  # gradient checkpointing: keep only a block's input for the backward pass

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """The linear modules of a block that an adapter may update: name -> (d_in, d_out)."""
        return {name: self.shape(role) for role, name in self.linears}

    def shape(self, role: str) -> tuple[int, int]:
        """(d_in, d_out) of a linear module."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "qkv": (self.width, queries + 2 * keys),
            "q": (self.width, queries),
            "k": (self.width, keys),
            "v": (self.width, keys),
            "o": (queries, self.width),
            "gate": (self.width, self.inner),
            "up": (self.width, self.inner),
            "down": (self.inner, self.width),
        }[role]


class Cache(NamedTuple):
    """Keys and values of the columns seen so far; all rows have the same length (prompts are padded on the left)."""

    # One [B, kv_heads, T, head_width] per layer, where T is the number of columns; or all of them stacked, [L, ...].
    keys: tuple[jax.Array, ...] | jax.Array
    values: tuple[jax.Array, ...] | jax.Array  # of the same shapes
    valid: jax.Array  # bool[B, T], False on padding and on columns not yet written
    length: jax.Array  # int32[], columns written so far


def init_cache(config: DecoderConfig, rows: int, columns: int, *, stacked: bool = False) -> Cache:
    """An empty cache for ``rows`` sequences of at most ``columns`` tokens, its layers apart or stacked."""
    shape = (rows, config.kv_heads, columns, config.head_width)
    zeros: Any = (jnp.zeros(shape, config.dtype),) * config.layers
    if stacked:
        zeros = jnp.zeros((config.layers, *shape), config.dtype)
    return Cache(zeros, zeros, jnp.zeros((rows, columns), bool), jnp.zeros((), jnp.int32))


class View(NamedTuple):
    """The inputs that layers of one kind share: the attention mask, and the rotary positions."""

    mask: jax.Array  # bool[B or 1, 1, Q, T]
    turns: tuple[jax.Array, jax.Array] | None  # cosines and sines [B or 1, Q, 1, head_width]


class Linear(nn.Module):
    """``x W + bias``, plus ``(x a^T) b`` if an adapter ``(a, b)`` is given.

    a: [K, d_in], b: [K, d_out]; or [B, K, ...], with one adapter for each row of x. An optional third array [B, K]
    scales the K inner dimensions of each row.
    """

    features: int
    bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, adapter=None):
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
        y = x @ kernel.astype(self.dtype)
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)[None, None]
        if adapter is not None:
            a, b, *gain = (leaf.astype(self.dtype) for leaf in adapter)
            inner = x @ jnp.swapaxes(a, -1, -2)
            for g in gain:
                inner = inner * g[:, None]
            y = y + inner @ b
        return y


class RMSNorm(nn.Module):
    """``x / rms(x) * (offset + scale)``, computed in float32 or wider."""

    epsilon: float
    offset: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.constant(1 - self.offset), (x.shape[-1],))
        wide = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        factor = self.offset + scale.astype(wide.dtype)
        return (wide * factor.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)


def norm(config: DecoderConfig, name: str) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(epsilon=config.norm_epsilon, dtype=config.dtype, name=name)
    return RMSNorm(config.norm_epsilon, config.norm_offset, config.dtype, name=name)


def turned(x: jax.Array, turns: tuple[jax.Array, jax.Array]) -> jax.Array:
    """x [B, Q, heads, d] with the channels (i, i + d / 2) of each head rotated as a pair by the position's angle."""
    cos, sin = turns
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


class Block(nn.Module):
    """Attention and MLP, each applied to the normed residual stream and added to it."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, adapters, local, views, cache, column):
        """x: [B, Q, d]; local: whether to take the second of two views, None if there is one; cache: (keys, values)."""
        c, names = self.config, dict(self.config.linears)
        view = views[0]
        if local is not None:
            view = jax.tree.map(lambda whole, near: jnp.where(local, near, whole), *views)

        def linear(role, x):
            return Linear(c.shape(role)[1], role in c.biases, c.dtype, name=role)(x, adapters.get(names[role]))

        def finished(name, y):
            return norm(c, f"{name}_post_norm")(y) if c.post_norms else y

        y, cache = self.attention(norm(c, "attn_norm")(x), linear, view, cache, column)
        x = x + finished("attn", linear("o", y))
        y = norm(c, "mlp_norm")(x)
        active = ACTIVATIONS[c.activation]
        inner = active(linear("gate", y)) * linear("up", y) if "gate" in names else active(linear("up", y))
        return x + finished("mlp", linear("down", inner)), cache

    def attention(self, x, linear, view, cache, column):
        c = self.config
        if "qkv" in dict(c.linears):
            q, k, v = jnp.split(linear("qkv", x), [c.heads * c.head_width, (c.heads + c.kv_heads) * c.head_width], -1)
        else:
            q, k, v = (linear(role, x) for role in "qkv")
        q, k, v = (part.reshape(*x.shape[:2], -1, c.head_width) for part in (q, k, v))
        if c.qk_norm:
            q, k = norm(c, "q_norm")(q), norm(c, "k_norm")(k)
        if view.turns is not None:
            q, k = turned(q, view.turns), turned(k, view.turns)
        axes = "bkgd"
        if cache is not None:
            axes = "bgkd"  # the products' order of axes; another would transpose the whole cache for every token
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(held, jnp.swapaxes(new, 1, 2), column, axis=2)
                for held, new in zip(cache, (k, v), strict=True)
            )
        wide = jnp.promote_types(c.dtype, jnp.float32)
        if c.heads == c.kv_heads:
            scores = jnp.einsum(f"bqgd,{axes}->bgqk", q, k) * c.query_scale
            scores = jnp.where(view.mask, scores.astype(wide), jnp.finfo(wide).min)
            weights = jax.nn.softmax(scores, axis=-1).astype(c.dtype)
            y = jnp.einsum(f"bgqk,{axes}->bqgd", weights, v)
        else:
            q = q.reshape(*x.shape[:2], c.kv_heads, -1, c.head_width)
            scores = jnp.einsum(f"bqgrd,{axes}->bgrqk", q, k) * c.query_scale
            scores = jnp.where(view.mask[:, None], scores.astype(wide), jnp.finfo(wide).min)
            weights = jax.nn.softmax(scores, axis=-1).astype(c.dtype)
            y = jnp.einsum(f"bgrqk,{axes}->bqgrd", weights, v)
        return y.reshape(*x.shape[:2], -1), None if cache is None else (k, v)


class Decoder(nn.Module):
    """The transformer up to the final norm; `logits` applies the head.

    Call: tokens int32[B, Q] -> (hidden [B, Q, d], cache). ``adapters`` maps names of ``config.modules`` to pairs
    (a [L, K, d_in], b [L, K, d_out]), or [L, B, K, ...] for one adapter per row. Without ``valid`` a batch has to be
    padded on the right, where the causal mask already hides the padding from every real token. With
    ``valid`` bool[B, Q] it may be padded anywhere, and positions count only the valid tokens.

    With a cache whose layers are apart, those of the params are too, since a loop over tokens would copy slices of the
    stack for every token: params are those of `with_blocks_apart`, and ``adapters`` is a list as returned by `apart`. A
    stacked cache goes with stacked layers; it compiles sooner, and is for few calls of many tokens each.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(self, tokens, adapters=None, cache: Cache | None = None, valid=None):
        c = self.config
        columns = tokens.shape[1]
        positions, seen, start = jnp.arange(columns)[None], valid, 0
        if cache is not None:
            valid = jnp.ones_like(tokens, bool) if valid is None else valid
            start = cache.length
            seen = jax.lax.dynamic_update_slice_in_dim(cache.valid, valid, start, axis=1)
        if valid is not None:
            before = 0 if cache is None else cache.valid.sum(1, keepdims=True)
            positions = jnp.maximum(before + jnp.cumsum(valid, axis=1) - 1, 0)
        embeddings = self.param("embed", nn.initializers.normal(0.02), (c.vocabulary, c.width))
        x = embeddings.astype(c.dtype)[tokens]
        if c.embedding_scale != 1:
            x = x * jnp.asarray(c.embedding_scale, c.dtype)
        if c.rope is None:
            learned = self.param("positions", nn.initializers.normal(0.02), (c.positions, c.width))
            x = x + learned.astype(c.dtype)[positions]
        if not c.tied:
            self.param("head", nn.initializers.normal(0.02), (c.vocabulary, c.width))
        extent = columns if seen is None else seen.shape[1]
        mask = (jnp.arange(columns)[:, None] + start >= jnp.arange(extent)[None])[None, None]
        if seen is not None:
            mask = mask & seen[:, None, None]
        views = self.views(positions, mask, seen)
        if cache is None or not isinstance(cache.keys, tuple):
            # Stacking every intermediate over the scan takes longer than computing the cheap ones again.
            policy = None if c.remat else jax.checkpoint_policies.dots_saveable
            layers = cast(Any, nn.scan)(
                nn.remat(Block, prevent_cse=False, policy=policy),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, nn.broadcast, nn.broadcast if cache is None else 0, nn.broadcast),
                length=c.layers,
            )
            local = jnp.array(c.local) if len(views) > 1 else None
            held, column = (None, None) if cache is None else ((cache.keys, cache.values), start)
            x, held = layers(c, name="h")(x, adapters or {}, local, views, held, column)
            if cache is not None:
                keys, values = held
                cache = cache._replace(keys=keys, values=values, valid=seen, length=jnp.int32(start + columns))
            return norm(c, "norm")(x), cache
        stored = []
        for i, layer in enumerate(zip(cache.keys, cache.values, strict=True)):
            view = views[c.local[i] if len(views) > 1 else 0]
            x, layer = Block(c, name=f"h_{i}")(x, adapters[i] if adapters else {}, None, [view], layer, start)
            stored.append(layer)
        keys, values = zip(*stored, strict=True)
        cache = cache._replace(keys=keys, values=values, valid=seen, length=jnp.int32(start + columns))
        return norm(c, "norm")(x), cache

    def views(self, positions, mask, seen):
        """One view if all layers are of one kind, else two: that of global layers, then that of local layers."""
        c = self.config

        def turns(rope):
            if rope is None:
                return None
            angles = positions[..., None].astype(jnp.float32) * jnp.array(rope.frequencies, jnp.float32)[None, None]
            angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None]
            cos, sin = ((rope.scale * f(angles)).astype(c.dtype) for f in (jnp.cos, jnp.sin))
            return cos, sin

        views = [View(mask, turns(c.rope))]
        if any(c.local):
            of_columns = jnp.arange(mask.shape[-1])[None] if seen is None else jnp.cumsum(seen, axis=1) - 1
            near = positions[:, :, None] - of_columns[:, None] < c.window
            views.append(View(mask & near[:, None], turns(c.local_rope or c.rope)))
        return views[1:] if c.local and all(c.local) else views


def apart(tree: Any, config: DecoderConfig) -> list:
    """A tree with leaves [L, ...] as a list of L trees, one per layer."""
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(config.layers)]


def with_blocks_apart(params: Any, config: DecoderConfig) -> dict:
    """The params of `Decoder` in the form that it takes with a cache: one entry per block."""
    blocks = {f"h_{i}": block for i, block in enumerate(apart(params["h"], config))}
    return {name: leaf for name, leaf in params.items() if name != "h"} | blocks


def logits(params: Any, hidden: jax.Array) -> jax.Array:
    """The head, computed in float32 or wider: hidden [..., d] -> logits f32[..., V]."""
    head, wide = params.get("head", params["embed"]), jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.einsum("...d,vd->...v", hidden, head.astype(hidden.dtype), preferred_element_type=wide)


def merged(params: Any, deltas: Mapping[str, jax.Array], config: DecoderConfig) -> Any:
    """The params with W + Delta W in place of W; ``deltas`` maps modules to [L, d_in, d_out]."""
    blocks = dict(params["h"])
    for role, name in config.linears:
        if name in deltas:
            blocks[role] = dict(blocks[role], kernel=blocks[role]["kernel"] + deltas[name])
    return dict(params, h=blocks)


def abstract_params(config: DecoderConfig) -> Any:
    """The shapes and dtypes (float32) of `Decoder`'s params, without their values."""
    model = Decoder(config)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])


def parameter_count(config: DecoderConfig) -> int:
    """The number of the base's parameters, without adapters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))
