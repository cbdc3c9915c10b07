"""Rotary positions from a configuration, with their scalings: linear, Llama 3's, and YaRN (arXiv 2309.00071)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftn_jax.models.decoder import Rope
from ftn_jax.models.families import Family


def ropes(family: Family, fields: Any, width: int, positions: int) -> tuple[Rope, Rope | None]:
    """The rotary positions of a model, and those of its local layers if they differ (else None)."""
    if width % 2:
        raise fields.refuse("head_dim", width, "an even number, since positions rotate pairs")
    parameters, scaling = fields.get("rope_parameters"), fields.get("rope_scaling")
    for key, value in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if value is not None and not isinstance(value, dict):
            raise fields.refuse(key, value, "an object")
    if parameters and scaling:
        raise fields.refuse("rope_scaling", scaling, "none beside rope_parameters")
    theta, whole = fields.number("rope_theta", family.theta), scaling or parameters or {}
    if family.local_theta is None:
        return _rope(fields, whole, theta, width, positions), None
    near: Any = {}
    if parameters:
        kinds = ("full_attention", "sliding_attention")
        whole, near = (parameters.get(kind) or {} for kind in kinds)
        if parameters.keys() - set(kinds) or not isinstance(whole, dict) or not isinstance(near, dict):
            raise fields.refuse("rope_parameters", parameters, f"one object each for {' and '.join(kinds)}")
    local_theta = fields.number(*family.local_theta)
    return _rope(fields, whole, theta, width, positions), _rope(fields, near, local_theta, width, positions)


def _rope(fields: Any, given: Mapping[str, Any], theta: float, width: int, positions: int) -> Rope:
    """The rotary positions that the object ``rope_parameters`` describes."""
    kind = given.get("rope_type", given.get("type", "default"))
    known = {
        "default": set(),
        "linear": {"factor"},
        "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
        "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
                 "mscale_all_dim", "truncate"},
    }  # fmt: skip
    if not isinstance(kind, str) or kind not in known:
        raise fields.refuse("rope_type", kind, " or ".join(known))
    for key, value in given.items():
        neutral = value is None or (key, value) == ("partial_rotary_factor", 1)
        if key not in known[kind] | {"rope_type", "type", "rope_theta"} and not neutral:
            raise fields.refuse(f"rope_parameters[{key!r}]", value, f"only settings of rope_type {kind}")
    theta = fields.number("rope_theta", theta, given)
    if theta <= 1:
        raise fields.refuse("rope_theta", theta, "a number above 1")
    frequencies = theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    if kind == "default":
        return Rope(tuple(frequencies.tolist()))
    factor, scale = fields.number("factor", None, given), 1.0
    original = fields.number("original_max_position_embeddings", positions, given)
    if kind == "linear":
        frequencies = frequencies / factor
    elif kind == "llama3":
        low, high = (fields.number(f"{end}_freq_factor", None, given) for end in ("low", "high"))
        if high <= low:
            raise fields.refuse("high_freq_factor", high, f"more than low_freq_factor = {low}")
        turns = original * frequencies / (2 * math.pi)  # turns of each pair over a sequence of the original length
        kept = np.clip((turns - low) / (high - low), 0, 1)
        frequencies = frequencies * (kept + (1 - kept) / factor)
    else:
        frequencies, scale = _yarn(fields, given, frequencies, theta, width, factor, original)
    return Rope(tuple(frequencies.tolist()), scale)


def _yarn(fields, given, frequencies, theta, width, factor, original) -> tuple[np.ndarray, float]:
    """YaRN: keeps the frequencies of pairs that turn often within the original length, and lowers the others."""

    def attention(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    def pair_of(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(fields.number("beta_fast", 32, given)), pair_of(fields.number("beta_slow", 1, given))
    truncate = given.get("truncate", True)
    if truncate not in (True, False):
        raise fields.refuse("truncate", truncate, "true or false")
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    stretched = np.clip((np.arange(width // 2) - low) / (high - low if high != low else 0.001), 0, 1)
    frequencies = frequencies * (1 - stretched + stretched / factor)
    if given.get("attention_factor") is not None:
        return frequencies, fields.number("attention_factor", 1, given)
    if given.get("mscale") and given.get("mscale_all_dim"):
        mscale, of_all = fields.number("mscale", 1, given), fields.number("mscale_all_dim", 1, given)
        return frequencies, attention(mscale) / attention(of_all)
    return frequencies, attention(1)
