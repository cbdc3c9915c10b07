"""The state that is trained, saved and restored; its optimizer and random keys."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ftn_jax.core.mesh import over_seeds, spec_of, split
from ftn_jax.methods import Method
from ftn_jax.pools.base import Params, Pool, gather, scatter

INIT, INSTALL, TRAIN, FINISH, RECOVER, WATCH = range(6)  # the purposes of keys, see `fold`


class State(NamedTuple):
    """The state of a run; leaves [E, ...], those of params, extra and moments [E, H, ...]."""

    params: Params  # the method's trainable params; `Method.params_of` makes the pool's params of them
    opt_state: Any
    extra: Any  # other state of the method
    keys: jax.Array  # [E], one for each seed; never consumed, only folded


@dataclasses.dataclass(frozen=True)
class Training:
    """The settings of training (``config.optimizer`` and ``config.stream``).

    Attributes:
      optimizer: any optax transformation.
      steps: per task.
      batch: examples per step.
      support: examples in the support batch; a method that searches on every batch uses the batch instead.
      rows: "active" gathers the rows of a task's mask and trains only these; "dense" gives the optimizer every row,
        with zero gradients for inactive ones (Remark 2.2 describes the effect).
      reset: whether optimizer moments are reset at task boundaries.
      chunk: steps that run on the device before control returns to the host.
    """

    optimizer: optax.GradientTransformation
    steps: int
    batch: int
    support: int
    rows: str = "active"
    reset: bool = True
    chunk: int = 10


def fold(key: jax.Array, *path: Any) -> jax.Array:
    """The key folded with each part of a path in turn, such as a purpose, a task and a step."""
    return functools.reduce(jax.random.fold_in, path, key)


@functools.cache  # equal settings give the same object, since it is a static argument of compiled functions
def make_optimizer(name: str, learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """Adam, without weight decay, or AdamW.

    Args:
      name: "adam" or "adamw".
      learning_rate: eta.
      weight_decay: of "adamw"; 0 for "adam".

    Raises:
      ValueError: another name, or a decay, which adam would ignore.
    """
    if name == "adamw":
        return optax.adamw(learning_rate, weight_decay=weight_decay)
    if name != "adam":
        raise ValueError(f"optimizer.name must be 'adam' or 'adamw', got {name!r}")
    if weight_decay:
        raise ValueError(f"optimizer.weight_decay is {weight_decay}, but adam has no decay: use adamw")
    return optax.adam(learning_rate)


def split_state(state: State, optimizer: optax.GradientTransformation) -> State:
    """One seed's state with its components spread over the mesh."""
    moments = split_moments(state.opt_state, optimizer)
    return state._replace(params=split(state.params, "pool"), opt_state=moments, extra=split(state.extra, "pool"))


def split_moments(opt_state: Any, optimizer: optax.GradientTransformation) -> Any:
    return optax.tree_utils.tree_map_params(optimizer, lambda leaf: split(leaf, "pool"), opt_state)


def map_moments(function: Callable, optimizer: optax.GradientTransformation, opt_state: Any, *others: Any) -> Any:
    """Maps ``function`` over those leaves of optimizer states that have a component axis; keeps the first's others."""
    of_components = optax.tree_utils.tree_map_params(
        optimizer, lambda _: True, opt_state, transform_non_params=lambda _: False
    )
    return jax.tree.map(
        lambda chosen, leaf, *rest: function(leaf, *rest) if chosen else leaf, of_components, opt_state, *others
    )


def sharding_of(state: State, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """A State that has, in the place of each leaf [E, ...], its sharding."""

    def components(tree):
        return jax.tree.map(lambda leaf: NamedSharding(mesh, spec_of(leaf.shape, mesh, "seed", "pool")), tree)

    by_seed = NamedSharding(mesh, PartitionSpec("seed"))
    moments = optax.tree_utils.tree_map_params(
        optimizer, components, state.opt_state, transform_non_params=lambda _: by_seed
    )
    return State(components(state.params), moments, components(state.extra), keys=by_seed)  # pyright: ignore


def init_state(pool: Pool, seeds: Any, *, method: Method, training: Training) -> State:
    """The state before the first task.

    Args:
      pool: as returned by ``method.adapt_pool``.
      seeds: int[E], as an array or a sequence; each seed trains its own model, side by side.
      method: the method.
      training: the settings of training.
    """
    seeds = np.asarray(seeds, np.int32) if isinstance(seeds, Sequence) else seeds
    return _init_state(pool, seeds, method=method, training=training)


@functools.partial(jax.jit, static_argnames=("method", "training"))
def _init_state(pool, seeds, *, method, training):
    def one(pool, seed):
        key = jax.random.key(seed)
        params, extra = untrained(pool, method, key)
        return split_state(State(params, training.optimizer.init(params), extra, key), training.optimizer)

    return over_seeds(one, (None, 0))(pool, seeds)


def untrained(pool: Pool, method: Method, key: jax.Array) -> tuple[Params, Any]:
    """(trainable, extra) of one seed before the first task; ``key`` is the seed's, and is only folded."""
    return method.init(pool, pool.init(fold(key, INIT, 0)), fold(key, INIT, 1))


def renewed(
    pool: Pool, method: Method, trainable: Params, extra: Any, active: jax.Array, key: jax.Array
) -> tuple[Params, Any]:
    """(trainable, extra) of one seed with the components ``active`` int32[k] reset to their `untrained` values."""
    return scatter((trainable, extra), active, gather(untrained(pool, method, key), active))


@functools.partial(jax.jit, static_argnames=("method", "training"))
def renew(pool: Pool, state: State, active: jax.Array, *, method: Method, training: Training) -> State:
    """The state with only the components ``active`` int32[E, k] reset to their values before the first task."""
    optimizer = training.optimizer

    def one(pool, state, active):
        params, extra = renewed(pool, method, state.params, state.extra, active, state.keys)

        def put(old, new):
            return scatter(old, active, gather(new, active))

        moments = map_moments(put, optimizer, state.opt_state, optimizer.init(params))
        return split_state(State(params, moments, extra, state.keys), optimizer)

    return over_seeds(one, (None, 0, 0))(pool, state, active)
