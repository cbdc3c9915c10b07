"""The one training loop, for every method and both experiments.

Arrays of a run carry a seed axis E in front; the pool and, where seeds share it, the task's data do not.
Everything random is a pure function of (seed, task, step): a key is folded with its purpose, then with these.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftn_jax.errors import NonFiniteLoss
from ftn_jax.methods import Method
from ftn_jax.pools.base import Params, Pool, gather, scatter

INIT, INSTALL, TRAIN, FINISH, RECOVER = range(5)  # the purposes of keys


class State(NamedTuple):
    """What is trained, saved and restored; leaves [E, ...]."""

    params: Params
    opt_state: Any
    extra: Any
    keys: jax.Array  # [E], one for each seed; never consumed, only folded


@dataclasses.dataclass(frozen=True)
class Training:
    """How a task is trained (``config.optimizer`` and ``config.stream``).

    Attributes:
      optimizer: any optax transformation.
      steps: of each task.
      batch: examples a step.
      support: examples that the configurer sees where it runs once a task; else it sees the batch.
      rows: "active" gathers the rows of a task's mask and trains these alone; "dense" gives the optimizer every
        row, with zero gradients for the inactive (Remark 2.2 is about what that does).
      reset: fresh optimizer moments at task boundaries.
      chunk: steps between two returns to the host.
    """

    optimizer: optax.GradientTransformation
    steps: int
    batch: int
    support: int
    rows: str = "active"
    reset: bool = True
    chunk: int = 50


def fold(key: jax.Array, *path: Any) -> jax.Array:
    """The key of a purpose, a task, a step: folded with each in turn."""
    return functools.reduce(jax.random.fold_in, path, key)


def make_optimizer(name: str, learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """ "adam" (no decay) or "adamw".

    Raises:
      ValueError: another name, or a decay that adam would ignore.
    """
    if name == "adamw":
        return optax.adamw(learning_rate, weight_decay=weight_decay)
    if name != "adam":
        raise ValueError(f"optimizer.name must be 'adam' or 'adamw', got {name!r}")
    if weight_decay:
        raise ValueError(f"optimizer.weight_decay is {weight_decay}, but adam has no decay: use adamw")
    return optax.adam(learning_rate)


def over_seeds(function: Callable, in_axes: tuple[int | None, ...]) -> Callable:
    """``function`` for each seed: a vmap; on the CPU one after the other, where that is faster by a third.

    Args:
      function: of one seed.
      in_axes: for each argument 0 (leaves [E, ...]) or None (shared by the seeds).
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(function, in_axes)

    def mapped(*args):
        def one(own):
            rest = iter(own)
            return function(*(next(rest) if axis == 0 else arg for axis, arg in zip(in_axes, args, strict=True)))

        return jax.lax.map(one, [arg for axis, arg in zip(in_axes, args, strict=True) if axis == 0])

    return mapped


@functools.partial(jax.jit, static_argnames=("method", "training"))
def init_state(pool: Pool, seeds: jax.Array, *, method: Method, training: Training) -> State:
    """The state before the first task, for seeds int[E]."""

    def one(seed):
        key = jax.random.key(seed)
        params = pool.init(fold(key, INIT, 0))
        extra = method.init(pool, params, fold(key, INIT, 1))
        return State(params, training.optimizer.init(params), extra, key)

    return over_seeds(one, (0,))(seeds)


@functools.partial(jax.jit, static_argnames=("method", "support", "axis"))
def install(pool, state: State, data, task, *, method: Method, support: int, axis: int | None) -> jax.Array:
    """The active indices int32[E, k] with which a task's block is trained."""

    def one(state, data):
        key = fold(state.keys, INSTALL, task)
        batch = data.batch(fold(key, 0), support)
        oracle = task if method.oracle else None
        return method.select(pool, state.params, state.extra, batch, oracle, fold(key, 1)).active

    return over_seeds(one, (0, axis))(state, data)


