"""GPT-2 in Flax: pre-norm blocks, layers stacked under a scan, low-rank updates passed as an argument.

The base is frozen, so there is no dropout. The layout of the parameters is Hugging Face's with the L layers
of a name stacked on axis 0: ``h.attn.c_attn.kernel`` is [L, d, 3d].
"""

import dataclasses
import operator
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

# The linear modules of a block that an adapter may update: name -> (input width, output width) in units of
# the model's width; None stands for the inner width of the MLP.
MODULES = {
    "attn.c_attn": (1, 3),
    "attn.c_proj": (1, 1),
    "mlp.c_fc": (1, None),
    "mlp.c_proj": (None, 1),
}


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Shape and numerics of a GPT-2. ``dtype`` is the computation's; parameters keep their own."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    layer_norm_epsilon: float = 1e-5
    eos_token_id: int = 50256
    dtype: str = "float32"
    remat: bool = False  # gradient checkpointing: keep nothing of a block for the backward pass but its input

    def widths(self, module: str) -> tuple[int, int]:
        """(d_in, d_out) of one of `MODULES`."""
        d_in, d_out = (self.n_inner if units is None else units * self.n_embd for units in MODULES[module])
        return d_in, d_out


def family_config(name: str, dtype: str = "float32", remat: bool = False) -> GPT2Config | None:
    """The shape of a published GPT-2 by its name on the hub, or None."""
    if name not in _FAMILY:
        return None
    layers, width, heads = _FAMILY[name]
    return GPT2Config(50257, 1024, width, layers, heads, 4 * width, dtype=dtype, remat=remat)


_FAMILY = {  # layers, width, heads
    "distilgpt2": (6, 768, 12),
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
}


class Cache(NamedTuple):
    """Keys and values of the columns seen so far; rows share one length (prompts are padded on the left)."""

    keys: tuple[jax.Array, ...]  # of each layer, [B, heads, T, d / heads]
    values: tuple[jax.Array, ...]
    valid: jax.Array  # bool[B, T], False on padding and on columns not yet written
    length: jax.Array  # int32[]


