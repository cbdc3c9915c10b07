"""The two evaluation protocols: the stored mask, and a fresh recovery from a support batch."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.mesh import over_seeds, split, to_host
from ftn_jax.methods import Method, Selection
from ftn_jax.pools.base import Params, Pool, component_count, kind_of, mean_losses
from ftn_jax.streams.base import check_drawn
from ftn_jax.training.loop import draw_support, find, held_masks
from ftn_jax.training.state import RECOVER, State

Scores = dict[str, np.ndarray]  # metric -> [E, N]


class Row(NamedTuple):
    """Row i of the matrices R."""

    stored: Scores  # nan for j > i, since these tasks have no masks yet
    reconfig: Scores
    recovered: list[Selection]  # the selections recovered for each task of reconfig, leaves [E, ...]


def evaluate_row(
    pool: Pool,
    method: Method,
    state: State,
    tasks: list[Any],
    row: int,
    installed: list[Selection],
    *,
    support: int,
    axis: int | None = None,
    columns: Sequence[int] | None = None,
) -> Row:
    """Row i of the matrices R, for every metric and both protocols.

    A pure function of the state at boundary i. The test set of task j is the same at every row; its support batch
    is keyed by (seed, i, j) and comes from data that is used neither for training nor for testing. Under a method that
    is ``in_context`` the support batch is in the prompt of each test example, and both protocols have the same scores.

    Args:
      pool: the pool that the method trains.
      method: the method.
      state: at boundary i.
      tasks: the stream's N tasks.
      row: i.
      installed: the selections of the blocks 0..i, leaves [E, ...].
      support: examples in the support batch.
      axis: 0 if every seed has its own data, else None.
      columns: the tasks that are scored, in their order; those of others are nan. None: all, also those that are not
        trained yet, for which a mask is recovered.

    Raises:
      InputError: a task has too few examples, or the base has no room for the support batch in the prompt.
    """
    stored, reconfig, recovered = [], [], []
    columns = range(len(tasks)) if columns is None else columns
    for j in columns:
        data = tasks[j]
        if j <= row and not method.in_context:
            stored.append(score(pool, active_rows(state, installed[j], method=method), data, axis=axis))
        selection = recover(pool, method, state, data, row, j, support=support, axis=axis, installed=installed)
        context = None
        if method.in_context:
            _, context = recovery_support(data, state, row, j, support=support, axis=axis)
        reconfig.append(score(pool, active_rows(state, selection, method=method), data, axis=axis, context=context))
        if j <= row and method.in_context:
            stored.append(reconfig[-1])
        recovered.append(selection)
    seen = [j for j in columns if j <= row]
    return Row(_columns(stored, seen, len(tasks)), _columns(reconfig, columns, len(tasks)), recovered)


def recover(
    pool: Pool,
    method: Method,
    state: State,
    data: Any,
    row: int,
    column: int,
    *,
    support: int,
    axis: int | None,
    installed: Sequence[Selection] = (),
) -> Selection:
    """The selection that the method recovers from recovery examples of task ``column``, leaves [E, ...]."""
    keys, batch = recovery_support(data, state, row, column, support=support, axis=axis)
    held = held_masks(pool, method, state, installed)
    return find(pool, state, held, batch, column, keys, select=method.select, oracle=method.oracle)


def recovery_support(
    data: Any, state: State, row: int, column: int, *, support: int, axis: int | None
) -> tuple[jax.Array, Any]:
    """For each seed a key, and the examples of task ``column`` that row ``row`` recovers from; leaves [E, ...]."""
    check_drawn(data, support=support)
    return draw_support(data, state.keys, (RECOVER, row, column), split="support", size=support, axis=axis)


def score_untrained(
    pool: Pool, method: Method, state: State, tasks: list[Any], selection: Selection, *, axis: int | None
) -> Scores:
    """The metrics [E, N] on each task's test set of the untrained model, in which no component answers.

    On a language model that is the base alone; small networks then give every input the same answer. Components of
    zeros stand for none; ``state`` and ``selection`` only say how many, so that the program that scores masks serves.
    """
    rows = _zeros(active_rows(state, selection, method=method))
    every = range(len(tasks))
    return _columns([score(pool, rows, tasks[j], axis=axis) for j in every], every, len(tasks))


@jax.jit
def _zeros(rows: Params) -> Params:
    return over_seeds(lambda rows: jax.tree.map(jnp.zeros_like, rows), (0,))(rows)


def score(pool: Any, params_k: Params, data: Any, *, axis: int | None, context: Any = None) -> dict[str, jax.Array]:
    """Metrics [E] on the task's test set under gathered params [E, k, ...].

    Args:
      pool: the pool; with a ``context`` it needs `metrics_in_context`.
      params_k: the params.
      data: the task's data.
      axis: 0 if every seed has its own data, else None.
      context: examples, leaves [E, n, ...], for the prompt of each test example; None: no examples.

    Raises:
      InputError: the base has no room for the context.
    """
    if context is not None:
        pool.check_context(context, data.test())
    return _score(pool, params_k, data, context, axis=axis, kind=kind_of(data))


@functools.partial(jax.jit, static_argnames=("axis", "kind"))
def _score(pool, params_k, data, context, *, axis, kind):
    def one(pool, params_k, data, context):
        test = split(data.test(), "data")
        sums = pool.metrics(params_k, test) if context is None else pool.metrics_in_context(params_k, test, context)
        return {name: total / count for name, (total, count) in sums.items()}

    return over_seeds(one, (None, 0, axis, 0))(pool, params_k, data, context)


def remains(pool: Pool, method: Method, params: Params, extra: Any, masks: Selection, batch: Any) -> jax.Array:
    """Each example's loss under each mask, leaves [M, ...], and its ratio to the loss without components, f32[M, 2, B].

    For one seed. Both measures are needed. An easy example of another task may have a lower loss than a hard example
    of the mask's own task, but its ratio is not smaller. If the loss is low even without components, the ratio says
    little, but the loss itself does. Both are returned as square roots, which can be taken of zero and make the spread
    of nonnegative values nearly the same at every level.
    """

    def losses(mask, gain):
        rows = method.params_of(params, extra, mask)
        return mean_losses(pool, rows, batch)(jnp.full(component_count(rows), gain))

    first = jax.tree.map(lambda leaf: leaf[0], masks)
    without = jnp.maximum(losses(first, 0.0), jnp.finfo(jnp.float32).eps)

    def of(mask):
        left = losses(mask, 1.0)
        return jnp.sqrt(jnp.stack([left, left / without]))

    return jax.lax.map(of, masks)


@functools.partial(jax.jit, static_argnames=("method",))
def active_rows(state: State, selection: Selection, *, method: Method) -> Params:
    """The params [E, k, ...] of selections with leaves [E, ...]."""
    return over_seeds(method.params_of, (0, 0, 0))(state.params, state.extra, selection)


def _columns(scores: list[dict[str, jax.Array]], columns: Sequence[int], count: int) -> Scores:
    """Scores of some of ``count`` tasks as metric -> [E, count], with nan for the other tasks."""
    row = {}
    scores = to_host(scores)
    for name in scores[0]:
        values = np.stack([s[name].astype(np.float64) for s in scores], axis=1)
        row[name] = np.full((len(values), count), np.nan)
        row[name][:, list(columns)] = values
    return row
