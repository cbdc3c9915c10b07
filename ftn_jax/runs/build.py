"""Builds what a config asks for, and checks settings that depend on one another."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from ftn_jax.core.errors import InputError
from ftn_jax.core.mesh import make_mesh, spread
from ftn_jax.core.metrics import METRICS
from ftn_jax.core.rules import NAMES, ODD, SIZE, Config, flatten
from ftn_jax.core.torus import side_of
from ftn_jax.methods import METHODS, Configurer, Method, build_method
from ftn_jax.models import pretrained
from ftn_jax.pools import POOLS
from ftn_jax.pools.adapter import Adapter
from ftn_jax.pools.base import Pool, said_of
from ftn_jax.pools.peft import read_peft
from ftn_jax.runs.settings import check_settings, derived_experiment, fill
from ftn_jax.runs.settings_text import Described, describe_all
from ftn_jax.runs.settings_text import describe as describe_settings
from ftn_jax.streams import STREAMS, Context, Spec, Stream
from ftn_jax.streams.base import ArrayTask
from ftn_jax.training.state import CHUNK, Training, make_optimizer


class Problem(NamedTuple):
    """What a config asks for: a stream, the pool that learns it, the methods, the training, and the devices."""

    pool: Pool
    stream: Stream
    training: Training
    base: pretrained.Base | None
    mesh: Mesh
    seeds: tuple[int, ...]
    methods: dict[str, Method]  # by their names in ``config.methods``
    announced: bool  # whether a method is told when a task begins
    evaluate: str  # which tasks are scored after each: "all", those "seen", or, at the "ends" of blocks, its own
    grow: bool  # whether a full pool gets more components
    save_every: int  # steps between checkpoints
    adapters: tuple[Adapter, ...] = ()  # that are in the pool before the first task


def seeds_of(config: Config) -> tuple[int, ...]:
    """``config.seeds``, a count or a tuple, as a tuple."""
    return tuple(range(config.seeds)) if isinstance(config.seeds, int) else tuple(config.seeds)


def tasks_of(config: Config) -> tuple[str, ...]:
    """The names of the stream's tasks."""
    kind = STREAMS[config.stream.name]
    return kind.names(config.stream[kind.tasks])


def experiment_of(config: Config) -> str:
    """The name of the experiment in `results.json`; it is derived from the stream."""
    return derived_experiment(config, STREAMS)


def check(config: Config) -> None:
    """Refuses a filled config that can't work, before anything is loaded or written.

    Raises:
      InputError: names the setting, its value and what was expected.
    """
    check_settings(config, POOLS, STREAMS, METHODS)
    c, pool, optimizer = config.configurer, config.pool, config.optimizer
    if c.k > pool.size:
        raise InputError(f"config.configurer.k is {c.k}, expected at most config.pool.size = {pool.size}")
    if optimizer.name == "adam" and optimizer.weight_decay:
        raise InputError(
            f"config.optimizer.weight_decay is {optimizer.weight_decay}, expected 0 since adam has no decay: "
            "set config.optimizer.name=adamw"
        )
    if optimizer.warmup_steps >= config.stream.steps:
        raise InputError(
            f"config.optimizer.warmup_steps is {optimizer.warmup_steps}, expected fewer than config.stream.steps = "
            f"{config.stream.steps}, the steps of a task"
        )
    if config.stream.boundaries == "unknown":
        told = ("optimizer.lr_scheduler_type", "constant"), ("optimizer.warmup_steps", 0), ("stream.validation", 0)
        for name, usual in told:
            part, _, field = name.partition(".")
            if config[part].get(field, usual) != usual:
                raise InputError(
                    f"config.{name} is {config[part][field]}, expected {usual} if config.stream.boundaries is unknown: "
                    "nobody says where a task begins and ends"
                )
    if optimizer.early_stopping_patience and not config.stream.get("validation"):
        raise InputError(
            f"config.optimizer.early_stopping_patience is {optimizer.early_stopping_patience}, expected 0 without "
            "validation examples (config.stream.validation)"
        )
    for name, variant in config.variants.items():
        _check_variant(name, variant)
    for name in config.methods:
        build(config, name)


