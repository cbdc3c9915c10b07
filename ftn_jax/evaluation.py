"""The two evaluation protocols: the stored mask, and a fresh recovery from a support batch."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from ftn_jax.methods import Method, Selection
from ftn_jax.pools.base import Params, Pool, gather
from ftn_jax.trainer import RECOVER, State, fold, over_seeds

Scores = dict[str, np.ndarray]  # metric -> [E, N]


class Row(NamedTuple):
    """Row i of the matrices R."""

    stored: Scores  # nan for j > i, whose masks do not exist yet
    reconfig: Scores
    recovered: list[jax.Array]  # for each task the active indices int32[E, k] that a cold start found


def evaluate_row(
    pool: Pool,
    method: Method,
    state: State,
    tasks: list[Any],
    row: int,
    installed: list[jax.Array],
    *,
    support: int,
    axis: int | None = None,
) -> Row:
    """Row i of the matrices R, for every metric and both protocols.

    A pure function of the state at boundary i. The test set of task j is the same at every row; its support batch
    is keyed by (seed, i, j) and comes from data that neither trained nor test.

    Args:
      tasks: the stream's N tasks.
      row: i.
      installed: the active indices int32[E, k] of the blocks 0..i.
      support: examples of the support batch.
    """
    stored, reconfig, recovered = [], [], []
    for j, data in enumerate(tasks):
        if j <= row:
            stored.append(score(pool, active_rows(state, installed[j], method=method), data, axis=axis))
        selection = recover(pool, state, data, np.int32(row), np.int32(j), method=method, support=support, axis=axis)
        reconfig.append(score(pool, selection.params_k, data, axis=axis))
        recovered.append(selection.active)
    return Row(_columns(stored, len(tasks)), _columns(reconfig, len(tasks)), recovered)


@functools.partial(jax.jit, static_argnames=("method", "support", "axis"))
def recover(pool, state: State, data, row, column, *, method: Method, support: int, axis: int | None) -> Selection:
    """The selection of a cold start on task ``column``'s recovery examples, leaves [E, ...]."""

    def one(state, data):
        key = fold(state.keys, RECOVER, row, column)
        batch = data.support(fold(key, 0), support)
        task = column if method.oracle else None
        return method.select(pool, state.params, state.extra, batch, task, fold(key, 1))

    return over_seeds(one, (0, axis))(state, data)


@functools.partial(jax.jit, static_argnames=("axis",))
def score(pool: Pool, params_k: Params, data: Any, *, axis: int | None) -> dict[str, jax.Array]:
    """Metrics [E] on the task's test set under gathered params [E, k, ...]."""

    def one(params_k, data):
        return {name: total / count for name, (total, count) in pool.metrics(params_k, data.test()).items()}

    return over_seeds(one, (0, axis))(params_k, data)


@functools.partial(jax.jit, static_argnames=("method",))
def active_rows(state: State, active: jax.Array, *, method: Method) -> Params:
    """The params [E, k, ...] under the masks ``active`` int32[E, k]."""

    def one(state, active):
        return method.realise(gather(state.params, active), gather(state.extra, active))

    return jax.vmap(one)(state, active)


def _columns(scores: list[dict[str, jax.Array]], count: int) -> Scores:
    """Scores of the first tasks as metric -> [E, count], nan beyond."""
    row = {}
    for name in scores[0]:
        values = np.stack([np.asarray(s[name], np.float64) for s in scores], axis=1)
        row[name] = np.pad(values, ((0, 0), (0, count - len(scores))), constant_values=np.nan)
    return row