def init_cache(config: GPT2Config, rows: int, columns: int) -> Cache:
    """An empty cache for ``rows`` sequences of at most ``columns`` tokens."""
    shape = (rows, config.n_head, columns, config.n_embd // config.n_head)
    zeros = (jnp.zeros(shape, config.dtype),) * config.n_layer
    return Cache(zeros, zeros, jnp.zeros((rows, columns), bool), jnp.zeros((), jnp.int32))


class Linear(nn.Module):
    """``x W + bias``, plus ``(x a^T) b`` where an adapter ``(a, b)`` is given.

    a: [K, d_in], b: [K, d_out]; or with a leading row axis [B, K, ...], one adapter for each row of x. A third
    array [B, K], where there is one, scales the inner dimensions of each row.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x, adapter=None):
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = x @ kernel.astype(self.dtype) + bias.astype(self.dtype)[None, None]
        if adapter is not None:
            a, b, *gain = (leaf.astype(self.dtype) for leaf in adapter)
            inner = x @ jnp.swapaxes(a, -1, -2)
            for g in gain:
                inner = inner * g[:, None]
            y = y + inner @ b
        return y


def layer_norm(config: GPT2Config, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.layer_norm_epsilon, dtype=config.dtype, name=name)


class Attention(nn.Module):
    config: GPT2Config

    @nn.compact
    def __call__(self, x, adapters, cache, mask):
        """x [B, Q, d], cache None or (keys, values, column), mask bool[B or 1, 1, Q, T]."""
        c = self.config
        qkv = Linear(3 * c.n_embd, c.dtype, name="c_attn")(x, adapters.get("attn.c_attn"))
        q, k, v = (part.reshape(*x.shape[:2], c.n_head, -1) for part in jnp.split(qkv, 3, axis=-1))
        axes = "bkhd"
        if cache is not None:
            axes = "bhkd"  # as the products read it, or each would transpose the whole cache for every token
            keys, values, column = cache
            k = jax.lax.dynamic_update_slice_in_dim(keys, jnp.swapaxes(k, 1, 2), column, axis=2)
            v = jax.lax.dynamic_update_slice_in_dim(values, jnp.swapaxes(v, 1, 2), column, axis=2)
        scores = jnp.einsum(f"bqhd,{axes}->bhqk", q, k) * (c.n_embd // c.n_head) ** -0.5
        wide = jnp.promote_types(c.dtype, jnp.float32)
        scores = jnp.where(mask, scores.astype(wide), jnp.finfo(wide).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(c.dtype)
        y = jnp.einsum(f"bhqk,{axes}->bqhd", weights, v).reshape(x.shape)
        y = Linear(c.n_embd, c.dtype, name="c_proj")(y, adapters.get("attn.c_proj"))
        return y, None if cache is None else (k, v)


class MLP(nn.Module):
    config: GPT2Config

    @nn.compact
    def __call__(self, x, adapters):
        c = self.config
        x = Linear(c.n_inner, c.dtype, name="c_fc")(x, adapters.get("mlp.c_fc"))
        x = jax.nn.gelu(x, approximate=True)
        return Linear(c.n_embd, c.dtype, name="c_proj")(x, adapters.get("mlp.c_proj"))


class Block(nn.Module):
    config: GPT2Config

    @nn.compact
    def __call__(self, x, adapters, cache, column, mask):
        cache = None if cache is None else (*cache, column)
        y, cache = Attention(self.config, name="attn")(layer_norm(self.config, "ln_1")(x), adapters, cache, mask)
        x = x + y
        x = x + MLP(self.config, name="mlp")(layer_norm(self.config, "ln_2")(x), adapters)
        return x, cache


class GPT2(nn.Module):
    """The transformer up to the final norm; `logits` applies the tied head.

    Call: tokens int32[B, Q] -> (hidden [B, Q, d], cache). ``adapters`` maps names of `MODULES` to pairs
    (a [L, K, d_in], b [L, K, d_out]), or [L, B, K, ...] for one adapter a row. Without ``valid`` a batch is
    padded on the right, where the causal mask already hides the padding from every real token. With
    ``valid`` bool[B, Q] it may be padded anywhere, and positions count the valid tokens only.

    With a cache the layers are apart, since a loop over tokens would copy its slices of a stack for every token:
    params are those of `with_blocks_apart`, and ``adapters`` is a list as `apart` gives it.
    """

    config: GPT2Config

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
        extent = columns if seen is None else seen.shape[1]
        mask = (jnp.arange(columns)[:, None] + start >= jnp.arange(extent)[None])[None, None]
        if seen is not None:
            mask = mask & seen[:, None, None]
        wte = self.param("wte", nn.initializers.normal(0.02), (c.vocab_size, c.n_embd))
        wpe = self.param("wpe", nn.initializers.normal(0.02), (c.n_positions, c.n_embd))
        x = wte.astype(c.dtype)[tokens] + wpe.astype(c.dtype)[positions]
        if cache is None:
            # Stacking every intermediate over the scan costs more time than to compute the cheap ones again.
            policy = None if c.remat else jax.checkpoint_policies.dots_saveable
            layers = cast(Any, nn.scan)(
                nn.remat(Block, prevent_cse=False, policy=policy),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
                length=c.n_layer,
            )
            x, _ = layers(c, name="h")(x, adapters or {}, None, None, mask)
            return layer_norm(c, "ln_f")(x), None
        stored = []
        for i, layer in enumerate(zip(cache.keys, cache.values, strict=True)):
            x, layer = Block(c, name=f"h_{i}")(x, adapters[i] if adapters else {}, layer, start, mask)
            stored.append(layer)
        keys, values = zip(*stored, strict=True)
        cache = cache._replace(keys=keys, values=values, valid=seen, length=jnp.int32(start + columns))
        return layer_norm(c, "ln_f")(x), cache


def apart(tree: Any, config: GPT2Config) -> list:
    """What each of the L layers has of a tree with leaves [L, ...]."""
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(config.n_layer)]


def with_blocks_apart(params: Any, config: GPT2Config) -> dict:
    """The params of `GPT2` as it takes them with a cache."""
    blocks = {f"h_{i}": block for i, block in enumerate(apart(params["h"], config))}
    return {name: leaf for name, leaf in params.items() if name != "h"} | blocks


def logits(params: Any, hidden: jax.Array) -> jax.Array:
    """The tied head, in float32 at least: hidden [..., d] -> logits f32[..., V]."""
    wte, wide = params["wte"].astype(hidden.dtype), jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.einsum("...d,vd->...v", hidden, wte, preferred_element_type=wide)
