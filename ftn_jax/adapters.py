"""Components as PEFT LoRA adapters, and back (appendix D: Delta W = sum_k B_k A_k is one LoRA of rank k r)."""

import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ftn_jax.errors import InputError
from ftn_jax.models import gpt2
from ftn_jax.pools.base import Params, gather, scatter
from ftn_jax.pools.lora import LoraPool

_CONFIG, _TENSORS, _ORIGIN = "adapter_config.json", "adapter_model.safetensors", "ftn_mask.json"
_NAME = re.compile(r"base_model\.model\.(?:transformer\.)?h\.(\d+)\.(.+)\.lora_([AB])\.weight")
# Settings under which an adapter is more than B A on the base's own weights, and the values that are harmless.
_PLAIN: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, [], ()),
    "trainable_token_indices": (None,),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}


def write_peft(
    folder: str | os.PathLike,
    pool: LoraPool,
    params_k: Params,
    base_name: str,
    origin: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes components as one LoRA adapter of rank k r that `peft.PeftModel.from_pretrained` loads.

    Args:
      folder: to make; it appears under its name when it is complete.
      pool: that they are of.
      params_k: leaves [k, L, r, ...].
      base_name: for ``base_model_name_or_path``.
      origin: for `ftn_mask.json` beside it: where the components are from.
      overwrite: replace a folder that is there.

    Raises:
      InputError: the folder is there already, or can't be written.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} exists already: name another folder, or say that it may be overwritten")
    rank = len(jax.tree.leaves(params_k)[0]) * pool.rank
    tensors = {}
    for module, pair in pool.adapters(params_k).items():
        for side, stacked in zip("AB", pair, strict=True):
            for i, layer in enumerate(np.asarray(stacked, np.float32)):
                key = f"base_model.model.transformer.h.{i}.{module}.lora_{side}.weight"
                tensors[key] = np.ascontiguousarray(layer if side == "A" else layer.T)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "target_modules": list(pool.modules),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": True,
        "inference_mode": True,
    }
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        try:
            (partial / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            (partial / _ORIGIN).write_text(json.dumps(origin, indent=2) + "\n")
            safetensors.numpy.save_file(tensors, partial / _TENSORS, metadata={"format": "pt"})
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{folder} can't be written ({error}): name another folder") from error


class Adapter(NamedTuple):
    """A LoRA adapter that was read: module -> {"a": f32[L, R, d_in], "b": f32[L, R, d_out]}, its scaling in b."""

    name: str
    modules: dict[str, dict[str, np.ndarray]]
    rank: int  # R


def read_peft(folder: str | os.PathLike, base: Any) -> Adapter:
    """Reads a PEFT LoRA of ``base`` (a `ftn_jax.models.pretrained.Base`); weights from safetensors only.

    Ranks that differ between modules or layers are padded with zeros to the largest.

    Raises:
      InputError: no LoRA adapter, one of another base or of a kind that is more than B A, or a damaged file.
    """
    folder = pathlib.Path(folder)
    try:
        config = json.loads((folder / _CONFIG).read_text())
        with safetensors.safe_open(folder / _TENSORS, "numpy") as file:
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{folder} can't be read as a PEFT adapter ({error}): expected {_CONFIG}, {_TENSORS}"
        ) from error
    for setting, harmless in _PLAIN.items():
        if config.get(setting) not in harmless:
            raise InputError(f"{folder}: {setting} is {config[setting]!r}, expected a plain LoRA")
    named = config.get("base_model_name_or_path")
    if named and pathlib.PurePath(named).name != pathlib.PurePath(base.name).name:
        raise InputError(f"{folder} is an adapter of base {named!r}, expected one of {base.name!r}")
    sides: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if not match or match[2] not in gpt2.MODULES or int(match[1]) >= base.config.n_layer:
            raise InputError(f"{folder} adapts {name}, which base {base.name!r} does not have")
        sides.setdefault((match[2], int(match[1])), {})[match[3]] = tensor
    if not sides:
        raise InputError(f"{folder} has no tensors, expected lora_A and lora_B")
    rank = max(len(pair["A"]) for pair in sides.values() if "A" in pair)
    modules = {}
    for (module, layer), pair in sides.items():
        d_in, d_out = base.config.widths(module)
        if pair.keys() != {"A", "B"} or pair["A"].shape[1:] != (d_in,) or pair["B"].shape != (d_out, len(pair["A"])):
            shapes = {side: tensor.shape for side, tensor in pair.items()}
            raise InputError(
                f"{folder}: h.{layer}.{module} has lora {shapes}, expected A [r, {d_in}] and B [{d_out}, r]"
            )
        stacked = modules.setdefault(
            module, {n: np.zeros((base.config.n_layer, rank, d), np.float32) for n, d in (("a", d_in), ("b", d_out))}
        )
        own = len(pair["A"])
        stacked["a"][layer, :own] = pair["A"]
        stacked["b"][layer, :own] = _scaling(config, f"transformer.h.{layer}.{module}", own) * pair["B"].T
    return Adapter(folder.name, modules, rank)


