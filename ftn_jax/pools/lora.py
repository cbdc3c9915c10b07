"""The pool of LoRA components on a language model: Delta W(m) = sum_k m_k B_k A_k (section 2, eq. 1; appendix D)."""

import functools
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.models import decoder
from ftn_jax.models.scores import token_scores
from ftn_jax.pools.base import Params, Pool, Sums, drawn, gather, said_of
from ftn_jax.pools.prompts import check_room, prefix_of

Array = jax.Array | np.ndarray
_AT_ONCE = 32  # rows that share a cache of keys and values at one time; each copies it


class TokenBatch(NamedTuple):
    """Token sequences, padded on the right, with the positions that are scored.

    Column ``columns[b, p]`` of row b predicts the token ``labels[b, p]``; entries with ``weights`` 0 are not scored.
    """

    tokens: Array  # int32[B, Q]
    columns: Array  # int32[B, P]
    labels: Array  # int32[B, P]
    weights: Array  # f32[B, P]


WORDS = {"qkv": ("qkv", "q", "k", "v"), "all-linear": ("qkv", "q", "k", "v", "o", "gate", "up", "down")}
"""Words that stand for modules of any family -> the modules' roles: the paper's choice, and PEFT's word for all."""


def match_modules(patterns: Sequence[str], model: decoder.DecoderConfig) -> tuple[str, ...]:
    """The modules to adapt. A pattern is a word of `WORDS`, or a regex that matches modules' full names in every layer.

    Full names are Hugging Face's, such as ``h.0.attn.c_attn`` or ``model.layers.0.self_attn.q_proj``. A component spans
    the network's depth (section 2), so a pattern may not select single layers.

    Raises:
      InputError: a pattern matches nothing, or matches a module in some layers only.
    """
    chosen, n_layer, modules = {}, model.layers, dict(model.linears).values()
    first = model.block.format(0)
    for pattern in patterns:
        if pattern in WORDS:
            chosen |= {m: pattern for role, m in model.linears if role in WORDS[pattern] and m not in chosen}
            continue
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise InputError(f"config.pool.modules: {pattern!r} is not a regular expression ({error})") from error
        hits = {m: sum(bool(regex.search(f"{model.block.format(i)}.{m}")) for i in range(n_layer)) for m in modules}
        for module, count in hits.items():
            if 0 < count < n_layer:
                raise InputError(
                    f"config.pool.modules: {pattern!r} matches {module} in {count} of {n_layer} layers; a component "
                    f"spans all layers, as {model.block.format('[0-9]+')}.{module} does"
                )
        if not any(hits.values()):
            names = ", ".join([f"{first}.{m}" for m in modules])
            raise InputError(
                f"config.pool.modules: {pattern!r} is none of {', '.join(WORDS)} and matches none of {names}"
            )
        for module, count in hits.items():
            if count:
                chosen.setdefault(module, pattern)
    for module, pattern in chosen.items():
        logging.getLogger("ftn_jax").info(
            f"adapted: {model.block.format(f'0-{n_layer - 1}')}.{module} (by {pattern!r})"
        )
    return tuple(module for module in modules if module in chosen)


def build(context: Any, stream: Any, *, size: int, rank: int, modules: Sequence[str], b_std: float) -> "LoraPool":
    """Builds the pool of a config on ``context.base``.

    Raises:
      InputError: the base does not have the modules, or the stream is not one of text.
    """
    if stream.spec is None or not stream.spec.tokens:
        raise InputError(f"config.pool.name is 'lora', expected another for a stream of {said_of(stream.spec)}")
    return lora_pool(context.base, size=size, rank=rank, modules=modules, b_std=b_std)


def lora_pool(
    base: Any, *, size: int, rank: int = 4, modules: Sequence[str] = ("qkv",), b_std: float = 0.0
) -> "LoraPool":
    """A pool of LoRA components on a base.

    Args:
      base: a `ftn_jax.models.pretrained.Base`, from `ftn_jax.load_base`.
      size: H, the number of components; a square if masks are smoothed on the torus.
      rank: r of each component.
      modules: the modules to adapt; see `match_modules`.
      b_std: standard deviation of B's init; 0 is LoRA's standard.

    Raises:
      InputError: the base does not have the modules.
    """
    chosen = match_modules(modules, base.config)
    return LoraPool(base=base.params, model=base.config, size=size, rank=rank, modules=chosen, b_std=b_std)


