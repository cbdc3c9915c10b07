"""Settings in words: those of one config, or all of them."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ftn_jax.core.registry import Kind
from ftn_jax.core.rules import NAMES, Config, Rule, flatten, one_of
from ftn_jax.runs.settings import ANYTHING, DEFAULTS, MEANINGS, SETTINGS, defaults_of, rules_of


class Described(NamedTuple):
    """A setting in words."""

    name: str  # such as config.pool.size
    meaning: str  # empty for settings of a user's own parts
    expected: str  # the allowed values
    default: str  # empty if there is none
    where: str  # the kinds that have it; empty if every run has it
    value: Any = None  # in the config, if there is one


def describe(
    config: Config, pools: Mapping[str, Kind], streams: Mapping[str, Kind], methods: Mapping[str, Kind]
) -> list[Described]:
    """Every setting of a filled config, with its value.

    Raises:
      InputError: the config names no kind of pool or stream.
    """
    found = flatten(config)
    rules, defaults = rules_of(found, pools, streams, methods), defaults_of(found, pools, streams, methods)
    sections = {section: i for i, section in enumerate(dict.fromkeys(map(section_of, MEANINGS)))}
    settings = {name: i for i, name in enumerate(MEANINGS)}

    def place(one: Described):
        section = section_of(one.name.removeprefix("config."))
        own = settings.get(one.name.removeprefix("config."), len(settings))  # variants keep the config's order
        return sections.get(section, len(sections)), own

    told = []
    for name, value in found.items():
        (_, expected), default = rules.get(name, ANYTHING), defaults.get(name.removeprefix("config."), "")
        told.append(Described(name, MEANINGS.get(_general(name), ""), expected, str(default), "", value))
    return sorted(told, key=place)


def describe_all(
    pools: Mapping[str, Kind], streams: Mapping[str, Kind], methods: Mapping[str, Kind]
) -> list[Described]:
    """Every setting that exists; where kinds differ in its allowed values or default, with those of each kind."""
    given = {
        **SETTINGS,
        "pool.name": one_of(*sorted(pools)),
        "stream.name": one_of(*sorted(streams)),
        "variants.*.method": one_of(*sorted(methods)),
    }
    sources: list[tuple[str, str, Mapping[str, Rule], Mapping[str, Any]]] = [("", "", given, DEFAULTS)]
    sources += [("pool", name, kind.settings, kind.defaults) for name, kind in sorted(pools.items())]
    for name, kind in sorted(streams.items()):
        tasks = {f"stream.{kind.tasks}": NAMES} if kind.tasks else {}
        sources.append(("stream", name, {**tasks, **kind.settings}, kind.defaults))
    for name, kind in sorted(methods.items()):
        own = {f"variants.*.{setting}": rule for setting, rule in kind.settings.items()}
        defaults_of_kind = {f"variants.*.{setting}": value for setting, value in kind.defaults.items()}
        sources.append(("method", name, own, defaults_of_kind))
    expected: dict[str, dict[str, list[str]]] = {name: {} for name in MEANINGS}
    defaults: dict[str, dict[str, list[str]]] = {}
    where: dict[str, dict[str, list[str]]] = {}
    for what, kind, rules, values in sources:
        for name, (_, words) in rules.items():
            expected.setdefault(name, {}).setdefault(words, []).append(kind)
            where.setdefault(name, {}).setdefault(what, []).append(kind)
        for name, value in values.items():
            defaults.setdefault(name, {}).setdefault(str(value), []).append(kind)
    told = []
    for name, of_kinds in expected.items():
        all_kinds = [kind for kinds in of_kinds.values() for kind in kinds]
        only = "; ".join(f"{what} {', '.join(kinds)}" for what, kinds in where.get(name, {}).items() if what)
        words, default = (_of_each(of, all_kinds) for of in (of_kinds, defaults.get(name, {})))
        told.append(Described(f"config.{name}", MEANINGS.get(name, ""), words, default, only))
    return told


def in_words(settings: Sequence[Described], file: str | None) -> str:
    """The text of --help: the settings of a config file, or all settings."""
    lines = [
        f"Settings of {file}, with their values, and with the default where it differs:"
        if file
        else "All settings (add --config=FILE for those of a file and their values). One without a default must be set."
    ]
    section = None
    for one in settings:
        if section != (section := section_of(one.name.removeprefix("config."))):
            lines += ["", f"{section}:"]
        lines += [f"  --{one.name}={one.value}" if file else f"  --{one.name}"]
        default = f"default {one.default}" if one.default and (not file or one.default != str(one.value)) else ""
        for words in (
            one.meaning,
            "; ".join(filter(None, (one.expected, default))),
            one.where and f"only with {one.where}",
        ):
            lines += textwrap.wrap(words, 100, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def section_of(name: str) -> str:
    """The section of a setting: "pool" for "pool.size", "run" for a setting at the top level."""
    section, _, rest = name.partition(".")
    return section if rest else "run"


def _of_each(words: Mapping[str, list[str]], all_kinds: Sequence[str]) -> str:
    """The one text that holds for all kinds; or each text, with the kinds that it holds for."""
    if len(words) == 1:
        ((word, kinds),) = words.items()
        if "" in kinds or set(all_kinds) <= set(kinds):
            return word
    return "; ".join(f"{word} ({', '.join(filter(None, kinds)) or 'others'})" for word, kinds in words.items())


def _general(name: str) -> str:
    """The key in `MEANINGS` for a setting of a config."""
    _, *parts = name.split(".")
    if parts[0] == "variants":
        parts = ["variants", "*", *parts[2:]] if parts[2:3] != ["configurer"] else parts[2:]
    return ".".join(parts)
