"""Rules for settings: the allowed values, in code and in words, and the check of settings against the rules."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ftn_jax.core.elsewhere import what_is_known
from ftn_jax.core.errors import InputError

Config = Any  # a ConfigDict; type checkers don't know its settings
Rule = tuple[Callable[[Any], bool], str]  # a test of the value, and the expected values in words

_LARGEST = 1e9  # the largest number allowed, so that products with it stay finite in float32


def whole(least: int, most: int = 10**9) -> Rule:
    """A whole number within bounds."""
    return lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"


def number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _LARGEST


def one_of(*names: str) -> Rule:
    """One of some names."""
    return lambda value: value in names, f"one of {', '.join(names)}"


def _names(value: Any) -> bool:
    return bool(value) and _different(value)


def _different(value: Any) -> bool:
    if not isinstance(value, tuple | list):
        return False
    return all(isinstance(name, str) and name for name in value) and len(set(value)) == len(value)


COUNT = whole(1)
SIZE = whole(1, 2**20)
NOT_NEGATIVE = (number, "a number from 0 to 1e9")
POSITIVE = (lambda value: number(value) and value > 0, "a number above 0, at most 1e9")
SHARE = (lambda value: number(value) and value < 1, "a number from 0 to below 1")
PART = (lambda value: number(value) and 0 < value < 1, "a number between 0 and 1")
ODD = (lambda value: type(value) is int and 0 < value < 2**31 and value % 2 == 1, "an odd whole number above 0")
SWITCH = (lambda value: type(value) is bool, "true or false")
NAMES = (_names, "a tuple of different names")
FOLDERS = (_different, "a tuple of different folders, () for none")
TEXT = (lambda value: isinstance(value, str) and value != "", "a name or a folder")
FILE = (TEXT[0], "a file, or auto")


def flatten(config: Config) -> dict[str, Any]:
    """The leaves of a config, or of its `to_dict`, by full name, such as ``config.pool.size``."""

    def walk(tree, prefix):
        # JSON would turn a key that is not a string into one, so such a tree counts as a value, which `hold` refuses.
        if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
            return {prefix: tree}
        return {name: leaf for key, branch in tree.items() for name, leaf in walk(branch, f"{prefix}.{key}").items()}

    return walk(config if isinstance(config, dict) else config.to_dict(), "config")


def hold(found: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Checks settings against rules, in the order of the settings.

    Raises:
      InputError: a setting that is unknown, has a value that its rule does not allow, or is missing.
    """
    for name, value in found.items():
        if name not in rules:
            raise InputError(f"{name} is not a setting, {what_is_known(name, rules)}")
        fits, expected = rules[name]
        if not fits(value):
            raise InputError(f"{name} is {value!r}, expected {expected}")
        if not _is_json(value):
            raise InputError(f"{name} is {value!r}, expected what JSON can hold: the workdir keeps it")
    for name, (_, expected) in rules.items():
        if name not in found:
            raise InputError(f"{name} is missing, expected {expected}")


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(one) for key, one in value.items())
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
