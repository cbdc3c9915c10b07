"""What each setting of a run may be, what it stands for where a config has none, and the check of a config."""

from collections.abc import Mapping
from typing import Any

from ftn_jax.core.configurer import PROPOSALS
from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import (
    COUNT,
    NAMES,
    NOT_NEGATIVE,
    POSITIVE,
    SIZE,
    SWITCH,
    TEXT,
    Config,
    Kind,
    Rule,
    flatten,
    hold,
    number,
    one_of,
    whole,
)

_MAX_SEEDS = 1000


def _seeds(value: Any) -> bool:
    if type(value) is int:
        return 1 <= value <= _MAX_SEEDS
    if not isinstance(value, tuple | list) or not 1 <= len(value) <= _MAX_SEEDS:
        return False
    return all(type(seed) is int and 0 <= seed < 2**31 for seed in value) and len(set(value)) == len(value)


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
    "configurer.start": (lambda value: number(value) and 1e-6 <= value <= 1 - 1e-6, "a number from 1e-6 to 1 - 1e-6"),
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
    hold(dict(sorted(found.items(), key=lambda item: not item[0].startswith(tuple(kinds_of)))), rules, DEFAULTS)


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
