"""Reads PEFT LoRA adapters."""

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from ftn_jax.core.errors import InputError
from ftn_jax.models.families import FAMILIES
from ftn_jax.models.hub import first_line, loadable
from ftn_jax.models.pretrained import Base
from ftn_jax.pools.adapter import Adapter

CONFIG, TENSORS, ORIGIN = "adapter_config.json", "adapter_model.safetensors", "ftn_mask.json"
# Settings of `peft.LoraConfig` that don't change what a trained adapter computes.
_HARMLESS = {
    "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "merge_weights",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
# Settings that may make an adapter more than B A on the base's own weights, with the values that don't.
_PLAIN: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    # Other values change the base's weights, even when a trained adapter is loaded.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal", "mica"),
    "target_parameters": (None, []),
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "use_rslora": (None, False, True),
}


def _several(value: Any) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e30  # far from overflow in float32


def _are_names(value: Any) -> bool:
    return all(isinstance(name, str) for name in _several(value))


def _by_pattern(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, dict) and all(map(test, value.values())))


# Settings that decide how tensors are read: a test, the expected values in words, and PEFT's default.
_READ: dict[str, tuple[Callable[[Any], bool], str, Any]] = {
    "r": (_is_count, "a whole number above 0", 8),
    "lora_alpha": (_is_number, "a number", 8),
    "rank_pattern": (_by_pattern(_is_count), "whole numbers above 0 by name", None),
    "alpha_pattern": (_by_pattern(_is_number), "numbers by name", None),
    "target_modules": (_are_names, "names, or a regular expression", None),
    "exclude_modules": (_are_names, "names, or a regular expression", None),
    "layers_to_transform": (lambda value: all(type(i) is int for i in _several(value)), "numbers of layers", None),
    "modules_to_save": (lambda value: not isinstance(value, str) and _are_names(value), "names", None),
    "base_model_name_or_path": (lambda value: value is None or isinstance(value, str), "a name", None),
}
# A tensor's name has the module, the side (A or B) and, in some files, the adapter's name.
_LORA = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.([^.]+))?\.weight")
_TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E4M3FNUZ": jnp.float8_e4m3fnuz, "F8_E5M2": jnp.float8_e5m2, "F8_E5M2FNUZ": jnp.float8_e5m2fnuz,
}  # fmt: skip