def train_task(
    pool: Pool,
    method: Method,
    training: Training,
    state: State,
    data: Any,
    task: int,
    *,
    axis: int | None = None,
    on_chunk: Callable[[int, np.ndarray], None] = lambda step, losses: None,
) -> tuple[State, jax.Array]:
    """Trains one block of the stream: install, ``training.steps`` steps, finish.

    Args:
      state: at the block's start. Its buffers are donated: use the one that is returned.
      data: the task's data; see `ftn_jax.streams`.
      task: its index, told to oracles only; elsewhere it just folds keys.
      axis: 0 where every seed has data of its own, else None.
      on_chunk: told (steps done, losses [E, chunk]) whenever the host is back.

    Returns:
      The state at the boundary and the active indices int32[E, k] of the block (of its last batch, where the
      mask moves).

    Raises:
      NonFiniteLoss: with the seed, the task and the step.
    """
    index = jnp.int32(task)
    dense = training.rows == "dense" or method.every == "batch"
    active = install(pool, state, data, index, method=method, support=training.support, axis=axis)
    params, opt_state = state.params, state.opt_state
    if training.reset:
        opt_state = _init_optimizer(params, training=training)
    if dense:
        rows = params, opt_state, state.extra
    else:
        rows = _enter(params, opt_state, state.extra, active, training=training)
    params_k, opt_k, extra_k = rows
    for first in range(0, training.steps, training.chunk):
        length = min(training.chunk, training.steps - first)
        (params_k, opt_k, moved), losses = _train_chunk(
            pool,
            params_k,
            opt_k,
            extra_k,
            active if dense else None,
            data,
            state.keys,
            index,
            jnp.int32(first),
            select=method.select if method.every == "batch" else None,
            realise=method.realise,
            penalty=method.penalty,
            optimizer=training.optimizer,
            batch=training.batch,
            length=length,
            axis=axis,
        )
        active = moved if dense else active
        losses = np.asarray(losses)
        _check_finite(losses, first, task)
        on_chunk(first + length, losses)
    if dense:
        params, opt_state = params_k, opt_k
    else:
        params, opt_state = _leave(params, opt_state, active, params_k, opt_k, training=training)
    state = state._replace(params=params, opt_state=opt_state)
    return state._replace(extra=_finish(pool, state, data, index, method=method, axis=axis)), active


def _check_finite(losses: np.ndarray, first: int, task: int) -> None:
    bad = np.argwhere(~np.isfinite(losses))
    if bad.size:
        seed, step = bad[bad[:, 1].argmin()]
        raise NonFiniteLoss(float(losses[seed, step]), int(seed), task, int(first + step + 1))


@functools.partial(jax.jit, static_argnames=("training",))
def _init_optimizer(params, *, training):
    return jax.vmap(training.optimizer.init)(params)


@functools.partial(jax.jit, static_argnames=("training",))
def _enter(params, opt_state, extra, active, *, training):
    """A block's rows of params, optimizer state (what is not per component, as counts, stays) and extra."""

    def one(params, opt_state, extra, active):
        rows = optax.tree_utils.tree_map_params(training.optimizer, lambda leaf: leaf[active], opt_state)
        return gather(params, active), rows, gather(extra, active)

    return jax.vmap(one)(params, opt_state, extra, active)


@functools.partial(jax.jit, static_argnames=("training",), donate_argnums=(0, 1))
def _leave(params, opt_state, active, params_k, opt_k, *, training):
    """Params and optimizer state with a block's rows written back."""
    per_component = optax.tree_utils.tree_map_params(
        training.optimizer, lambda _: True, opt_state, transform_non_params=lambda _: False
    )

    def one(params, opt_state, active, params_k, opt_k):
        opt_state = jax.tree.map(
            lambda rows, whole, row: scatter(whole, active, row) if rows else row,
            per_component,
            opt_state,
            opt_k,
        )
        return scatter(params, active, params_k), opt_state

    return jax.vmap(one)(params, opt_state, active, params_k, opt_k)


@functools.partial(
    jax.jit,
    static_argnames=("select", "realise", "penalty", "optimizer", "batch", "length", "axis"),
    donate_argnums=(1, 2),
)
def _train_chunk(
    pool, trainable, opt_state, extra, active, data, keys, task, first,
    *, select, realise, penalty, optimizer, batch, length, axis,
):  # fmt: skip
    """``length`` steps from ``first``; returns ((trainable, opt_state, active), losses [E, length]).

    ``active`` None means that the rows are gathered already: every row given is trained. Else the optimizer sees
    every row, and those that are not active get zero gradients. ``select`` finds the mask anew at each batch.
    """

    def objective(rows, extra_rows, examples, key):
        return pool.active_loss(realise(rows, extra_rows), examples, key) + penalty(rows, extra_rows)

    def one(trainable, opt_state, extra, active, data, key):
        def step(carry, i):
            trainable, opt_state, active = carry
            step_key = fold(key, TRAIN, task, i)
            examples = data.batch(fold(step_key, 0), batch)
            if select is not None:
                active = select(pool, trainable, extra, examples, None, fold(step_key, 2)).active
            if active is None:
                rows, extra_rows = trainable, extra
            else:
                rows, extra_rows = gather(trainable, active), gather(extra, active)
            loss, grads = jax.value_and_grad(objective)(rows, extra_rows, examples, fold(step_key, 1))
            if active is not None:
                grads = scatter(jax.tree.map(jnp.zeros_like, trainable), active, grads)
            updates, opt_state = optimizer.update(grads, opt_state, trainable)
            return (optax.apply_updates(trainable, updates), opt_state, active), loss

        return jax.lax.scan(step, (trainable, opt_state, active), first + jnp.arange(length))

    return over_seeds(one, (0, 0, 0, 0, axis, 0))(trainable, opt_state, extra, active, data, keys)


@functools.partial(jax.jit, static_argnames=("method", "axis"))
def _finish(pool, state, data, task, *, method, axis):
    def one(state, data):
        return method.finish(pool, state.params, state.extra, data, fold(state.keys, FINISH, task))

    return over_seeds(one, (0, axis))(state, data)