@flax.struct.dataclass
class LoraPool(Pool):
    """H components of rank r on every layer of the adapted modules.

    Params: module -> {"a": [H, L, r, d_in], "b": [H, L, r, d_out]}; ``x @ a.T @ b`` is a component's output,
    so "b" is LoRA's B transposed. At init A is uniform as in PEFT (Kaiming, a = sqrt 5), and B is zero or Gaussian.
    """

    base: Any  # the frozen parameters of `decoder.Decoder`
    model: decoder.DecoderConfig = flax.struct.field(pytree_node=False)
    size: int = flax.struct.field(pytree_node=False)  # H
    rank: int = flax.struct.field(pytree_node=False)  # r
    modules: tuple[str, ...] = flax.struct.field(pytree_node=False)
    b_std: float = flax.struct.field(pytree_node=False, default=0.0)  # of B's init; 0 is LoRA's standard

    def init(self, key: jax.Array) -> Params:
        def uniform(key, shape):
            bound = shape[-1] ** -0.5
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        keys = jax.vmap(jax.random.split)(jax.random.split(key, len(self.modules)))
        shape = (self.size, self.model.layers, self.rank)
        inner, outer = ([(*shape, self.model.modules[m][end]) for m in self.modules] for end in (0, 1))
        a = drawn(uniform, keys[:, 0], inner)
        if self.b_std:
            b = drawn(lambda key, shape: self.b_std * jax.random.normal(key, shape), keys[:, 1], outer)
        else:
            b = [jnp.zeros(shape) for shape in outer]
        return {m: {"a": a[i], "b": b[i]} for i, m in enumerate(self.modules)}

    def example_losses(self, params, routing, batch, key=None):
        if jnp.issubdtype(routing.dtype, jnp.integer):
            stacked, gain = _stack(gather(params, routing)), None
        else:
            stacked, gain = _stack(params), routing
        losses, _ = self._token_losses(stacked, gain, batch)
        return (losses * batch.weights).sum(1), batch.weights.sum(1)

    def active_loss(self, params_k: Params, batch: TokenBatch, key: jax.Array | None = None) -> jax.Array:
        return self._loss(_stack(params_k), None, batch)

    def mask_loss(self, params: Params, batch: TokenBatch) -> Callable[[jax.Array], jax.Array]:
        stacked = _stack(params)
        return lambda mask: self._loss(stacked, mask, batch)

    def metrics(self, params_k: Params, batch: TokenBatch) -> Sums:
        """Cross-entropy in nats per target token, and the share of rows whose greedy output is the target.

        Greedy decoding writes the target, end of text included, if and only if the arg-max is right at every position
        given the target's previous tokens.
        """
        return _sums(*self._token_losses(_stack(params_k), None, batch), batch.weights)

    def metrics_in_context(self, params_k: Params, batch: TokenBatch, examples: TokenBatch) -> Sums:
        """`metrics` with ``examples`` in the prompt of each example of ``batch``.

        The model reads the examples one after another (see `prefix_of`), then the prompt of the example that is scored;
        positions run on. The examples are read once, and their keys and values are shared by the batch.
        """
        prefix, valid = prefix_of(examples, self.model.positions)
        read: Any = functools.partial(decoder.Decoder(self.model).apply, {"params": self.base})
        adapters = self.adapters(params_k)
        rows, columns = batch.tokens.shape
        cache = decoder.init_cache(self.model, 1, len(prefix) + columns, stacked=True)
        _, cache = read(prefix[None], adapters, cache, valid[None])

        def score(part):
            n = len(part.tokens)
            keys, values = (jnp.repeat(leaf, n, axis=1) for leaf in (cache.keys, cache.values))
            own = decoder.Cache(keys, values, jnp.repeat(cache.valid, n, axis=0), cache.length)
            hidden, _ = read(part.tokens, adapters, own)
            return self._scored(self.base, hidden, part)

        at_once = min(_AT_ONCE, rows)
        count = -(-rows // at_once)
        parts = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, count * at_once - rows), (0, 0))), batch)
        parts = jax.tree.map(lambda leaf: leaf.reshape(count, at_once, -1), parts)
        found = jax.lax.map(score, parts)
        losses, hits = (leaf.reshape(count * at_once, -1)[:rows] for leaf in found)
        return _sums(losses, hits, batch.weights)

    def check_context(self, examples: TokenBatch, batch: TokenBatch, *, drawn: int | None = None) -> None:
        """Raises InputError if the base has no room for the examples before each one of ``batch``; see `check_room`."""
        check_room(self.model.positions, examples, batch, drawn=drawn)

    def adapters(self, params_k: Params) -> dict:
        """Gathered components [k, ...], or [B, k, ...] with one set per row, as adapters of `decoder.Decoder`."""
        return _pairs(_stack(params_k))

    def slopes(self, batch: TokenBatch) -> tuple[jax.Array, Callable[[Params], jax.Array]]:
        """See `Pool`. One gradient in the adapted W gives the slopes of all components: <dL/dW, B_h A_h>."""
        model = self.model

        def loss(deltas):
            losses, _ = self._read(decoder.merged(self.base, deltas, model), {}, batch)
            return _mean(losses, batch)

        zeros = {module: jnp.zeros((model.layers, *model.modules[module])) for module in self.modules}
        without, gradient = jax.value_and_grad(loss)(zeros)

        def of(params_k):
            stacked = _stack(params_k).items()
            by_rank = sum((jnp.einsum("lki,lio->lko", p["a"], gradient[m]) * p["b"]).sum((0, 2)) for m, p in stacked)
            return jnp.reshape(by_rank, (-1, self.rank)).sum(1)

        return without, of

    def _loss(self, stacked, mask, batch):
        losses, _ = self._token_losses(stacked, mask, batch)
        return _mean(losses, batch)

    def _token_losses(self, stacked, mask, batch):
        """(cross-entropy [B, P], whether the arg-max is the label bool[B, P]); mask is None, [n] or [B, n]."""
        gain = None if mask is None else jnp.repeat(mask, self.rank, axis=-1)
        per_row = jax.tree.leaves(stacked)[0].ndim == 4
        if gain is not None and gain.ndim == 1:
            stacked = {m: {"a": p["a"] * gain[None, :, None], "b": p["b"]} for m, p in stacked.items()}
            gain = None
        ranks = {m: p["a"].shape[-2] for m, p in stacked.items()}
        merged = {m for m in stacked if not per_row and gain is None and self.merges(m, ranks[m], batch)}
        deltas = {m: jnp.einsum("lki,lko->lio", stacked[m]["a"], stacked[m]["b"]) for m in stacked if m in merged}
        base = decoder.merged(self.base, deltas, self.model)
        return self._read(base, _pairs({m: p for m, p in stacked.items() if m not in merged}, gain), batch)

    def _read(self, base, adapters, batch):
        """`_token_losses` of a base with adapters."""
        hidden, _ = decoder.Decoder(self.model).apply({"params": base}, batch.tokens, adapters)
        return self._scored(base, hidden, batch)

    def _scored(self, base, hidden, batch):
        """`_token_losses` from the decoder's output hidden [B, Q, d]."""
        hidden = jnp.take_along_axis(hidden, batch.columns[..., None], axis=1)
        return token_scores(base, hidden, batch.labels)

    def merges(self, module, rank, batch):
        """Whether a training pass costs less with W + Delta W than with the tokens passed through the inner dimensions.

        Each factor is in three products either way. But the gradient of W + Delta W, of which those of the factors are
        made, is a product more for each token: at a low rank that is most of what an adapter costs.
        """
        (d_in, d_out), tokens = self.model.modules[module], batch.tokens.size
        low_rank, merged = 3 * tokens * rank * (d_in + d_out), (3 * rank + tokens) * d_in * d_out
        # In bfloat16 the sum would round small updates away.
        return self.model.dtype == "float32" and low_rank > merged


