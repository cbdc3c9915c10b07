"""Writes components for other programs: as a PEFT LoRA adapter, or merged into their base.

By appendix D, Delta W = sum_k B_k A_k is one LoRA of rank k r.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from ftn_jax.core.errors import InputError
from ftn_jax.core.files import whole_folder
from ftn_jax.models.decoder import merged
from ftn_jax.models.families import FAMILIES
from ftn_jax.models.hub import first_line, loadable
from ftn_jax.models.pretrained import Base
from ftn_jax.models.writing import DTYPES, cast, save_like
from ftn_jax.pools.base import Params
from ftn_jax.pools.lora import LoraPool
from ftn_jax.pools.peft import CONFIG, ORIGIN, TENSORS

CARD = "README.md"
_ADAPTER = {CONFIG, TENSORS, ORIGIN, CARD}  # an adapter's folder with other files is never replaced


def write_peft(
    folder: str | os.PathLike,
    pool: LoraPool,
    params_k: Params,
    base: Base,
    origin: Mapping[str, Any],
    *,
    rank: int | None = None,
    dtype: str = "float32",
    base_name: str | None = None,
    card: str = "",
    overwrite: bool = False,
) -> float:
    """Writes components as one LoRA adapter that `peft.PeftModel.from_pretrained` can load.

    Args:
      folder: the folder to create; it appears under this name once it is complete.
      pool: the components' pool.
      params_k: the components, leaves [k, L, r, ...].
      base: the pool's base.
      origin: where the components come from; written to `ftn_mask.json` in the folder.
      rank: of the adapter; None is k r, which loses nothing. With a lower rank each module's update is replaced by the
        nearest of that rank (truncated SVD).
      dtype: of the tensors: "float32", "bfloat16" or "float16".
      base_name: the base's name or path for PEFT; None: see `ftn_jax.models.hub.loadable`.
      card: the text of the folder's README.md, if it gets one.
      overwrite: whether an existing adapter is replaced.

    Returns:
      The share of the update's squared norm that is lost to the rank.

    Raises:
      InputError: the folder exists or can't be written, the rank is above k r, or values are not finite.
    """
    folder = check_target(folder, overwrite=overwrite)
    check_dtype(dtype)
    pairs, lost = _pairs(folder, pool, params_k), 0.0
    whole = len(jax.tree.leaves(params_k)[0]) * pool.rank
    rank = whole if rank is None else rank
    if not 1 <= rank <= whole:
        raise InputError(f"rank is {rank}, expected 1 to {whole}, the rank of the components together")
    if rank < whole:
        pairs, lost = truncated(pairs, rank)
    family = FAMILIES[base.family]
    tensors = {}
    for module, pair in pairs.items():
        for side, stacked in zip("AB", pair, strict=True):
            for i, layer in enumerate(np.asarray(stacked, np.float32)):
                key = f"base_model.model.{family.prefix}{family.blocks.format(i)}.{module}.lora_{side}.weight"
                tensors[key] = cast(layer if side == "A" else layer.T, dtype, f"{folder}: {module}")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name or loadable(base.name),
        "target_modules": list(pool.modules),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": not family.transposed,
        "inference_mode": True,
    }
    with _new(folder, origin, card) as partial:
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        safetensors.numpy.save_file(tensors, partial / TENSORS, metadata={"format": "pt"})
    return lost


def write_merged(
    folder: str | os.PathLike,
    pool: LoraPool,
    params_k: Params,
    base: Base,
    origin: Mapping[str, Any],
    *,
    dtype: str = "float32",
    card: str = "",
    overwrite: bool = False,
) -> None:
    """Writes the base with W + Delta W in place of W: one folder in Hugging Face format, with the base's tokenizer.

    Args:
      folder: the folder to create; it appears under this name once it is complete.
      pool: the components' pool.
      params_k: the components, leaves [k, L, r, ...].
      base: the pool's base.
      origin: where the components come from; written to `ftn_mask.json` in the folder.
      dtype: of the weights: "float32", "bfloat16" or "float16". The sum is computed in float32 and rounded once.
      card: the text of the folder's README.md, if it gets one.
      overwrite: whether an earlier merged folder is replaced.

    Raises:
      InputError: the folder exists or can't be written, the base has moved, or values are not finite.
    """
    folder = check_target(folder, overwrite=overwrite, merged=True)
    check_dtype(dtype)
    # In NumPy: an accelerator would multiply in a lower precision.
    deltas = {
        module: np.matmul(a.swapaxes(1, 2).astype(np.float32), b.astype(np.float32))
        for module, (a, b) in _pairs(folder, pool, params_k).items()
    }
    params = merged(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), base.params), deltas, base.config)
    with _new(folder, origin, card) as partial:
        save_like(partial, base, params, dtype=dtype)


def _pairs(folder: pathlib.Path, pool: LoraPool, params_k: Params) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """module -> (a [L, K, d_in], b [L, K, d_out])."""
    pairs = {name: (np.asarray(a), np.asarray(b)) for name, (a, b) in pool.adapters(params_k).items()}
    if not all(np.isfinite(side).all() for pair in pairs.values() for side in pair):
        raise InputError(f"{folder}: the components have values that are not finite, and can't be exported")
    return pairs


@contextlib.contextmanager
def _new(folder: pathlib.Path, origin: Mapping[str, Any], card: str) -> Iterator[pathlib.Path]:
    """A folder to be filled, with `ftn_mask.json` and README.md in it."""
    try:
        with whole_folder(folder) as partial:
            (partial / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
            if card:
                (partial / CARD).write_text(card, encoding="utf-8")
            yield partial
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder} can't be written ({first_line(error)}): name another folder") from error


def check_dtype(dtype: str) -> None:
    """Raises InputError unless ``dtype`` is a type that can be written."""
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected {', '.join(DTYPES)}")


def check_target(folder: str | os.PathLike, *, overwrite: bool = False, merged: bool = False) -> pathlib.Path:
    """The absolute path of a folder, if an export may be written there; only another export is ever replaced.

    Args:
      folder: the folder.
      overwrite: whether an export of the same kind that is there may be replaced.
      merged: whether a merged base is to be written, not an adapter.

    Raises:
      InputError: the folder exists, and may not be replaced.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    try:
        there = folder.exists()
        found = {file.name for file in folder.iterdir()} if folder.is_dir() else {folder.name}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} can't be written ({first_line(error)}): name another folder") from error
    if not there:
        return folder
    if not overwrite:
        raise InputError(f"{folder} exists already: name another folder, or say that it may be overwritten")
    others = sorted(found - _ADAPTER)
    if merged and found and not {ORIGIN, "config.json"} <= found:
        raise InputError(f"{folder} has no {ORIGIN}, so no merge wrote it, and is not replaced: name another folder")
    if others and not merged:
        raise InputError(f"{folder} has {others[0]!r} beside an adapter's files and is not replaced: name another one")
    return folder


