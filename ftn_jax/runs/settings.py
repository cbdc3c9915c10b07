"""What each setting of a run may be, what it stands for where a config has none, and the check of a config."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

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
_KINDS = ("config.pool.name", "config.stream.name")  # which say what other settings there are


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
    "config.seeds": 1,
    "config.model.dtype": "float32",
    "config.model.remat": False,
    "config.stream.boundaries": "given",
    "config.stream.evaluate": "all",
    "config.pool.grow": False,
    "config.pool.rank": 4,
    "config.pool.modules": ("qkv",),
    "config.pool.b_std": 0.0,
    "config.optimizer.name": "adam",
    "config.optimizer.weight_decay": 0.0,
    "config.optimizer.reset": True,
    "config.optimizer.rows": "active",
    "config.mesh.seed": 0,
    "config.mesh.data": 0,
    "config.mesh.pool": 1,
    "config.checkpoint.every_steps": 200,
    "config.configurer.proposal": "adam",
    "config.configurer.moments": "fresh",
    "config.configurer.start": 0.5,
    "config.stream.held_out": "test",
    "config.stream.long_texts": "split",
    "config.stream.classes": 0,
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

MEANINGS: dict[str, str] = {
    "experiment": "which of the stream's experiments this is",
    "seeds": "of the run; each trains a model of its own",
    "methods": "trained one after another, each on the whole stream",
    "base": "auto: distilgpt2 where it is cached or the hub answers, else packaged; smollm2: SmolLM2-135M-Instruct; or "
    "the folder, GGUF file or hub name of a GPT-2, Llama, Mistral, Qwen 2, 2.5 or 3, or Gemma 3 (text)",
    "model.dtype": "of the base and of all computation",
    "model.remat": "gradient checkpointing: less memory, more time",
    "stream.name": "the kind of stream",
    "stream.tasks": "their names, in the order in which they are trained; name#2 comes back to a task",
    "stream.files": "a file for each task, in the order in which they are trained: .jsonl, or .npz or .csv of arrays",
    "stream.steps": "of each task",
    "stream.batch": "examples of a step",
    "stream.boundaries": "unknown: a method that reserves components finds out itself when the task changes",
    "stream.evaluate": "at each boundary all tasks, or those that have been trained",
    "stream.held_out": "sentences that are scored; validation takes a part of the training sentences",
    "stream.max_length": "tokens of prompt and completion; in files longer prompts lose their left end",
    "stream.long_texts": "texts without a prompt that are longer: split into several examples, or cut",
    "stream.recovery": "share of the lines or rows from which masks are found again",
    "stream.test": "held out: examples of each test set, or of files the share of their lines or rows",
    "stream.classes": "of arrays; 0: as many as the files have; more leave room for files that are added later",
    "stream.block": "latent features of each task, disjoint",
    "stream.scale": "standard deviation of the encoder's weights",
    "stream.frequency": "of the sinusoid",
    "pool.name": "the kind of component",
    "pool.size": "components, H; for methods that smooth a square, H = D x D",
    "pool.grow": "add components where a method that reserves them finds no room for a task",
    "pool.rank": "r of each component",
    "pool.modules": "that components update, in all layers: qkv (the paper's), all-linear, or regexes that match on "
    "full names, as attn.c_attn on h.0.attn.c_attn, or layers.[0-9]+.self_attn on model.layers.0.self_attn.q_proj",
    "pool.b_std": "standard deviation of B's init; 0 is LoRA's standard",
    "pool.layers": "hidden layers of each network",
    "pool.width": "of each hidden layer",
    "pool.activation": "of hidden layers",
    "pool.weights": "init of the weights",
    "pool.dropout": "share of the components' outputs",
    "configurer.k": "winners: components of a mask",
    "configurer.steps": "S, on mask logits",
    "configurer.learning_rate": "eta of these steps",
    "configurer.support": "labelled examples that find a mask",
    "configurer.jitter": "standard deviation of noise on the logits, for the ties of untrained components",
    "configurer.proposal": "the steps on mask logits: adam, the paper's; or gradient, one scale for all of them",
    "configurer.moments": "of Adam on mask logits: new at each search, or kept from batch to batch over the run",
    "configurer.start": "the relaxed mask before its first step",
    "optimizer.name": "of what is trained",
    "optimizer.learning_rate": "of what is trained",
    "optimizer.weight_decay": "of adamw",
    "optimizer.reset": "fresh moments at task boundaries (Remark 2.2)",
    "optimizer.rows": "active: only a mask's rows exist for the optimizer; dense hands it every row (Remark 2.2)",
    "mesh.seed": "devices along which seeds lie; 0 takes what there is, seeds first",
    "mesh.data": "devices along which the rows of a batch lie; 0 takes what is left",
    "mesh.pool": "devices along which components lie",
    "checkpoint.every_steps": "steps from one checkpoint inside a task to the next; one more is at each task's end",
    "variants.*.method": "of which method this is a variant, where its name is its own",
    "variants.*.kernel": "s x s of the smoothing",
    "variants.*.lateral_steps": "T, rounds of smoothing",
    "variants.*.recovery_lateral_steps": "the same at recovery, where it differs",
    "variants.*.every": "batch: search the mask on every training batch anew; task: once a task",
    "variants.*.b_std": "standard deviation of B's init for this method",
    "variants.*.strength": "lambda of the penalty",
    "variants.*.sharpness": "s_max, the slope of the gates at a block's end",
    "variants.*.keep": "share of the free weights that a task keeps",
    "variants.*.prune_at": "share of a block's steps before it prunes",
    "variants.*.examples": "of a Fisher (EWC), or of each earlier task in a buffer (replay)",
    "variants.*.signed": "constant magnitudes, with the sign of the drawn weights",
    "variants.*.widen": "times the width of the networks",
}
"""What a setting means; of a method's own, * stands for the method's or variant's name."""

