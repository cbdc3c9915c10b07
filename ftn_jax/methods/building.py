"""Builds a method by its registered name for a given pool, and checks it against the pool."""

import inspect
from typing import Any

from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import ODD, hold
from ftn_jax.core.torus import side_of
from ftn_jax.methods import METHODS, Configurer, Method
from ftn_jax.pools.base import Pool


def make_method(name: str, pool: Pool, configurer: Configurer, **settings: Any) -> tuple[Pool, Method]:
    """The registered method of this name, and the pool that it trains.

    Args:
      name: a name in `METHODS`, such as "lora_ftn_reserve".
      pool: the pool of components; some methods adapt it (LoRA-Bank joins components, SupSup widens networks).
      configurer: the settings of mask search.
      **settings: the method's own settings (docs/settings.md, ``variants.<method>``).

    Raises:
      InputError: the method is unknown; a setting is unknown, missing or has a wrong value; or the pool does not suit
        the method.
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}, known: {', '.join(sorted(METHODS))}")
    kind, k = METHODS[name], configurer.k
    signature = inspect.signature(kind.build)
    ruled = settings.keys() & kind.settings.keys()
    hold({key: settings[key] for key in ruled}, {key: kind.settings[key] for key in ruled})
    try:
        bound = signature.bind(configurer, **settings)
    except TypeError as error:
        raise InputError(f"method {name!r}: {error}") from error
    bound.apply_defaults()
    if not 1 <= k <= pool.size:
        raise InputError(f"k is {k}, expected 1 to the {pool.size} components of the pool")
    method = kind.build(*bound.args, **bound.kwargs)
    if method.exclusive and configurer.tasks * k > pool.size:
        raise InputError(
            f"the pool has {pool.size} components, expected at least {configurer.tasks * k} since {name} gives each of "
            f"{configurer.tasks} tasks its own k = {k}: take fewer winners, or a larger pool"
        )
    smooths = bound.arguments.get("lateral_steps") or bound.arguments.get("recovery_lateral_steps")
    if kind.settings.get("kernel") is ODD and smooths:
        side, kernel = side_of(pool.size), bound.arguments["kernel"]
        if side is None:
            raise InputError(f"the pool has {pool.size} components, expected a square (a D x D torus): {name} smooths")
        if kernel > 2 * side - 1:
            raise InputError(
                f"kernel is {kernel}, expected at most 2 D - 1 = {2 * side - 1} on a {side} x {side} torus"
            )
    return method.adapt_pool(pool), method
