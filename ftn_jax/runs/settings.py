"""Every setting of a run: its allowed values, its default and its meaning; and the check of a config."""

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
from ftn_jax.training.state import CHUNK

_MAX_SEEDS = 1000
_KINDS = ("config.pool.name", "config.stream.name")  # these decide which other settings exist


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
    "stream.evaluate": one_of("all", "seen", "ends"),
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
    "optimizer.mu_dtype": one_of("float32", "bfloat16"),
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.lr_scheduler_type": one_of("constant", "linear", "cosine"),
    "optimizer.warmup_steps": whole(0),
    "optimizer.max_grad_norm": NOT_NEGATIVE,
    "optimizer.gradient_accumulation_steps": SIZE,
    "optimizer.eval_steps": (
        lambda value: type(value) is int and 0 < value <= 10**9 and value % CHUNK == 0,
        f"a multiple of {CHUNK}, the steps between two returns to the host",
    ),
    "optimizer.early_stopping_patience": whole(0),
    "optimizer.reset": SWITCH,
    "optimizer.rows": one_of("active", "dense"),
    "mesh.seed": whole(0, 2**20),
    "mesh.data": whole(0, 2**20),
    "mesh.pool": whole(1, 2**20),
}
"""Every setting except those that a `Kind` adds and those of ``variants.<method>``."""

DEFAULTS: dict[str, Any] = {
    "seeds": 1,
    "base": "auto",
    "model.dtype": "float32",
    "model.remat": False,
    "model.chat_template_path": "auto",
    "stream.boundaries": "given",
    "stream.evaluate": "all",
    "pool.grow": False,
    "configurer.proposal": "adam",
    "configurer.moments": "fresh",
    "configurer.start": 0.5,
    "optimizer.name": "adam",
    "optimizer.mu_dtype": "float32",
    "optimizer.weight_decay": 0.0,
    "optimizer.lr_scheduler_type": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.max_grad_norm": 0.0,
    "optimizer.gradient_accumulation_steps": 1,
    "optimizer.eval_steps": 20,
    "optimizer.early_stopping_patience": 0,
    "optimizer.reset": True,
    "optimizer.rows": "active",
    "mesh.seed": 0,
    "mesh.data": 0,
    "mesh.pool": 1,
    "checkpoint.every_steps": 200,
}
"""The defaults that hold for every kind of pool and stream; each `Kind` adds its own."""

OF_VARIANTS = tuple(
    name for name in SETTINGS if name.startswith("configurer.") and name not in ("configurer.k", "configurer.support")
)
"""The settings of ``config.configurer`` that ``variants.<method>.configurer`` may override for one method."""

OF_EVERY_VARIANT: dict[str, Rule] = {
    "configurer": (lambda value: False, "settings of config.configurer for this method alone"),
    "method": TEXT,
}
"""Rules for the settings that ``variants.<name>`` may have with any method; each method adds its own."""