def read_peft(folder: str | os.PathLike, base: Base, *, same_base: bool = False) -> Adapter:
    """Reads a PEFT LoRA adapter of ``base``. Weights are read from safetensors only.

    Where ranks differ between modules or layers, all are padded with zeros to the largest.

    Args:
      folder: as PEFT writes it.
      base: the base that the adapter was trained on.
      same_base: accept the adapter whatever base it names. Otherwise the hash of the base's weights has to match if the
        adapter has one (our exports do), else the base's name.

    Raises:
      InputError: not a LoRA adapter, an adapter of another base, a kind that is more than B A, or a damaged file.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    config = _read_config(folder)
    named, known = config["base_model_name_or_path"], _hash_in(folder)
    if not same_base and known and known != base.hash:
        raise InputError(
            f"{folder} is an adapter of a base with the hash {known}, base {base.name!r} has {base.hash}: to use it "
            "with these weights all the same, pass same_base=True (config.pool.same_base)"
        )
    if not same_base and named and not known and not _names_the_same(named, base.name, loadable(base.name)):
        raise InputError(
            f"{folder} is an adapter of base {named!r}, expected one of {base.name!r}: if these are the same base, "
            "pass same_base=True (config.pool.same_base)"
        )
    family, layers, widths = FAMILIES[base.family], base.config.layers, base.config.modules
    places = {  # full name -> (prefix, module, layer); a bare decoder's names have no prefix
        f"{prefix}{family.blocks.format(i)}.{module}": (prefix, module, i)
        for prefix in {"", family.prefix}
        for module in widths
        for i in range(layers)
    }
    sides, copies, kinds = dict[str, dict[str, np.ndarray]](), set[str](), set[tuple[str, str]]()
    for name, tensor in _read_tensors(folder):
        match = _LORA.fullmatch(name)
        if not match or match[1] not in places:
            copies.add(_check_copy(folder, name, tensor, base))
            continue
        if not np.isfinite(tensor).all():
            raise InputError(f"{folder}: {name!r} has values that are not finite")
        sides.setdefault(match[1], {})[match[2]] = tensor
        kinds.add((places[match[1]][0], match[3]))
    if len(kinds) != 1:
        raise InputError(f"{folder} has tensors of {len(kinds)} adapters, expected lora_A and lora_B of one")
    saved = _several(config["modules_to_save"])
    if not all(any(copy.endswith(name) for copy in copies) for name in saved):
        raise InputError(f"{folder}: modules_to_save is {saved!r}, but tensors of these are missing")
    ranks = {}
    for full, pair in sides.items():
        _, module, layer = places[full]
        own = ranks[full] = _setting(folder, config, "r", "rank_pattern", full)
        expected = {"A": (own, widths[module][0]), "B": (widths[module][1], own)}
        shapes = {side: pair[side].shape for side in sorted(pair)}
        if shapes != expected:
            raise InputError(f"{folder}: {module} of layer {layer} has lora {shapes}, expected {expected}")
        if not _targets(folder, config, full, layer):
            raise InputError(f"{folder} has tensors of {full}, which target_modules and related settings exclude")
    rank, modules = max(ranks.values()), dict[str, dict[str, np.ndarray]]()
    for full, pair in sides.items():
        scaling = _setting(folder, config, "lora_alpha", "alpha_pattern", full)
        scaling /= ranks[full] ** 0.5 if config.get("use_rslora") else ranks[full]
        with np.errstate(over="ignore"):
            scaled = (scaling * pair["B"].T.astype(np.float64)).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise InputError(f"{folder}: {full} has values that are not finite with its scaling of {scaling:g}")
        _, module, layer = places[full]
        for side, rows in (("a", pair["A"]), ("b", scaled)):
            stacked = modules.setdefault(module, {})
            stacked.setdefault(side, np.zeros((layers, rank, rows.shape[1]), np.float32))[layer, : len(rows)] = rows
    return Adapter(folder.name, modules, rank)


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The adapter's settings, with PEFT's defaults; unknown ones, and any that make it more than B A, are refused."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(folder, error) from error
    if not isinstance(config, dict):
        raise InputError(f"{folder}: {CONFIG} is {type(config).__name__}, expected an object")
    for setting, (test, expected, default) in _READ.items():
        if not test(config.setdefault(setting, default)):
            raise InputError(f"{folder}: {setting} is {config[setting]!r}, expected {expected}")
    for setting in (*_PLAIN, *sorted(config.keys() - _PLAIN.keys() - _READ.keys() - _HARMLESS)):
        value, harmless = config.get(setting), _PLAIN.get(setting, (None,))
        if not any(type(value) is type(one) and value == one for one in harmless):
            raise InputError(f"{folder}: {setting!r} is {value!r}, expected a plain LoRA")
    return config


def _read_tensors(folder: pathlib.Path) -> Iterable[tuple[str, np.ndarray]]:
    """(name, tensor) of each tensor, in float32; also of types that NumPy does not have."""
    try:
        content = safetensors.deserialize((folder / TENSORS).read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _unreadable(folder, error) from error
    for name, tensor in sorted(content, key=lambda item: item[0]):
        if tensor["dtype"] not in _TYPES:
            raise InputError(f"{folder}: {name!r} has type {tensor['dtype']}, expected one of {', '.join(_TYPES)}")
        values = np.frombuffer(tensor["data"], jnp.dtype(_TYPES[tensor["dtype"]]))
        with np.errstate(over="ignore"):
            yield name, values.reshape(tensor["shape"]).astype(np.float32)


def _unreadable(folder: pathlib.Path, error: Exception) -> InputError:
    return InputError(f"{folder} can't be read as a PEFT adapter ({first_line(error)}): expected {CONFIG}, {TENSORS}")


def _hash_in(folder: pathlib.Path) -> str | None:
    """The hash of the base's weights, which an export writes beside an adapter; None if there is none."""
    try:
        found = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["base"]["hash"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not one of our exports
        return None
    return found if isinstance(found, str) else None


def _names_the_same(named: str, *names: str) -> bool:
    """Whether one of several names means the same base: the same path, or if one is not here, the same last part."""

    def last(path: str) -> str:
        # A snapshot in the hub's cache: .../models--owner--name/snapshots/<commit>
        cached = re.search(r"models--(?:[^/\\]*--)?([^/\\]+)[/\\]snapshots[/\\]", path)
        return cached[1] if cached else pathlib.PurePath(os.path.normpath(path)).name

    def same(name: str) -> bool:
        if os.path.exists(named) and os.path.exists(name):  # False for an impossible path
            return os.path.samefile(named, name)
        return last(named) == last(name)

    return any(map(same, names))


def _check_copy(folder: pathlib.Path, name: str, tensor: np.ndarray, base: Base) -> str:
    """The module of a tensor that is not LoRA's. Only exact copies of the base's embeddings or head are accepted."""
    family, embed = FAMILIES[base.family], base.params["embed"]
    copies = {f"{prefix}{family.embed}": embed for prefix in ("", family.prefix)}
    copies["lm_head"] = base.params.get("head", embed)
    module = name.removeprefix("base_model.model.").removesuffix(".weight")
    if name != f"base_model.model.{module}.weight" or module not in copies:
        raise InputError(f"{folder} adapts {name!r}, which base {base.name!r} does not have")
    own = np.asarray(copies[module])
    with np.errstate(over="ignore"):
        if not np.array_equal(tensor.astype(own.dtype), own):
            raise InputError(f"{folder} has its own {module}, which differs from that of base {base.name!r}")
    return module


def _setting(folder: pathlib.Path, config: dict, setting: str, patterns: str, module: str) -> Any:
    """The value of a setting for a module: that of the first pattern that matches the end of its name, as in PEFT."""
    for pattern, value in (config[patterns] or {}).items():
        if _regex(folder, patterns, rf"(.*\.)?({pattern})$").match(module):
            return value
    return config[setting]


def _targets(folder: pathlib.Path, config: dict, module: str, layer: int) -> bool:
    """Whether the settings select a module. PEFT silently ignores tensors of other modules."""

    def names(setting: str, within: bool = True) -> bool:
        value = config[setting]
        if isinstance(value, str):
            return bool(_regex(folder, setting, value).fullmatch(module))
        return any(module == name or (within and module.endswith(f".{name}")) for name in _several(value))

    layers = _several(config["layers_to_transform"])
    chosen = config["target_modules"] in (None, "all-linear") or names("target_modules", not layers or layer in layers)
    return chosen and not names("exclude_modules")


def _regex(folder: pathlib.Path, setting: str, pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(
            f"{folder}: {setting} has {pattern!r}, which is not a regular expression ({first_line(error)})"
        ) from error