def _sums(losses: jax.Array, hits: jax.Array, weights: Array) -> Sums:
    """The metrics of a batch from `LoraPool._token_losses`; rows in which nothing is scored are padding."""
    real = (weights > 0).any(1)
    exact = jnp.all(hits | (weights == 0), axis=1) & real
    return {
        "cross_entropy": ((losses * weights).sum(), weights.sum()),
        "exact_match": (exact.sum(dtype=jnp.float32), real.sum(dtype=jnp.float32)),
    }


def _mean(losses, batch):
    """The mean of losses [B, P] over the scored positions."""
    return (losses * batch.weights).sum() / batch.weights.sum()


def _stack(params: Params) -> Any:
    """[..., n, L, r, d] -> [L, ..., n * r, d] on every leaf."""

    def stack(leaf):
        *rows, n, layers, rank, width = leaf.shape
        return jnp.moveaxis(leaf, -3, 0).reshape(layers, *rows, n * rank, width)

    return jax.tree.map(stack, params)


def _pairs(stacked: Any, gain: jax.Array | None = None) -> dict:
    """Adapters of `decoder.Decoder`; a gain [B, K] scales the inner dimensions of each row."""
    if gain is None:
        return {module: (pair["a"], pair["b"]) for module, pair in stacked.items()}
    return {
        module: (pair["a"], pair["b"], jnp.broadcast_to(gain, (len(pair["a"]), *gain.shape)))
        for module, pair in stacked.items()
    }
