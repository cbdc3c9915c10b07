"""Every setting of a run: what it may be, its default and its meaning; and the check of a config."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from ftn_jax.core.configurer import PROPOSALS
from ftn_jax.core.errors import InputError
from ftn_jax.core.registry import Kind
from ftn_jax.core.rules import (
    COUNT,
    NAMES,
    NOT_NEGATIVE,
    POSITIVE,
    SIZE,
    SWITCH,
    TEXT,
    Config,
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
    "seeds": 1,
    "base": "auto",
    "model.dtype": "float32",
    "model.remat": False,
    "stream.boundaries": "given",
    "stream.evaluate": "all",
    "pool.grow": False,
    "configurer.proposal": "adam",
    "configurer.moments": "fresh",
    "configurer.start": 0.5,
    "optimizer.name": "adam",
    "optimizer.weight_decay": 0.0,
    "optimizer.reset": True,
    "optimizer.rows": "active",
    "mesh.seed": 0,
    "mesh.data": 0,
    "mesh.pool": 1,
    "checkpoint.every_steps": 200,
}
"""Values of settings that a config leaves out, whatever its kinds of pool and stream; see `Kind` for the others."""

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
    "seeds": "number of seeds, or the seeds themselves; each trains a model of its own",
    "methods": "names of the methods; each is trained on the whole stream, one after another",
    "base": "the frozen language model. auto: distilgpt2 where it is cached or the hub answers, else packaged, which "
    "ships with the package; smollm2: SmolLM2-135M-Instruct; or the folder, GGUF file or hub name of a GPT-2, Llama, "
    "Mistral, Qwen 2, 2.5 or 3, or Gemma 3 (text)",
    "model.dtype": "precision of the base and of all computation",
    "model.remat": "gradient checkpointing: less memory, more time",
    "stream.name": "the kind of stream",
    "stream.tasks": "names of the tasks, in the order of training; name#2 comes back to a task",
    "stream.files": "a file for each task, in the order of training: .jsonl, or .npz or .csv of arrays",
    "stream.target": "what is learned of a point: its class, or its value",
    "stream.steps": "training steps on each task",
    "stream.batch": "examples in a training step",
    "stream.boundaries": "unknown: nobody announces a new task; methods that reserve components find out by themselves",
    "stream.evaluate": "tasks that are scored after each task: all of them, or those seen so far",
    "stream.held_out": "sentences that are scored; validation sets aside a part of the training sentences",
    "stream.max_length": "tokens of prompt and completion together; a longer prompt of a file loses its left end, a "
    "longer style sentence is an error",
    "stream.long_texts": "a longer text without a prompt is split into several examples, or cut",
    "stream.recovery": "share of the lines or rows from which masks are found again",
    "stream.test": "held out: examples of each test set, or of files the share of their lines or rows",
    "stream.classes": "number of classes of arrays; 0: as many as the files have; more leave room for later files",
    "stream.block": "latent features of each task; tasks share none",
    "stream.scale": "standard deviation of the encoder's weights",
    "stream.frequency": "frequency of the sinusoid",
    "pool.name": "the kind of component",
    "pool.size": "number of components, H; methods that smooth need a square, H = D x D",
    "pool.grow": "add components when a method that reserves them finds no room for a task",
    "pool.rank": "rank r of each component",
    "pool.modules": "linear modules that components update, in all layers: qkv (the paper's), all-linear, or regexes "
    "that match on full names, as attn.c_attn on h.0.attn.c_attn, or layers.[0-9]+.self_attn on "
    "model.layers.0.self_attn.q_proj",
    "pool.b_std": "standard deviation of B's init; 0 is LoRA's standard",
    "pool.layers": "hidden layers of each network",
    "pool.width": "units of each hidden layer",
    "pool.activation": "activation of the hidden layers",
    "pool.weights": "initialiser of the weights",
    "pool.dropout": "dropout rate of the components' outputs",
    "configurer.k": "winners k: components of a mask",
    "configurer.steps": "steps S on the mask logits",
    "configurer.learning_rate": "learning rate eta of these steps",
    "configurer.support": "labelled examples from which a mask is found",
    "configurer.jitter": "standard deviation of noise on the logits, which breaks the ties of untrained components",
    "configurer.proposal": "optimizer of the mask logits: adam, the paper's; or gradient, one scale for all logits",
    "configurer.moments": "Adam's moments on the mask logits: new in each search, or kept from batch to batch",
    "configurer.start": "value of the relaxed mask before the first step",
    "optimizer.name": "optimizer of the components",
    "optimizer.learning_rate": "learning rate of the components",
    "optimizer.weight_decay": "weight decay of adamw",
    "optimizer.reset": "fresh moments at task boundaries (Remark 2.2)",
    "optimizer.rows": "active: the optimizer sees only a mask's rows; dense: it sees every row (Remark 2.2)",
    "mesh.seed": "devices along which seeds lie; 0: as many as there are, seeds first",
    "mesh.data": "devices along which the rows of a batch lie; 0: what the seeds leave",
    "mesh.pool": "devices along which components lie",
    "checkpoint.every_steps": "steps between checkpoints inside a task; there is one more at each task's end",
    "variants.*.method": "the method that this is a variant of, where the name is not a method's",
    "variants.*.kernel": "width s of the s x s smoothing",
    "variants.*.lateral_steps": "rounds T of smoothing",
    "variants.*.recovery_lateral_steps": "rounds of smoothing at recovery; None: as many as in training",
    "variants.*.every": "batch: a new search of the mask on every training batch; task: one search for each task",
    "variants.*.b_std": "standard deviation of B's init for this method; None: config.pool.b_std",
    "variants.*.strength": "weight lambda of the penalty",
    "variants.*.share": "share of k that a task has of its own where it reuses components of earlier tasks",
    "variants.*.sharpness": "s_max, the slope of the gates at a block's end",
    "variants.*.keep": "share of the free weights that a task keeps",
    "variants.*.prune_at": "share of a block's steps before it prunes",
    "variants.*.examples": "examples for the Fisher information (EWC), or kept from each earlier task (replay)",
    "variants.*.signed": "constant magnitudes, with the sign of the drawn weights",
    "variants.*.widen": "factor by which the networks are wider",
}
"""What a setting means; of a method's own, * stands for the method's or variant's name."""

