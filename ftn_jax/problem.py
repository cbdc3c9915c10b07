"""From a config to what is trained, and the checks of settings that depend on one another."""

import math
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ftn_jax.errors import InputError
from ftn_jax.methods import METHODS, Configurer, Method, build_method
from ftn_jax.models import pretrained
from ftn_jax.pools.base import Pool
from ftn_jax.pools.lora import LoraPool, match_modules
from ftn_jax.settings import Config, check_settings
from ftn_jax.streams.styles import Stream, styles
from ftn_jax.trainer import Training, make_optimizer


class Problem(NamedTuple):
    """A stream, the pool that learns it, and how."""

    pool: Pool
    stream: Stream
    training: Training
    configurer: Configurer
    base: pretrained.Base | None


def seeds_of(config: Config) -> tuple[int, ...]:
    """``config.seeds``, a count or a tuple, as a tuple."""
    return tuple(range(config.seeds)) if isinstance(config.seeds, int) else tuple(config.seeds)


def check(config: Config) -> None:
    """Finds what can't work before anything is loaded or written.

    Raises:
      InputError: names the setting, its value and what was expected.
    """
    check_settings(config)
    c, pool, optimizer = config.configurer, config.pool, config.optimizer
    if c.k > pool.size:
        raise InputError(f"config.configurer.k is {c.k}, expected at most config.pool.size = {pool.size}")
    if optimizer.name == "adam" and optimizer.weight_decay:
        raise InputError(
            f"config.optimizer.weight_decay is {optimizer.weight_decay}, expected 0 since adam has no decay: "
            "set config.optimizer.name=adamw"
        )
    for name in config.variants:
        if name not in METHODS:
            raise InputError(f"config.variants.{name}: unknown method, known: {', '.join(sorted(METHODS))}")
    for name in config.methods:
        build(config, name)


def build(config: Config, name: str) -> Method:
    """The method of that name with the config's settings.

    Raises:
      InputError: unknown method or setting, or a mask that this pool can't have.
    """
    k, size, tasks = config.configurer.k, config.pool.size, len(config.stream.tasks)
    variant = config.variants.get(name, ConfigDict()).to_dict()
    method = build_method(name, configurer_of(config), variant)
    if variant.get("lateral_steps"):
        side = math.isqrt(size)
        if side * side != size:
            raise InputError(f"config.pool.size is {size}, expected a square (a D x D torus) since {name} smooths")
        if variant["kernel"] > 2 * side - 1:
            raise InputError(
                f"config.variants.{name}.kernel is {variant['kernel']}, expected at most 2 D - 1 = {2 * side - 1} "
                f"on the {side} x {side} torus of config.pool.size = {size}"
            )
    if method.oracle and tasks * k > size:
        raise InputError(
            f"config.pool.size is {size}, expected at least {tasks * k} since {name} gives each of {tasks} tasks "
            f"a block of config.configurer.k = {k}"
        )
    return method


def configurer_of(config: Config) -> Configurer:
    c = config.configurer
    return Configurer(k=c.k, steps=c.steps, learning_rate=c.learning_rate, jitter=c.jitter)


def make_problem(config: Config, base_name: str) -> Problem:
    """Loads the base and builds stream, pool and training.

    Args:
      config: a checked config.
      base_name: of the base; ``config.base``, or what an earlier run of the workdir resolved it to.

    Raises:
      InputError: the base can't be had, an example does not fit, or a method can't have such a pool.
    """
    base = pretrained.load(base_name, dtype=config.model.dtype, remat=config.model.remat)
    max_length = config.stream.max_length
    if max_length > base.config.n_positions:
        raise InputError(
            f"config.stream.max_length is {max_length}, expected at most the {base.config.n_positions} positions "
            f"of base {base.name!r}"
        )
    stream = styles(config.stream.tasks, base.tokenizer, max_length=max_length)
    for name, task in zip(stream.names, stream.tasks, strict=True):
        for setting, value, kind, split in (
            ("configurer.support", config.configurer.support, "recovery", task.recovery),
            ("configurer.support", config.configurer.support, "training", task.train),
            ("stream.batch", config.stream.batch, "training", task.train),
        ):
            if value > len(split.tokens):
                raise InputError(
                    f"config.{setting} is {value}, expected at most the {len(split.tokens)} {kind} examples "
                    f"of task {name!r}"
                )
    pool = LoraPool(
        base=base.params,
        model=base.config,
        size=config.pool.size,
        rank=config.pool.rank,
        modules=match_modules(config.pool.modules, base.config.n_layer),
        b_std=config.pool.b_std,
    )
    for name in config.methods:
        build(config, name).adapt_pool(pool)  # refuses a pool that it can't have
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
