"""The registry of pools of components; all follow one contract (docs/house.md)."""

from collections.abc import Callable, Mapping
from typing import Any

from ftn_jax.core.registry import Kind, register
from ftn_jax.core.rules import FOLDERS, NAMES, NOT_NEGATIVE, SHARE, SWITCH, Rule, one_of, whole
from ftn_jax.models.pretrained import BASE_SETTINGS
from ftn_jax.pools import lora, neurons
from ftn_jax.pools.base import Pool

__all__ = ["POOLS", "register_pool"]

POOLS: dict[str, Kind] = {
    "lora": Kind(
        lora.build,
        {
            **BASE_SETTINGS,
            "pool.rank": whole(1, 4096),
            "pool.modules": NAMES,
            "pool.b_std": NOT_NEGATIVE,
            "pool.adapters": FOLDERS,
            "pool.same_base": SWITCH,
        },
        defaults={
            "pool.size": 576,
            "pool.rank": 4,
            "pool.modules": ("qkv",),
            "pool.b_std": 0.0,
            "pool.adapters": (),
            "pool.same_base": False,
            "configurer.k": 72,
            "configurer.steps": 15,
            "configurer.learning_rate": 0.5,
            "configurer.jitter": 1e-6,
            "optimizer.learning_rate": 5e-4,
        },
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
        defaults={
            "pool.size": 1024,
            "pool.layers": 8,
            "pool.width": 8,
            "pool.activation": "gelu",
            "pool.weights": "he_normal",
            "pool.dropout": 0.2,
            "configurer.k": 128,
            "configurer.steps": 1,
            "configurer.learning_rate": 1.0,
            "configurer.jitter": 0.0,
            "optimizer.learning_rate": 3e-4,
        },
    ),
}


def register_pool(
    name: str, build: Callable[..., Pool], settings: Mapping[str, Rule], *, defaults: Mapping[str, Any] = {}
) -> None:
    """Adds a pool that ``config.pool.name`` can choose.

    Args:
      name: a new name.
      build: (context, stream, **settings) -> Pool, with the settings of ``config.pool``, size among them.
      settings: the settings that the pool adds, each with its rule: "pool.depth" -> `Rule`.
      defaults: values of settings, of the pool or others, for configs that leave them out: "configurer.k" -> 24.

    Raises:
      InputError: the name is taken.
    """
    register(POOLS, "pool", name, Kind(build, settings, defaults=defaults))