MEANINGS: dict[str, str] = {
    "seeds": "number of seeds, or the seeds themselves; each seed trains a separate model",
    "methods": "names of the methods; each learns the whole stream, one method after another",
    "base": "the frozen language model. packaged: the small model that ships with the package; auto: distilgpt2 if it "
    "is cached or the hub answers, otherwise packaged; smollm2: SmolLM2-135M-Instruct; or the folder, GGUF file or hub "
    "name of a GPT-2, Llama, Mistral, Qwen 2, 2.5 or 3, or Gemma 3 (text)",
    "model.dtype": "precision of the base and of all computation",
    "model.remat": "gradient checkpointing: less memory, more time",
    "model.chat_template_path": "a file with the Jinja template that writes messages; auto: the tokenizer's own",
    "stream.name": "the kind of stream",
    "stream.tasks": "names of the tasks, in the order of training; name#2 returns to an earlier task",
    "stream.files": "one file per task, in the order of training: .jsonl for text, .npz or .csv for arrays; or, for "
    "text, a single folder: all its .jsonl files in alphabetical order",
    "stream.drawn": "how many of the files are tasks, and the seed with which these and their order are drawn",
    "stream.source": "where the files can be had; the message says it if they are not there",
    "stream.target": "what the model predicts for a point: its class or its value",
    "stream.steps": "training steps on each task",
    "stream.batch": "examples per training step, or per accumulated part of it",
    "stream.boundaries": "given: the method is told when a task begins; unknown: it is not told, and must detect new "
    "tasks itself, which only methods that reserve components can",
    "stream.evaluate": "which tasks are scored after each task: all; those seen so far; or, of many tasks, at the ends "
    "alone: a task after its own training, and all after the last",
    "stream.validation": "share of a task's examples by whose loss the best step of its training is chosen, and which "
    "are not trained on: of all lines of a file, by hash; of the training sentences of a style. 0: the last step is "
    "taken",
    "stream.held_out": "which sentences are scored: the test sentences, or, for validation, a part of the training "
    "sentences, which is then not trained on",
    "stream.max_length": "most tokens of prompt and completion together; in files, a longer prompt is cut at its left "
    "end; a longer style sentence is an error",
    "stream.long_texts": "whether a text without a prompt that exceeds max_length is split into several examples, or "
    "cut",
    "stream.recovery": "share of the lines or rows that is set aside for recovering masks",
    "stream.test": "size of each test set: a number of examples, or, for files, a share of their lines or rows",
    "stream.classes": "number of classes of arrays; 0: as many as the files have; a larger number leaves room for "
    "later files",
    "stream.block": "number of latent features per task; tasks share none",
    "stream.scale": "standard deviation of the encoder's weights",
    "stream.frequency": "frequency of the sinusoid",
    "pool.name": "the kind of component",
    "pool.size": "number of components, H; methods that smooth need a square, H = D x D",
    "pool.grow": "add components when a method that reserves them has too few left for a new task",
    "pool.rank": "rank r of each component",
    "pool.modules": "linear modules that components update, in all layers: qkv (as in the paper), all-linear, or "
    "regular expressions that are searched for in full names: attn.c_attn finds h.0.attn.c_attn, and "
    "layers.[0-9]+.self_attn finds model.layers.0.self_attn.q_proj",
    "pool.b_std": "standard deviation of B at initialisation; standard LoRA has 0",
    "pool.adapters": "folders of PEFT LoRAs of the base; before the first task, each is put into components of its own",
    "pool.same_base": "take these adapters for ones of this base, whichever base they name",
    "pool.layers": "hidden layers of each network",
    "pool.width": "units of each hidden layer",
    "pool.activation": "activation of the hidden layers",
    "pool.weights": "initialiser of the weights",
    "pool.dropout": "dropout rate of the components' outputs",
    "configurer.k": "number of winners k, the components of a mask",
    "configurer.steps": "steps S on the mask logits",
    "configurer.learning_rate": "learning rate eta of these steps",
    "configurer.support": "labelled examples from which a mask is found",
    "configurer.jitter": "standard deviation of the noise on the mask logits, which breaks ties between untrained "
    "components",
    "configurer.proposal": "optimizer of the mask logits: adam, as in the paper; or gradient, which scales all logits "
    "alike",
    "configurer.moments": "Adam's moments on the mask logits: fresh in each search, or kept from batch to batch",
    "configurer.start": "value of the relaxed mask before the first step",
    "optimizer.name": "optimizer of the components",
    "optimizer.learning_rate": "learning rate of the components",
    "optimizer.mu_dtype": "dtype in which the first moment is kept; bfloat16 saves a quarter of the moments",
    "optimizer.weight_decay": "weight decay of adamw",
    "optimizer.lr_scheduler_type": "the learning rate after its warm-up, in each task anew: constant, or a linear or "
    "cosine decay to 0 at the task's last step",
    "optimizer.warmup_steps": "steps at the start of each task in which the learning rate rises linearly from 0",
    "optimizer.max_grad_norm": "the largest norm of the gradient of all that is trained; a larger one is scaled to it; "
    "0: no limit",
    "optimizer.gradient_accumulation_steps": "batches of stream.batch examples for one training step: as one larger "
    "batch, but computed one after another in less memory",
    "optimizer.eval_steps": "steps between two validations, if config.stream.validation is above 0",
    "optimizer.early_stopping_patience": "validations without a lower loss, in every seed, after which the training "
    "of a task ends; 0: never",
    "optimizer.reset": "reset the optimizer's moments at task boundaries (Remark 2.2)",
    "optimizer.rows": "active: the optimizer sees only the rows of the mask's components; dense: it sees every row "
    "(Remark 2.2)",
    "mesh.seed": "number of devices over which seeds are spread; 0: as many as possible",
    "mesh.data": "number of devices over which the rows of a batch are spread; 0: as many as the seeds leave",
    "mesh.pool": "number of devices over which components are spread",
    "checkpoint.every_steps": "steps between checkpoints within a task; one more is saved at each task's end",
    "variants.*.method": "the method of the variant; needed if the variant's name is not itself a method",
    "variants.*.kernel": "width s of the s x s smoothing kernel",
    "variants.*.lateral_steps": "rounds T of smoothing",
    "variants.*.recovery_lateral_steps": "rounds of smoothing at recovery; None: as many as in training",
    "variants.*.every": "batch: search for a new mask on every training batch; task: search once per task",
    "variants.*.b_std": "standard deviation of B at initialisation for this method; None: config.pool.b_std",
    "variants.*.strength": "weight lambda of the penalty",
    "variants.*.share": "share of k that a task has of its own where it reuses components of earlier tasks",
    "variants.*.sharpness": "s_max, the slope of the gates at the end of a block",
    "variants.*.keep": "share of the free weights that a task keeps",
    "variants.*.prune_at": "share of a block's steps after which weights are pruned",
    "variants.*.examples": "number of examples for the Fisher information (EWC), or kept from each earlier task "
    "(replay)",
    "variants.*.signed": "keep only the signs of the drawn weights, with one magnitude per layer",
    "variants.*.widen": "factor by which the networks are wider",
}
"""The meaning of each setting. In ``variants.*``, * stands for the name of a method or variant."""

