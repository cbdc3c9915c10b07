"""Settings (DESIGN.md section 6): what each may be, and the check of a config's tree against such rules."""

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ftn_jax.configurer import PROPOSALS
from ftn_jax.errors import InputError

Config = Any  # a ConfigDict, of whose settings type checkers know nothing
Rule = tuple[Callable[[Any], bool], str]  # whether a value will do, and what is expected in words

_LARGEST = 1e9  # of numbers: what they are multiplied with stays finite in float32
_MAX_SEEDS = 1000


class Kind(NamedTuple):
    """A registered pool, stream or method: what builds it, and the settings that it adds.

    Those of a pool or stream stand in `SETTINGS` by their full names; those of a method in ``config.variants.<name>``.

    Of a stream: ``tasks`` is the setting of ``config.stream`` that lists its tasks, ``names`` gives their names; it
    ``grows`` if earlier tasks stay what they are when others are appended; ``contents`` gives what identifies the data
    that each task is read from: task -> anything that JSON has.
    """

    build: Callable[..., Any]
    settings: Mapping[str, Rule]
    grows: bool = False
    tasks: str | None = None
    names: Callable[[Any], tuple[str, ...]] = tuple
    contents: Callable[[Any], dict[str, Any]] = lambda tasks: {}


def register(registry: dict[str, Kind], what: str, name: str, entry: Kind) -> None:
    """Adds an entry to a registry; the same code run again, as a cell of a notebook is, replaces its own.

    Raises:
      InputError: the name is taken.
    """
    if name in registry and _places(registry[name].build).isdisjoint(_places(entry.build)):
        raise InputError(f"{what} {name!r} is registered already")
    registry[name] = entry


def _places(build: Callable[..., Any]) -> set[tuple[str, str]]:
    """Where a function stands: its name in its module, and in its file."""
    code = getattr(build, "__code__", None)
    if code is None or code.co_name == "<lambda>":  # two of these may stand side by side
        return set()
    return {(build.__module__, build.__qualname__), (code.co_filename, build.__qualname__)}


def whole(least: int, most: int = 10**9) -> Rule:
    """A whole number within bounds."""
    return lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _LARGEST


def one_of(*names: str) -> Rule:
    """One of some names."""
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


COUNT = whole(1)
SIZE = whole(1, 2**20)
NOT_NEGATIVE = (_number, "a number from 0 to 1e9")
POSITIVE = (lambda value: _number(value) and value > 0, "a number above 0, at most 1e9")
SHARE = (lambda value: _number(value) and value < 1, "a number from 0 to below 1")
PART = (lambda value: _number(value) and 0 < value < 1, "a number between 0 and 1")
ODD = (lambda value: type(value) is int and 0 < value < 2**31 and value % 2 == 1, "an odd whole number above 0")
SWITCH = (lambda value: type(value) is bool, "true or false")
NAMES = (_names, "a tuple of different names")
TEXT = (lambda value: isinstance(value, str) and value != "", "a name or a folder")

SETTINGS: dict[str, Rule] = {
    "checkpoint.every_steps": COUNT,
    "experiment": TEXT,
    "seeds": (_seeds, f"a count from 1 to {_MAX_SEEDS} or a tuple of different seeds from 0 to 2**31 - 1"),
    "methods": NAMES,
    "stream.name": TEXT,
    "stream.steps": COUNT,
    "stream.batch": SIZE,
    "stream.boundaries": one_of("given", "unknown"),
    "stream.evaluate": one_of("all", "seen"),
    "pool.name": TEXT,
    "pool.size": SIZE,
    "pool.grow": SWITCH,
    "configurer.k": SIZE,
    "configurer.steps": whole(1, 10**4),
    "configurer.learning_rate": POSITIVE,
    "configurer.support": SIZE,
    "configurer.jitter": NOT_NEGATIVE,
    "configurer.proposal": one_of(*PROPOSALS),
    "configurer.moments": one_of("fresh", "kept"),
    "configurer.start": (lambda value: _number(value) and 1e-6 <= value <= 1 - 1e-6, "a number from 1e-6 to 1 - 1e-6"),
    "optimizer.name": one_of("adam", "adamw"),
    "optimizer.learning_rate": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.reset": SWITCH,
    "optimizer.rows": one_of("active", "dense"),
    "mesh.seed": whole(0, 2**20),
    "mesh.data": whole(0, 2**20),
    "mesh.pool": whole(1, 2**20),
}
"""Every setting but those that a `Kind` adds, and those of ``variants.<method>``."""