_ANYTHING: Rule = (lambda value: True, "anything")


def check_settings(
    config: Config, pools: Mapping[str, Kind], streams: Mapping[str, Kind], methods: Mapping[str, Kind]
) -> None:
    """Holds every leaf of a config to `SETTINGS` and to the rules of its kinds of pool, stream and methods.

    Raises:
      InputError: a setting that is missing, that does not exist, or whose value is not what is expected.
    """
    found = flatten(config)
    kinds_first = sorted(found.items(), key=lambda item: not item[0].startswith(_KINDS))
    hold(dict(kinds_first), _rules(found, pools, streams, methods), DEFAULTS)


def fill(config: Config, pools: Mapping[str, Kind], streams: Mapping[str, Kind]) -> Config:
    """The config, with the defaults of the settings that it leaves out."""
    found = flatten(config)
    known = _of_kinds(found, pools, streams) if "config.pool.name" in found and "config.stream.name" in found else {}
    with config.unlocked():
        for name, default in DEFAULTS.items():
            if name in known and name not in found:
                _, *path, last = name.split(".")
                tree = config
                for part in path:
                    if part not in tree:
                        tree[part] = ConfigDict()
                    tree = tree[part]
                if isinstance(tree, ConfigDict):  # else it is refused
                    # A count may be replaced by a tuple of seeds.
                    tree[last] = FieldReference(default, field_type=object) if last == "seeds" else default
        if "variants" not in config:
            config.variants = ConfigDict()
    return config


class Described(NamedTuple):
    """A setting in words."""

    name: str  # as config.pool.size
    expected: str  # what it may be
    meaning: str  # nothing where it is of a part of the user's own that does not say
    value: Any = None  # of a config; or the default, None where there is none


def describe(
    config: Config, pools: Mapping[str, Kind], streams: Mapping[str, Kind], methods: Mapping[str, Kind]
) -> list[Described]:
    """Every setting of a config, with its value.

    Raises:
      InputError: no kind of pool or stream.
    """
    found = flatten(config)
    rules = _rules(found, pools, streams, methods)
    return [Described(name, rules.get(name, _ANYTHING)[1], _meaning(name), value) for name, value in found.items()]


def describe_all(
    pools: Mapping[str, Kind], streams: Mapping[str, Kind], methods: Mapping[str, Kind]
) -> list[Described]:
    """Every setting that there is, whatever the config; where kinds differ in what it may be, with each."""
    expected: dict[str, dict[str, None]] = {name: {} for name in MEANINGS}
    kinds: list[Mapping[str, Rule]] = [
        {name: rule for name, rule in SETTINGS.items() if name != "experiment"},  # each stream has its own
        *(kind.settings for kind in (*pools.values(), *streams.values())),
        *({f"stream.{kind.tasks}": NAMES} for kind in streams.values() if kind.tasks),
        *({f"variants.*.{name}": rule for name, rule in kind.settings.items()} for kind in methods.values()),
        {"variants.*.method": one_of(*sorted(methods))},
    ]
    named = {"pool.name": one_of(*sorted(pools)), "stream.name": one_of(*sorted(streams))}
    for settings in kinds:
        for name, rule in settings.items():
            _, words = named.get(name, rule)
            expected.setdefault(name, {})[words] = None
    return [
        Described(f"config.{name}", "; or ".join(found), MEANINGS.get(name, ""), DEFAULTS.get(f"config.{name}"))
        for name, found in expected.items()
    ]


def _meaning(name: str) -> str:
    _, *parts = name.split(".")
    if parts[0] == "variants":
        parts = ["variants", "*", *parts[2:]] if parts[2:3] != ["configurer"] else parts[2:]
    return MEANINGS.get(".".join(parts), "")


def _rules(
    found: Mapping[str, Any], pools: Mapping[str, Kind], streams: Mapping[str, Kind], methods: Mapping[str, Kind]
) -> dict[str, Rule]:
    """Of every setting that a config with these leaves can have, by its full name."""
    rules = _of_kinds(found, pools, streams)
    for name in found:
        if name.startswith("config.variants."):
            rules |= _rule_of_variant(name, found, methods)
    return rules


def _of_kinds(found: Mapping[str, Any], pools: Mapping[str, Kind], streams: Mapping[str, Kind]) -> dict[str, Rule]:
    """Of all settings but the methods' own."""
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
    return rules


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