ANYTHING: Rule = (lambda value: True, "anything")


def check_settings(
    config: Config, pools: Mapping[str, Kind], streams: Mapping[str, Kind], methods: Mapping[str, Kind]
) -> None:
    """Checks every leaf of a filled config against `SETTINGS` and the rules of its pool, stream and methods.

    Raises:
      InputError: a setting is missing or does not exist, or its value is not allowed.
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
    """The config, with defaults for the settings that it leaves out.

    A method's defaults are added if the method is in ``config.methods``, has a variant or is in ``named``.

    Raises:
      InputError: ``config.experiment``, which older configs have, contradicts the config's stream.
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
    """The name of the experiment in `results.json`; see `Kind`."""
    kind = streams[config.stream.name]
    if kind.experiment in kind.settings:
        return flatten(config)[f"config.{kind.experiment}"]
    return kind.experiment or config.stream.name


def _drop_experiment(config: Config, streams: Mapping[str, Kind]) -> None:
    """Removes ``config.experiment``, which older configs have, after moving its value to the stream's settings."""
    found = flatten(config)
    name, said = found.get("config.stream.name"), found.get("config.experiment")
    kind = streams.get(name) if isinstance(name, str) else None
    if "experiment" not in config or kind is None:
        return
    if kind.experiment in kind.settings and f"config.{kind.experiment}" not in found:
        fits, expected = kind.settings[kind.experiment]
        if not fits(said):
            raise InputError(f"config.experiment is {said!r}, expected {expected}, as for config.{kind.experiment}")
        _put(config, kind.experiment, said)
    elif said != (expected := derived_experiment(config, streams)):
        raise InputError(
            f"config.experiment is {said!r}, expected {expected!r} as config.stream has it: correct or remove it"
        )
    del config["experiment"]


def defaults_of(
    found: Mapping[str, Any],
    pools: Mapping[str, Kind],
    streams: Mapping[str, Kind],
    methods: Mapping[str, Kind],
    named: Iterable[str] = (),
) -> dict[str, Any]:
    """The defaults for a config with these leaves, as far as its kinds are known; see `fill`."""
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
    """The methods of the names in ``named``, in ``config.methods`` and of the variants."""
    asked = found.get("config.methods")
    variants = [name.split(".")[2] for name in found if name.startswith("config.variants.")]
    for name in (*(asked if isinstance(asked, tuple | list) else ()), *variants, *named):
        method = found.get(f"config.variants.{name}.method", name)
        if isinstance(method, str):
            yield method


def _put(config: Config, name: str, value: Any) -> None:
    """Sets ``name`` unless it is set; does nothing if a value stands in place of a tree, which the check refuses."""
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
    """The rule for every setting that a config with these leaves can have, by full name."""
    rules = _of_kinds(found, pools, streams)
    for name in found:
        if name.startswith("config.variants."):
            rules |= _rule_of_variant(name, found, methods)
    return rules


def _of_kinds(found: Mapping[str, Any], pools: Mapping[str, Kind], streams: Mapping[str, Kind]) -> dict[str, Rule]:
    """The rules for all settings except those of methods."""
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
    """The rule for a leaf ``config.variants.<variant>.<setting>...``; empty if there is no such setting."""
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
    return {} if path[0] in own else {name: ANYTHING}  # a user's own method checks its trees itself