def filled(config: Config) -> Config:
    """A copy of a config, with defaults for the settings that it leaves out, and with each task of the stream listed.

    Raises:
      InputError: ``config.experiment``, which older configs have, contradicts the config's stream; or the tasks can't
        be listed, such as the files of a folder that does not exist.
    """
    whole = _filled(config)
    _list_tasks(whole)
    return whole


def _filled(config: Config) -> Config:
    return fill_in(ConfigDict(config.copy_and_resolve_references()))


def _list_tasks(config: Config) -> None:
    """Replaces settings that stand for several tasks by these; settings that are not valid are left to the check."""
    found = flatten(config)
    name = found.get("config.stream.name")
    kind = STREAMS.get(name) if isinstance(name, str) else None
    if kind is None or not kind.listing:
        return
    rules = {f"stream.{kind.tasks}": NAMES, **kind.settings}
    given: dict[str, Any] = {name: found.get(f"config.stream.{name}") for name in (str(kind.tasks), *kind.listing)}
    if all(rules[f"stream.{name}"][0](value) for name, value in given.items()):
        with config.ignore_type():
            for name, value in kind.listed(**given).items():
                config.stream[name] = value


def fill_in(config: Config, named: Iterable[str] = ()) -> Config:
    """Like `filled`, in place; also adds the defaults of ``named`` methods, so that flags can replace them."""
    return fill(config, POOLS, STREAMS, METHODS, named)


def settings(config: Config | None = None) -> list[Described]:
    """The settings of a config in words, with their values; without a config, all settings."""
    parts = POOLS, STREAMS, METHODS
    return describe_all(*parts) if config is None else describe_settings(_filled(config), *parts)


def _check_variant(name: str, variant: Config) -> None:
    """Raises InputError unless ``name`` is a method or a well-formed variant of one."""
    known = ", ".join(sorted(METHODS))
    method = variant.get("method")
    if name in METHODS:
        if method is not None:
            raise InputError(
                f"config.variants.{name}.method is {method!r}, expected none since {name} is a method itself"
            )
    elif method is None:
        raise InputError(
            f"config.variants.{name}: unknown method, known: {known}; to make {name} a variant of one of these, set "
            f"config.variants.{name}.method"
        )
    elif method not in METHODS:
        raise InputError(f"config.variants.{name}.method is {method!r}, expected one of {known}")
    elif not name.isidentifier():
        raise InputError(f"config.variants.{name}: expected a name of letters, digits and underscores")


def _place(config: Config, name: str, setting: str) -> str:
    """The full name of a setting of ``name``: in the variant of that name, or in the entry of its method."""
    own = config.variants.get(name, {})
    return f"config.variants.{name if setting in own else own.get('method', name)}.{setting}"


