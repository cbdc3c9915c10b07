"""Puts a LoRA adapter into components of a pool."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.core.torus import compact
from ftn_jax.pools.base import Params, gather, scatter
from ftn_jax.pools.lora import LoraPool


class Adapter(NamedTuple):
    """A LoRA adapter read from a file. Its scaling is multiplied into "b"."""

    name: str
    modules: dict[str, dict[str, np.ndarray]]  # module -> {"a": f32[L, R, d_in], "b": f32[L, R, d_out]}
    rank: int  # R


def place(pool: LoraPool, params: Params, adapter: Adapter, active: jax.Array) -> Params:
    """``params`` with an adapter in the components ``active`` int32[k]; B is zero in rows that the adapter leaves free.

    Raises:
      InputError: the adapter has a module that the pool does not adapt, or a rank above k r.
    """
    room = len(active) * pool.rank
    if adapter.rank > room:
        raise InputError(
            f"adapter {adapter.name!r} has rank {adapter.rank}, expected at most {room}: config.configurer.k = "
            f"{len(active)} components of config.pool.rank = {pool.rank}"
        )
    for module in adapter.modules:
        if module not in pool.modules:
            raise InputError(
                f"adapter {adapter.name!r} adapts {module}, config.pool.modules has only {', '.join(pool.modules)}"
            )
    placed = {}
    for module, pair in gather(params, active).items():
        own = adapter.modules.get(module)
        rows = {name: np.array(pair[name]) for name in ("a", "b")}  # [k, L, r, d]
        k, layers, rank, _ = rows["a"].shape
        flat = {name: leaf.swapaxes(0, 1).reshape(layers, k * rank, -1) for name, leaf in rows.items()}
        flat["b"][:] = 0
        if own:
            for name, leaf in flat.items():
                leaf[:, : adapter.rank] = own[name]
        back = {n: leaf.reshape(layers, k, rank, -1).swapaxes(0, 1) for n, leaf in flat.items()}
        placed[module] = {name: jnp.asarray(leaf) for name, leaf in back.items()}
    return scatter(params, active, placed)


def free_block(size: int, k: int, taken: np.ndarray) -> np.ndarray:
    """k components int32[k] that are not ``taken`` bool[H] and lie close together (`compact`).

    Raises:
      InputError: fewer than k are free.
    """
    free = np.flatnonzero(~taken)
    if len(free) < k:
        raise InputError(
            f"{len(free)} of the pool's {size} components are free, expected at least config.configurer.k = {k}: "
            "make a larger pool from the start, or take fewer winners"
        )
    return compact(free, k, size)