ANYTHING: Rule = (lambda value: True, "anything")


def check_settings(
    config: Config, pools: Mapping[str, Kind], streams: Mapping[str, Kind], methods: Mapping[str, Kind]
) -> None:
    """Holds every leaf of a filled config to `SETTINGS` and to the rules of its kinds of pool, stream and methods.

    Raises:
      InputError: a setting that is missing, that does not exist, or whose value is not what is expected.
    """
    found = flatten(config)
    kinds_first = sorted(found.items(), key=lambda item: not item[0].startswith(_KINDS))
    hold(dict(kinds_first), rules_of(found, pools, streams, methods))


def fill(
    config: Config,
    pools: Mapping[str, Kind],
    streams: Mapping[str, Kind],
    methods: Mapping[str, Kind],
    named: Iterable[str] = (),
) -> Config:
    """The config, with the defaults of the settings that it leaves out.

    Those of a method are there where it is in ``config.methods``, has a variant or is ``named``.

    Raises:
      InputError: a ``config.experiment``, as configs once had it, that is not the one of the config's stream.
    """
    with config.unlocked():
        _drop_experiment(config, streams)
        if "variants" not in config:
            config.variants = ConfigDict()
        for name, default in defaults_of(flatten(config), pools, streams, methods, named).items():
            _put(config, name, default)
        seeds = dict(config.items(preserve_field_references=True))["seeds"]
        if not isinstance(seeds, FieldReference | ConfigDict):
            with config.ignore_type():  # a count may be replaced by a tuple, and a tuple by a count
                config.seeds = FieldReference(seeds, field_type=object)
    return config


def derived_experiment(config: Config, streams: Mapping[str, Kind]) -> str:
    """What `results.json` calls the experiment: see `Kind`."""
    kind = streams[config.stream.name]
    if kind.experiment in kind.settings:
        return flatten(config)[f"config.{kind.experiment}"]
    return kind.experiment or config.stream.name


def _drop_experiment(config: Config, streams: Mapping[str, Kind]) -> None:
    """Takes out what configs once said of their stream in ``config.experiment``."""
    found = flatten(config)
    name, said = found.get("config.stream.name"), found.get("config.experiment")
    kind = streams.get(name) if isinstance(name, str) else None
    if "experiment" not in config or kind is None:
        return
    if kind.experiment in kind.settings and f"config.{kind.experiment}" not in found:
        fits, expected = kind.settings[kind.experiment]
        if not fits(said):
            raise InputError(f"config.experiment is {said!r}, expected {expected}, as config.{kind.experiment}")
        _put(config, kind.experiment, said)
    elif said != (expected := derived_experiment(config, streams)):
        raise InputError(
            f"config.experiment is {said!r}, expected {expected!r} as config.stream has it, or no such setting"
        )
    del config["experiment"]


def defaults_of(
    found: Mapping[str, Any],
    pools: Mapping[str, Kind],
    streams: Mapping[str, Kind],
    methods: Mapping[str, Kind],
    named: Iterable[str] = (),
) -> dict[str, Any]:
    """Those of a config with these leaves, as far as its kinds are known; see `fill`."""
    kinds = [
        registry[name]
        for place, registry in zip(_KINDS, (pools, streams), strict=True)
        if isinstance(name := found.get(place), str) and name in registry
    ]
    known = [SETTINGS, *(kind.settings for kind in kinds)]
    defaults = {name: value for name, value in DEFAULTS.items() if any(name in rules for rules in known)}
    for kind in kinds:
        defaults |= kind.defaults
    for method in dict.fromkeys(_methods_of(found, named)):
        if method in methods:
            own = methods[method].defaults.items()
            defaults |= {f"variants.{method}.{name}": value for name, value in own if value is not None}
    return defaults


def _methods_of(found: Mapping[str, Any], named: Iterable[str]) -> Iterator[str]:
    """The methods that these names stand for, those of ``config.methods`` and of the variants."""
    asked = found.get("config.methods")
    variants = [name.split(".")[2] for name in found if name.startswith("config.variants.")]
    for name in (*(asked if isinstance(asked, tuple | list) else ()), *variants, *named):
        method = found.get(f"config.variants.{name}.method", name)
        if isinstance(method, str):
            yield method


def _put(config: Config, name: str, value: Any) -> None:
    """Sets what is not there yet; nothing where a value stands in the place of a tree, which is refused."""
    *path, last = name.split(".")
    tree = config
    for part in path:
        if part not in tree:
            tree[part] = ConfigDict()
        tree = tree[part]
        if not isinstance(tree, ConfigDict):
            return
    if last not in tree:
        tree[last] = value


def rules_of(
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
        return {name: own.get(path[0], ANYTHING)}
    if path[0] == "configurer":
        setting = ".".join(path)
        return {name: SETTINGS[setting]} if setting in OF_VARIANTS else {}
    return {} if path[0] in own else {name: ANYTHING}  # a tree is a user's own method's business
