"""What every registered method keeps (DESIGN.md section 4), on every pool of tests/toys.py."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest
from toys import POOLS, VARIANTS, counted_compilations, toy_configurer, toy_pool_stream, toy_training

from ftn_jax.evaluation import evaluate_row
from ftn_jax.methods import METHODS, Method, build_method
from ftn_jax.pools.base import Pool, gather
from ftn_jax.streams.styles import Stream
from ftn_jax.trainer import State, init_state, train_task

SEEDS = np.array([3, 7], np.int32)


class Run(NamedTuple):
    """Two tasks, trained and evaluated."""

    pool: Pool
    stream: Stream
    method: Method
    states: list[State]  # before, between and after
    installed: list[Any]
    rows: list[Any]
    compilations: list[int]  # in each task
    told: list[Any]  # the task that each trace of select was told


@pytest.fixture(scope="module", params=itertools.product(METHODS, POOLS), ids="-".join)
def run(request):
    name, pool_name = request.param
    told = []
    built = build_method(name, toy_configurer(), VARIANTS.get(name, {}))

    def select(pool, params, extra, support, task, key):
        told.append(task)
        return built.select(pool, params, extra, support, task, key)

    method, training = dataclasses.replace(built, select=select), toy_training()
    pool, stream = method.adapt_pool(POOLS[pool_name]()), toy_pool_stream(pool_name)
    state = init_state(pool, SEEDS, method=method, training=training)
    states, installed, rows, compilations = [jax.tree.map(lambda leaf: leaf.copy(), state)], [], [], []
    for i, data in enumerate(stream.tasks[:2]):
        with counted_compilations() as count:
            state, active = train_task(pool, method, training, state, data, i, axis=stream.axis)
            installed.append(active)
            rows.append(evaluate_row(pool, method, state, stream.tasks[:2], i, installed, support=8, axis=stream.axis))
        compilations.append(count())
        states.append(jax.tree.map(lambda leaf: leaf.copy(), state))
    return Run(pool, stream, method, states, installed, rows, compilations, told)


def test_the_second_task_compiles_nothing(run):
    """Neither step nor configurer nor evaluation, whatever the mask."""
    first, second = run.compilations
    assert first > 0  # the counter counts
    assert second == 0


def test_the_state_keeps_its_structure_dtypes_and_shapes(run):
    before, *later = run.states
    for state in later:
        chex.assert_trees_all_equal_shapes_and_dtypes(state, before)


def test_params_and_extras_have_the_component_axis_first(run):
    for leaf in jax.tree.leaves((run.states[2].params, run.states[2].extra)):
        assert leaf.shape[:2] == (2, run.pool.size)


def test_masks_are_sorted_distinct_indices(run):
    for active in [*run.installed, *run.rows[1].recovered]:
        assert active.dtype == np.int32 and active.ndim == 2
        assert np.all(np.diff(active, axis=1) > 0)
        assert np.all((active >= 0) & (active < run.pool.size))


def test_only_oracles_are_told_the_task(run):
    assert len(run.told) >= 2  # in training, and at evaluation
    assert all((task is not None) == run.method.oracle for task in run.told)


def test_training_changes_the_rows_of_the_mask_and_no_other(run):
    for before, after, active in zip(run.states, run.states[1:], run.installed, strict=False):
        for e in range(2):
            others = np.setdiff1d(np.arange(run.pool.size), active[e])
            old, new = (jax.tree.leaves(jax.tree.map(lambda a, e=e: a[e], s.params)) for s in (before, after))
            for left, right in zip(old, new, strict=True):
                assert np.array_equal(left[others], right[others])
            changed = [np.any(a[active[e]] != b[active[e]]) for a, b in zip(old, new, strict=True)]
            assert all(changed)


def test_a_selection_is_the_realised_rows_that_it_names(run):
    """``params_k`` is what the stored protocol makes of ``active`` later."""
    state, method = jax.tree.map(lambda leaf: leaf[0], run.states[2]), run.method

    @jax.jit
    def both(pool, params, extra, data, key):
        support = data.support(key, 8)
        selection = method.select(pool, params, extra, support, 1 if method.oracle else None, key)
        active = selection.active
        return selection, method.realise(gather(params, active), gather(extra, active))

    selection, realised = both(run.pool, state.params, state.extra, run.stream.tasks[0], state.keys)
    chex.assert_trees_all_equal(selection.params_k, realised)


def test_every_score_is_finite_where_a_mask_exists(run):
    for i, row in enumerate(run.rows):
        for metric, values in row.reconfig.items():
            assert values.shape == (2, 2) and np.isfinite(values).all()
            np.testing.assert_array_equal(np.isfinite(row.stored[metric]), [[True, i == 1]] * 2)
