"""Pools of components under one contract (docs/house.md), and their registry."""

from collections.abc import Callable, Mapping

from ftn_jax.core.rules import NAMES, NOT_NEGATIVE, SHARE, Kind, Rule, one_of, register, whole
from ftn_jax.models.pretrained import BASE_SETTINGS
from ftn_jax.pools import lora, neurons
from ftn_jax.pools.base import Pool

__all__ = ["POOLS", "register_pool"]

POOLS: dict[str, Kind] = {
    "lora": Kind(
        lora.build,
        {**BASE_SETTINGS, "pool.rank": whole(1, 4096), "pool.modules": NAMES, "pool.b_std": NOT_NEGATIVE},
    ),
    "neurons": Kind(
        neurons.build,
        {
            "pool.layers": whole(1, 1000),
            "pool.width": whole(1, 10**4),
            "pool.activation": one_of(*neurons.ACTIVATIONS),
            "pool.weights": one_of(*neurons.INITS),
            "pool.dropout": SHARE,
        },
    ),
}


def register_pool(name: str, build: Callable[..., Pool], settings: Mapping[str, Rule]) -> None:
    """Adds a pool for ``config.pool.name``.

    Args:
      name: a new one.
      build: (context, stream, **settings) -> Pool, with the settings of ``config.pool``, size among them.
      settings: what each setting that the pool adds may be: "pool.depth" -> `Rule`.

    Raises:
      InputError: the name is taken.
    """
    register(POOLS, "pool", name, Kind(build, settings))