def variant_of(config: Config, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(method, its settings, the settings of its configurer) of a name in ``config.methods``.

    The settings of a variant override those in the entry of its method, and these override the method's defaults.
    """
    variants: dict[str, Any] = config.variants.to_dict()
    own = variants.get(name, {})
    method = own.get("method", name)
    defaults = METHODS[method].defaults if method in METHODS else {}
    settings = {**defaults, **variants.get(method, {}), **own}
    configurer = variants.get(method, {}).get("configurer", {}) | own.get("configurer", {})
    own = {key: _tuples(value) for key, value in settings.items() if key not in ("method", "configurer")}
    return method, own, configurer


def _tuples(value: Any) -> Any:
    """Lists as tuples: JSON has only lists, and a method loaded from a workdir must equal the one that was trained."""
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def build(config: Config, name: str) -> Method:
    """The method of that name with the config's settings.

    Raises:
      InputError: an unknown method or setting, or a mask that does not fit the pool.
    """
    k, size, tasks = config.configurer.k, config.pool.size, len(tasks_of(config))
    kind, variant, _ = variant_of(config, name)
    method = build_method(kind, configurer_of(config, name), variant, name=name)
    smooths = METHODS[kind].settings.get("kernel") is ODD  # otherwise it is a setting of a user's own method
    if smooths and (variant.get("lateral_steps") or variant.get("recovery_lateral_steps")):
        side = side_of(size)
        if side is None:
            raise InputError(f"config.pool.size is {size}, expected a square (a D x D torus) since {name} smooths")
        if variant["kernel"] > 2 * side - 1:
            raise InputError(
                f"{_place(config, name, 'kernel')} is {variant['kernel']}, expected at most 2 D - 1 = {2 * side - 1} "
                f"on the {side} x {side} torus of config.pool.size = {size}"
            )
    if config.stream.get("validation") and (method.every == "batch" or method.updates):
        why = "its mask moves" if method.every == "batch" else "what it trains depends on the step"
        raise InputError(
            f"config.stream.validation is {config.stream.validation}, expected 0 with {name}, since {why}: no earlier "
            "step can be put back"
        )
    if config.pool.get("adapters") and not method.reserves:
        raise InputError(
            f"config.pool.adapters is {tuple(config.pool.adapters)}, and {name} would train their components: expected "
            "a method that reserves components, such as lora_ftn_reserve"
        )
    if config.stream.boundaries == "unknown":
        if not method.reserves:
            raise InputError(
                f"config.stream.boundaries is unknown, and {name} must be told when a task begins: expected a method "
                "that reserves components, such as ftn_reserve or lora_ftn_reserve"
            )
        if config.optimizer.rows != "active":
            raise InputError(
                f"config.optimizer.rows is {config.optimizer.rows}, expected active if config.stream.boundaries is "
                "unknown, since only the steps of active components can be undone"
            )
    elif method.exclusive and tasks * k > size and not grows(config.pool.grow, method):
        raise InputError(
            f"config.pool.size is {size}, expected at least {tasks * k} since {name} gives each of {tasks} tasks "
            f"config.configurer.k = {k} components that no other task has: take fewer winners, a larger pool from the "
            "start, a pool that grows (config.pool.grow), or another method"
        )
    return method


def grows(grow: bool, method: Method) -> bool:
    """Whether a pool that may grow does so for a method. An oracle's blocks have fixed places, which would move."""
    return grow and method.reserves > 0


def configurer_of(config: Config, name: str) -> Configurer:
    """The settings of mask search for a name in ``config.methods``."""
    settings = config.configurer.to_dict() | variant_of(config, name)[2]
    del settings["support"]
    return Configurer(tasks=len(tasks_of(config)), **settings)


def mesh_for(config: Config) -> Mesh:
    """The mesh that a checked config asks for.

    Raises:
      InputError: too few devices, or seeds, rows or components can't be divided evenly among them.
    """
    rows = math.gcd(config.stream.batch, config.configurer.support)
    return make_mesh(len(seeds_of(config)), rows, config.pool.size, **config.mesh)


def make_problem(config: Config, base_name: str | None, begun: Spec | None = None) -> Problem:
    """Loads the base and builds stream, pool and training. Arrays that seeds share are on every device of the mesh.

    Args:
      config: a checked config.
      base_name: name of the base: ``config.base``, or the name to which an earlier run in the workdir resolved it.
        None if the config has no base.
      begun: the spec for which an earlier run in the workdir built its pool; None if there was no such run.

    Raises:
      InputError: the base can't be loaded, an example does not fit, a method does not work with the pool, the stream
        does not fit the pool of the earlier run, or see `mesh_for`.
    """
    mesh = mesh_for(config)
    base = None if base_name is None else pretrained.load(base_name, **config.model)
    if base is not None:
        base = base._replace(params=spread(base.params, mesh))
    context = Context(seeds_of(config), base)
    kind = STREAMS[config.stream.name]
    shared = ("name", kind.tasks, "steps", "batch", "boundaries", "evaluate", *kind.listing)
    own = {key: value for key, value in config.stream.items() if key not in shared}
    stream = kind.build(context, config.stream[kind.tasks], **own)
    if stream.metric not in METRICS:
        raise InputError(
            f"config.stream.name is {config.stream.name!r}, whose metric is {stream.metric!r}: expected one of "
            f"{', '.join(METRICS)}"
        )
    _check_examples(config, stream)
    stream = stream._replace(spec=_settled(stream.spec, begun))
    stream = stream._replace(tasks=spread(stream.tasks, mesh, *["seed"] if stream.axis == 0 else ()))
    pool, adapters = make_pool(config, context, stream), config.pool.get("adapters", ())
    methods = {name: build(config, name) for name in config.methods}
    for name, method in methods.items():
        trained: Any = method.adapt_pool(pool)  # refuses a pool that it does not work with
        if method.in_context:
            _check_contexts(name, trained, stream, config.configurer.support)
    return Problem(
        pool,
        stream,
        training_of(config),
        base,
        mesh,
        seeds_of(config),
        methods,
        announced=config.stream.boundaries == "given",
        evaluate=config.stream.evaluate,
        grow=config.pool.grow,
        save_every=config.checkpoint.every_steps,
        adapters=tuple(read_peft(f, base, same_base=config.pool.same_base) for f in adapters if base),
    )


def _settled(spec: Spec | None, begun: Spec | None) -> Spec | None:
    """The spec that the pool is built for: that of an earlier run, which may have more classes than today's tasks.

    Raises:
      InputError: the specs differ in anything else.
    """
    if spec is None or begun is None or spec == begun:
        return spec
    if 0 < spec.classes < begun.classes and spec._replace(classes=begun.classes) == begun:
        return begun
    hint = " (config.stream.classes leaves room for classes of later files)" if spec.classes > begun.classes > 0 else ""
    raise InputError(
        f"config.stream: the data are {said_of(spec)}, and the workdir's pool was made for {said_of(begun)}: name "
        f"another --workdir, or add --fresh to set this one aside{hint}"
    )


def make_pool(config: Config, context: Context, stream: Stream) -> Pool:
    """The pool that a config asks for."""
    own = {key: value for key, value in config.pool.items() if key not in ("name", "grow", "adapters", "same_base")}
    return POOLS[config.pool.name].build(context, stream, **own)


def training_of(config: Config) -> Training:
    """How a config's tasks are trained."""
    o = config.optimizer
    more = {name: o[name] for name in ("lr_scheduler_type", "warmup_steps", "max_grad_norm", "mu_dtype")}
    return Training(
        optimizer=make_optimizer(o.name, o.learning_rate, o.weight_decay, steps=config.stream.steps, **more),
        steps=config.stream.steps,
        batch=config.stream.batch * o.gradient_accumulation_steps,
        accumulate=o.gradient_accumulation_steps,
        chunk=CHUNK,
        eval_steps=o.eval_steps if config.stream.get("validation") else 0,
        patience=o.early_stopping_patience,
        support=config.configurer.support,
        rows=o.rows,
        reset=o.reset,
    )


def _check_examples(config: Config, stream: Stream) -> None:
    """Raises InputError if a task has fewer examples than are drawn at once."""
    drawn = [
        ("config.configurer.support", config.configurer.support, ("recovery", "installation")),
        (*_drawn_at_once(config), ("training",)),
    ]
    for method in config.methods:
        kind, variant, _ = variant_of(config, method)
        if METHODS[kind].settings.get("examples") is SIZE and "examples" in variant:
            drawn.append((_place(config, method, "examples"), variant["examples"], ("installation",)))
    for name, counts in zip(stream.names, stream.examples, strict=bool(stream.examples)):
        for setting, count, kinds in drawn:
            for kind in kinds:
                most = counts.get(kind, counts["training"])  # masks are installed with training examples
                if count > most:
                    of = kind if kind in counts else "training"
                    raise InputError(
                        f"{setting} is {count}, expected at most the {most} {of} examples of task {name!r}: lower it, "
                        f"add examples, or change the shares of the splits (config.stream.recovery, .test)"
                    )


def _drawn_at_once(config: Config) -> tuple[str, int]:
    """The settings that say how many training examples a step draws, and that number."""
    parts = config.optimizer.gradient_accumulation_steps
    name = "config.stream.batch" + " x config.optimizer.gradient_accumulation_steps" * (parts > 1)
    return name, config.stream.batch * parts


def _check_contexts(name: str, pool: Any, stream: Stream, support: int) -> None:
    """Raises InputError if the longest support examples of a task do not fit before its test examples."""
    for task, data in zip(stream.names, stream.tasks, strict=True):
        if isinstance(data, ArrayTask):
            try:
                pool.check_context(data.recovery, data.test(), drawn=support)
            except InputError as error:
                raise InputError(f"config.methods: {name}, task {task!r}: {error}") from error


def describe(base: pretrained.Base | None) -> dict[str, Any] | None:
    """The base's entry in `results.json`."""
    return None if base is None else base.entry