DEFAULTS: dict[str, Any] = {
    "config.configurer.proposal": "adam",
    "config.configurer.moments": "fresh",
    "config.configurer.start": 0.5,
    "config.stream.held_out": "test",
    "config.stream.long_texts": "split",
}
"""What a setting that a config does not have stands for."""

OF_VARIANTS = tuple(
    name for name in SETTINGS if name.startswith("configurer.") and name not in ("configurer.k", "configurer.support")
)
"""The settings of ``config.configurer`` that ``variants.<method>.configurer`` may have too, for this method alone."""

OF_EVERY_VARIANT: dict[str, Rule] = {
    "configurer": (lambda value: False, "settings of config.configurer for this method alone"),
    "method": TEXT,
}
"""What settings of these names in ``variants.<name>`` may be, whatever the method; the others are the method's."""

_ANYTHING: Rule = (lambda value: True, "anything")


def flatten(config: Config) -> dict[str, Any]:
    """The leaves of a config, or of its `to_dict`, by their full names, as ``config.pool.size``."""

    def walk(tree, prefix):
        # A key that is no string would be another one in JSON: such a tree is a value, which is refused.
        if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
            return {prefix: tree}
        return {name: leaf for key, branch in tree.items() for name, leaf in walk(branch, f"{prefix}.{key}").items()}

    return walk(config if isinstance(config, dict) else config.to_dict(), "config")


def check_settings(
    config: Config, pools: Mapping[str, Kind], streams: Mapping[str, Kind], methods: Mapping[str, Kind]
) -> None:
    """Holds every leaf of a config to `SETTINGS` and to the rules of its kinds of pool, stream and methods.

    Raises:
      InputError: a setting that is missing, that does not exist, or whose value is not what is expected.
    """
    found = flatten(config)
    rules = {f"config.{name}": rule for name, rule in SETTINGS.items()}
    kinds_of = {"config.pool.name": pools, "config.stream.name": streams}
    for place, kinds in kinds_of.items():
        rules[place] = one_of(*sorted(kinds))
        kind = found.get(place)
        if isinstance(kind, str) and kind in kinds:
            rules |= {f"config.{name}": rule for name, rule in kinds[kind].settings.items()}
            if kinds[kind].tasks:
                rules[f"config.stream.{kinds[kind].tasks}"] = NAMES
        elif not any(name.startswith(place) for name in found):
            raise InputError(f"{place} is missing, expected {rules[place][1]}")
    variants = {name: value for name, value in found.items() if name.startswith("config.variants.")}
    for name in variants:
        rules |= _rule_of_variant(name, found, methods)
    # First the kinds, which say what other settings there are.
    hold(dict(sorted(found.items(), key=lambda item: not item[0].startswith(tuple(kinds_of)))), rules)


def hold(found: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Holds settings to rules, in the settings' order.

    Raises:
      InputError: a setting that does not exist, whose value is not what is expected, or that is missing and has no
        default.
    """
    for name, value in found.items():
        if name not in rules:
            close = difflib.get_close_matches(name, rules, 1) or rules
            raise InputError(f"{name} is not a setting, known: {', '.join(close)}")
        fits, expected = rules[name]
        if not fits(value):
            raise InputError(f"{name} is {value!r}, expected {expected}")
        if not _is_json(value):
            raise InputError(f"{name} is {value!r}, expected what JSON can hold: the workdir keeps it")
    for name, (_, expected) in rules.items():
        if name not in found and name not in DEFAULTS:
            raise InputError(f"{name} is missing, expected {expected}")


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(one) for key, one in value.items())
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def _rule_of_variant(name: str, found: Mapping[str, Any], methods: Mapping[str, Kind]) -> dict[str, Rule]:
    """The rule for a leaf ``config.variants.<variant>.<setting>...``; nothing where there can be no such setting."""
    _, _, variant, *path = name.split(".")
    name_of = found.get(f"config.variants.{variant}.method", variant)
    method = methods.get(name_of) if isinstance(name_of, str) else None
    own = OF_EVERY_VARIANT | dict(method.settings if method else {})
    if not path:
        return {}
    if len(path) == 1:
        return {name: own.get(path[0], _ANYTHING)}
    if path[0] == "configurer":
        setting = ".".join(path)
        return {name: SETTINGS[setting]} if setting in OF_VARIANTS else {}
    return {} if path[0] in own else {name: _ANYTHING}  # a tree is a user's own method's business
