"""The tree of settings (DESIGN.md section 6): which there are, and what each may be."""

import difflib
from collections.abc import Callable
from typing import Any

import numpy as np

from ftn_jax.errors import InputError

Config = Any  # a ConfigDict, of whose settings type checkers know nothing
Rule = tuple[Callable[[Any], bool], str]  # whether a value will do, and what is expected in words

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_MAX_SEEDS = 1000


def _whole(least: int, most: int) -> Rule:
    return lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _FLOAT32_MAX


def _one_of(*names: str) -> Rule:
    return lambda value: value in names, f"one of {', '.join(names)}"


def _names(value: Any) -> bool:
    if not isinstance(value, tuple | list) or not value:
        return False
    return all(isinstance(name, str) and name for name in value) and len(set(value)) == len(value)


def _seeds(value: Any) -> bool:
    if type(value) is int:
        return 1 <= value <= _MAX_SEEDS
    if not isinstance(value, tuple | list) or not 1 <= len(value) <= _MAX_SEEDS:
        return False
    return all(type(seed) is int and 0 <= seed < 2**31 for seed in value) and len(set(value)) == len(value)


_COUNT = _whole(1, 10**9)
_SIZE = _whole(1, 2**20)
_NOT_NEGATIVE = (_number, "a number from 0 up, finite in float32")
_POSITIVE = (lambda value: _number(value) and value > 0, "a number above 0, finite in float32")
_ODD = (lambda value: type(value) is int and 0 < value < 2**31 and value % 2 == 1, "an odd whole number above 0")
_SWITCH = (lambda value: type(value) is bool, "true or false")
_NAMES = (_names, "a tuple of different names")
_TEXT = (lambda value: isinstance(value, str) and value != "", "a name or a folder")

SETTINGS: dict[str, Rule] = {
    "experiment": _one_of("lora"),
    "seeds": (_seeds, f"a count from 1 to {_MAX_SEEDS} or a tuple of different seeds from 0 to 2**31 - 1"),
    "methods": _NAMES,
    "base": _TEXT,
    "model.dtype": _one_of("float32", "bfloat16"),
    "model.remat": _SWITCH,
    "stream.name": _one_of("styles"),
    "stream.tasks": _NAMES,
    "stream.steps": _COUNT,
    "stream.batch": _COUNT,
    "stream.max_length": _whole(2, 10**9),
    "pool.size": _SIZE,
    "pool.rank": _SIZE,
    "pool.modules": _NAMES,
    "pool.b_std": _NOT_NEGATIVE,
    "configurer.k": _SIZE,
    "configurer.steps": _COUNT,
    "configurer.learning_rate": _POSITIVE,
    "configurer.support": _COUNT,
    "configurer.jitter": _NOT_NEGATIVE,
    "optimizer.name": _one_of("adam", "adamw"),
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.reset": _SWITCH,
    "optimizer.rows": _one_of("active", "dense"),
}
"""Every setting but those of ``variants.<method>``, which differ from method to method."""

VARIANT_SETTINGS: dict[str, Rule] = {
    "kernel": _ODD,
    "lateral_steps": _whole(0, 10**9),
    "b_std": _NOT_NEGATIVE,
}
"""What settings of these names in ``variants.<method>`` may be; a method's own others are its own business."""


def flatten(config: Config) -> dict[str, Any]:
    """The leaves of a config, or of its `to_dict`, by their full names, as ``config.pool.size``."""

    def walk(tree, prefix):
        if not isinstance(tree, dict):
            return {prefix: tree}
        return {name: leaf for key, branch in tree.items() for name, leaf in walk(branch, f"{prefix}.{key}").items()}

    return walk(config if isinstance(config, dict) else config.to_dict(), "config")


def check_settings(config: Config) -> None:
    """Holds every leaf of a config to `SETTINGS`.

    Raises:
      InputError: a setting that is missing, that does not exist, or whose value is not what is expected.
    """
    found = flatten(config)
    rules = {f"config.{name}": rule for name, rule in SETTINGS.items()}
    for name, value in found.items():
        *place, last = name.split(".")
        if len(place) == 3 and place[1] == "variants":
            rule = VARIANT_SETTINGS.get(last)
        elif name in rules:
            rule = rules[name]
        else:
            close = difflib.get_close_matches(name, rules, 1) or rules
            raise InputError(f"{name} is not a setting, known: {', '.join(close)}")
        if rule and not rule[0](value):
            raise InputError(f"{name} is {value!r}, expected {rule[1]}")
    for name, (_, expected) in rules.items():
        if name not in found:
            raise InputError(f"{name} is missing, expected {expected}")