def truncated(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], rank: int) -> tuple[dict[str, Any], float]:
    """The nearest adapters of a lower rank to (a [L, K, d_in], b [L, K, d_out]), and the share of squared norm lost."""
    found, dropped, total = {}, 0.0, 0.0
    for module, (a, b) in pairs.items():
        # a^T b = Q_a (R_a R_b^T) Q_b^T, so the SVD is of a matrix of at most K x K.
        (q_a, r_a), (q_b, r_b) = (np.linalg.qr(side.astype(np.float64).swapaxes(1, 2)) for side in (a, b))
        u, s, vt = np.linalg.svd(r_a @ r_b.swapaxes(1, 2), full_matrices=False)
        kept = np.sqrt(s[:, None, :rank])
        sides = []
        for q, vectors in ((q_a, u), (q_b, vt.swapaxes(1, 2))):
            side = (q @ vectors[:, :, :rank] * kept).swapaxes(1, 2)
            # A module narrower than the rank has fewer directions, but all modules are written with the same rank.
            sides.append(np.pad(side, ((0, 0), (0, rank - side.shape[1]), (0, 0))).astype(np.float32))
        found[module] = tuple(sides)
        dropped, total = dropped + (s[:, rank:] ** 2).sum(), total + (s**2).sum()
    return found, float(dropped / total) if total else 0.0