def _scaling(config: dict, module: str, rank: int) -> float:
    """What PEFT multiplies B A with."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def place(pool: LoraPool, params: Params, adapter: Adapter, active: jax.Array) -> Params:
    """``params`` with an adapter in the components ``active`` int32[k]; of their rows that it leaves, B is zero.

    Raises:
      InputError: modules that the pool does not adapt, or a rank above k r.
    """
    room = len(active) * pool.rank
    if adapter.rank > room:
        raise InputError(
            f"adapter {adapter.name!r} has rank {adapter.rank}, expected at most {room}: config.configurer.k = "
            f"{len(active)} components of config.pool.rank = {pool.rank}"
        )
    for module in adapter.modules:
        if module not in pool.modules:
            raise InputError(
                f"adapter {adapter.name!r} adapts {module}, config.pool.modules has {', '.join(pool.modules)} alone"
            )
    placed = {}
    for module, pair in gather(params, active).items():
        own = adapter.modules.get(module)
        rows = {name: np.array(pair[name]) for name in ("a", "b")}  # [k, L, r, d]
        k, layers, rank, _ = rows["a"].shape
        flat = {name: leaf.swapaxes(0, 1).reshape(layers, k * rank, -1) for name, leaf in rows.items()}
        flat["b"][:] = 0
        if own:
            for name, leaf in flat.items():
                leaf[:, : adapter.rank] = own[name]
        back = {n: leaf.reshape(layers, k, rank, -1).swapaxes(0, 1) for n, leaf in flat.items()}
        placed[module] = {name: jnp.asarray(leaf) for name, leaf in back.items()}
    return scatter(params, active, placed)


def free_block(size: int, k: int, taken: np.ndarray) -> np.ndarray:
    """k components int32[k] that none of ``taken`` bool[H] is among, near one another on the torus.

    Raises:
      InputError: fewer than k are free.
    """
    free = np.flatnonzero(~taken)
    if len(free) < k:
        raise InputError(
            f"{len(free)} of the pool's {size} components are free, expected at least config.configurer.k = {k}: "
            "make a larger pool from the start, or take fewer winners"
        )
    side = int(size**0.5)
    if side * side != size:
        return free[:k].astype(np.int32)
    y, x = np.divmod(free, side)
    gap_y, gap_x = (np.abs(axis[:, None] - axis[None]) for axis in (y, x))
    distance = np.minimum(gap_y, side - gap_y) ** 2 + np.minimum(gap_x, side - gap_x) ** 2
    centre = np.sort(distance, axis=1)[:, :k].sum(1).argmin()
    return np.sort(free[np.argsort(distance[centre], kind="stable")[:k]]).astype(np.int32)
