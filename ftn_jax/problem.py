"""From a config to what is trained: the one place that reads the tree of settings and checks it."""

import math
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ftn_jax.errors import InputError
from ftn_jax.methods import Configurer, Method, build_method
from ftn_jax.models import pretrained
from ftn_jax.pools.base import Pool
from ftn_jax.pools.lora import LoraPool, match_modules
from ftn_jax.streams.styles import Stream, styles
from ftn_jax.trainer import Training, make_optimizer


class Problem(NamedTuple):
    """A stream, the pool that learns it, and how."""

    pool: Pool
    stream: Stream
    training: Training
    configurer: Configurer
    base: pretrained.Base | None


def seeds_of(config: ConfigDict) -> tuple[int, ...]:
    """``config.seeds``, a count or a tuple, as a tuple.

    Raises:
      InputError: neither, or empty, or with duplicates.
    """
    value = config.seeds
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return tuple(range(value))
    if isinstance(value, tuple | list) and value and all(type(s) is int and 0 <= s < 2**31 for s in value):
        if len(set(value)) == len(value):
            return tuple(value)
    raise InputError(f"config.seeds is {value!r}, expected a count above 0 or a tuple of different seeds")


def check(config: ConfigDict) -> None:
    """Finds what can't work before anything is loaded or written.

    Raises:
      InputError: names the setting, its value and what was expected.
    """
    seeds_of(config)
    c, pool, stream = config.configurer, config.pool, config.stream
    for name, value, least in (
        ("pool.size", pool.size, 1),
        ("pool.rank", pool.rank, 1),
        ("pool.b_std", pool.b_std, 0),
        ("configurer.k", c.k, 1),
        ("configurer.steps", c.steps, 1),
        ("configurer.support", c.support, 1),
        ("configurer.jitter", c.jitter, 0),
        ("stream.steps", stream.steps, 1),
        ("stream.batch", stream.batch, 1),
        ("stream.max_length", stream.max_length, 2),
        ("optimizer.weight_decay", config.optimizer.weight_decay, 0),
    ):
        if not (math.isfinite(value) and value >= least):
            raise InputError(f"config.{name} is {value}, expected {least} or more")
    for name, value in (
        ("configurer.learning_rate", c.learning_rate),
        ("optimizer.learning_rate", config.optimizer.learning_rate),
    ):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"config.{name} is {value}, expected a number above 0")
    if c.k > pool.size:
        raise InputError(f"config.configurer.k is {c.k}, expected at most config.pool.size, {pool.size}")
    for name, value, known in (
        ("experiment", config.experiment, ("lora",)),
        ("stream.name", stream.name, ("styles",)),
        ("model.dtype", config.model.dtype, ("float32", "bfloat16")),
        ("optimizer.name", config.optimizer.name, ("adam", "adamw")),
        ("optimizer.rows", config.optimizer.rows, ("active", "dense")),
    ):
        if value not in known:
            raise InputError(f"config.{name} is {value!r}, known: {', '.join(known)}")
    for name in ("methods",):
        value = config[name]
        if not isinstance(value, tuple | list) or not value or len(set(value)) != len(value):
            raise InputError(f"config.{name} is {value!r}, expected a tuple of different names")
    for method in config.methods:
        build(config, method)


def build(config: ConfigDict, name: str) -> Method:
    """The method of that name with the config's settings.

    Raises:
      InputError: unknown method or setting, or a mask that this pool can't have.
    """
    c, size = config.configurer, config.pool.size
    variant = config.variants.get(name, ConfigDict()).to_dict()
    method = build_method(name, configurer_of(config), variant)
    kernel, lateral_steps = variant.get("kernel", 1), variant.get("lateral_steps", 0)
    where = f"config.variants.{name}"
    if kernel < 1 or kernel % 2 == 0:
        raise InputError(f"{where}.kernel is {kernel}, expected an odd number")
    if lateral_steps < 0:
        raise InputError(f"{where}.lateral_steps is {lateral_steps}, expected 0 or more")
    if lateral_steps and math.isqrt(size) ** 2 != size:
        raise InputError(f"config.pool.size is {size}, expected a square (a D x D torus) since {name} smooths")
    blocks = size // c.k
    if method.oracle and len(config.stream.tasks) > blocks:
        raise InputError(
            f"{name} needs a block of config.configurer.k = {c.k} components for each of "
            f"{len(config.stream.tasks)} tasks, config.pool.size = {size} has {blocks}"
        )
    return method


def configurer_of(config: ConfigDict) -> Configurer:
    c = config.configurer
    return Configurer(k=c.k, steps=c.steps, learning_rate=c.learning_rate, jitter=c.jitter)


def make_problem(config: ConfigDict, base_name: str) -> Problem:
    """Loads the base and builds stream, pool and training.

    Args:
      config: a checked config.
      base_name: of the base; ``config.base``, or what an earlier run of the workdir resolved it to.

    Raises:
      InputError: the base can't be had, or an example does not fit.
    """
    base = pretrained.load(base_name, dtype=config.model.dtype, remat=config.model.remat)
    max_length = config.stream.max_length
    if max_length > base.config.n_positions:
        raise InputError(f"config.stream.max_length is {max_length}, the base has {base.config.n_positions} positions")
    stream = styles(config.stream.tasks, base.tokenizer, max_length=max_length)
    for name, task in zip(stream.names, stream.tasks, strict=True):
        for setting, value, split in (
            ("configurer.support", config.configurer.support, task.recovery),
            ("configurer.support", config.configurer.support, task.train),
            ("stream.batch", config.stream.batch, task.train),
        ):
            if value > len(split.tokens):
                raise InputError(f"config.{setting} is {value}, task {name!r} has only {len(split.tokens)} examples")
    pool = LoraPool(
        base=base.params,
        model=base.config,
        size=config.pool.size,
        rank=config.pool.rank,
        modules=match_modules(config.pool.modules, base.config.n_layer),
        b_std=config.pool.b_std,
    )
    o = config.optimizer
    training = Training(
        optimizer=make_optimizer(o.name, o.learning_rate, o.weight_decay),
        steps=config.stream.steps,
        batch=config.stream.batch,
        support=config.configurer.support,
        rows=o.rows,
        reset=o.reset,
    )
    return Problem(pool, stream, training, configurer_of(config), base)


def describe(base: pretrained.Base | None) -> dict[str, Any] | None:
    """The base's entry in `results.json`."""
    return None if base is None else {"name": base.name, "hash": base.hash}
