"""The contract of a family of bases (`ftn_jax.models.families`), as checks."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.models import decoder, pretrained
from ftn_jax.models.config_json import decoder_config
from ftn_jax.models.decoder import DecoderConfig
from ftn_jax.models.families import Family, family_of
from ftn_jax.testing.expect import expect, expect_near

_ROWS, _COLUMNS, _INNER = 2, 7, 3  # rows and columns of the tokens, inner dimensions of the adapters
_MATTERS = 1e-3  # how much logits have to change to count as affected


class FamilyCase(NamedTuple):
    """A small base of a family, with random weights."""

    family: Family
    raw: Mapping[str, Any]  # its config.json
    config: DecoderConfig
    params: Any
    tokens: np.ndarray  # int32[B, Q]


def family_case(raw: Mapping[str, Any], *, seed: int = 0) -> FamilyCase:
    """A base with random weights and the shape of a ``config.json``; arguments as in `check_family`.

    Raises:
      InputError: the ``config.json`` is refused.
    """
    where = f"{raw.get('model_type')!r} that is checked"
    config, rng = decoder_config(dict(raw), where), np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        scale = leaf.shape[-2] ** -0.5 if name == "kernel" else {"embed": 0.5, "head": 0.5}.get(name, 0.1)
        return jnp.asarray(scale * rng.standard_normal(leaf.shape) + (name == "scale"), jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, decoder.abstract_params(config))
    tokens = rng.integers(0, config.vocabulary, (_ROWS, min(_COLUMNS, config.positions)), np.int32)
    return FamilyCase(family_of(raw, where), raw, config, params, tokens)


def check_family(config: Mapping[str, Any], *, seed: int = 0) -> None:
    """Checks a registered family against its contract, on a base with random weights.

    This can't tell whether the family computes what its authors intended: see `check_base`.

    Args:
      config: a ``config.json`` of the family, of a small base with odd sizes; its ``model_type`` names the family.
      seed: of the weights.

    Raises:
      AssertionError: says which rule is broken.
      InputError: the family is not registered, or refuses the ``config.json``.
    """
    case = family_case(config, seed=seed)
    for check in FAMILY_CHECKS:
        check(case)


def check_base(
    folder: str | os.PathLike, tokens: np.ndarray, logits: np.ndarray, valid: np.ndarray | None = None
) -> None:
    """Compares the logits of a checkpoint, read by its family, with those of another implementation.

    Args:
      folder: in Hugging Face format, as transformers saves a model and its tokenizer.
      tokens: int32[B, Q], padded on the right.
      logits: f32[B, Q, V], computed from them by transformers.
      valid: bool[B, Q], False on padding; None: there is none.

    Raises:
      AssertionError: the logits differ by more than 1e-4.
      InputError: the checkpoint is refused.
    """
    base = pretrained.load(str(folder))
    real = np.ones(np.shape(tokens), bool) if valid is None else valid
    found = np.asarray(_logits(base.config, base.params, tokens))
    expect_near(found[real], logits[real], f"logits of {folder}", rtol=0, atol=1e-4)


def every_parameter_has_a_tensor_of_its_own(case: FamilyCase) -> None:
    named = case.family.tensors(case.config)
    paths = jax.tree_util.tree_leaves_with_path(decoder.abstract_params(case.config))
    wanted = {tuple(key.key for key in path) for path, _ in paths} - {("head",)}
    missing = sorted(".".join(path) for path in wanted - named.keys())
    expect(not missing, f"the family names no tensor for {', '.join(missing)}")
    strange = sorted(".".join(path) for path in named.keys() - wanted)
    expect(not strange, f"the family names tensors for {', '.join(strange)}, which the decoder does not have")
    names = ["lm_head.weight", *(name for name, _ in named.values())]  # the first is the head's in all families
    twice = sorted({name for name in names if names.count(name) > 1})
    expect(not twice, f"the family names {', '.join(twice)} for several parameters")
    for path, (name, _) in named.items():
        numbered = name.count("{}") == (path[0] == "h")
        expect(numbered, f"tensor {name!r} of {'.'.join(path)}: expected {{}} for the layer's number in blocks only")
    full = case.family.named.endswith(case.family.blocks)
    expect(full, f"a block's full name is {case.family.named!r}, its tensors begin with {case.family.blocks!r}")


def token_by_token_is_all_at_once(case: FamilyCase) -> None:
    """Decoding with a cache of keys and values, as generation does, gives the same logits."""
    whole, single = (f(case.config, case.params, case.tokens) for f in (_logits, _logits_by_token))
    expect_near(single, whole, "logits token by token, with a cache", rtol=0, atol=1e-4)


def an_adapter_is_its_product_added_to_the_kernels(case: FamilyCase) -> None:
    """On every module that the family names; an adapter of any of them has to change the logits."""
    rng, params, config = np.random.default_rng(1), case.params, case.config
    adapters = {
        module: tuple(0.3 * rng.standard_normal((config.layers, _INNER, width)).astype(np.float32) for width in widths)
        for module, widths in config.modules.items()
    }
    deltas = {module: np.einsum("lki,lko->lio", a, b) for module, (a, b) in adapters.items()}
    merged = np.asarray(_logits(config, decoder.merged(params, deltas, config), case.tokens))
    found = _logits(config, params, case.tokens, adapters)
    expect_near(found, merged, "logits with adapters, and with their products added", rtol=0, atol=1e-3)
    for module in adapters:
        rest = {name: delta for name, delta in deltas.items() if name != module}
        without = _logits(config, decoder.merged(params, rest, config), case.tokens)
        expect(np.abs(merged - without).max() > _MATTERS, f"an adapter of {module} changes no logits")


FAMILY_CHECKS: tuple[Callable[[FamilyCase], None], ...] = (
    every_parameter_has_a_tensor_of_its_own,
    token_by_token_is_all_at_once,
    an_adapter_is_its_product_added_to_the_kernels,
)


@functools.partial(jax.jit, static_argnames="config")
def _logits(config, params, tokens, adapters=None):
    hidden, _ = decoder.Decoder(config).apply({"params": params}, tokens, adapters)
    return decoder.logits(params, hidden)


@functools.partial(jax.jit, static_argnames="config")
def _logits_by_token(config, params, tokens):
    model, layers = decoder.Decoder(config), decoder.with_blocks_apart(params, config)

    def step(cache, column):
        hidden, cache = model.apply({"params": layers}, column[:, None], None, cache)
        return cache, decoder.logits(params, hidden[:, 0])

    _, found = jax.lax.scan(step, decoder.init_cache(config, *tokens.shape), tokens.T)
    return found.swapaxes(0, 1)
