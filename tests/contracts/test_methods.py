"""What every registered method keeps (DESIGN.md section 4), on every pool of tests/toys.py."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import POOLS, counted_compilations, toy_run

from ftn_jax.evaluation import active_rows, recover
from ftn_jax.methods import METHODS
from ftn_jax.trainer import install


@pytest.fixture(scope="module", params=itertools.product(METHODS, POOLS), ids="-".join)
def run(request):
    return toy_run(*request.param)


def test_compilations_are_counted():
    with counted_compilations() as count:
        jax.jit(lambda x: x * 2.5 + 1)(jnp.zeros(7))
    assert count() > 0


def test_after_the_first_task_nothing_is_compiled(run):
    """Neither step nor configurer nor evaluation, whatever the mask."""
    assert run.compilations[1:] == [0, 0]


def test_the_state_keeps_its_structure_dtypes_and_shapes(run):
    before, *later = run.states
    for state in later:
        chex.assert_trees_all_equal_shapes_and_dtypes(state, before)


def test_params_and_extras_have_the_component_axis_first(run):
    for leaf in jax.tree.leaves((run.states[-1].params, run.states[-1].extra)):
        assert leaf.shape[:2] == (2, run.pool.size)


def test_masks_are_sorted_distinct_indices(run):
    for active in [*run.installed, *run.rows[-1].recovered]:
        assert active.dtype == np.int32 and active.ndim == 2
        assert np.all(np.diff(active, axis=1) > 0)
        assert np.all((active >= 0) & (active < run.pool.size))


def test_only_oracles_are_told_the_task(run):
    told = []

    def select(pool, params, extra, support, task, key):
        told.append(task)
        return run.method.select(pool, params, extra, support, task, key)

    spied = dataclasses.replace(run.method, select=select)
    state, data, axis = run.states[0], run.stream.tasks[0], run.stream.axis
    jax.eval_shape(lambda s: install(run.pool, s, data, 1, method=spied, support=8, axis=axis), state)
    jax.eval_shape(lambda s: recover(run.pool, s, data, 2, 1, method=spied, support=8, axis=axis), state)
    assert len(told) >= 2
    assert all((task is not None) == run.method.oracle for task in told)


def test_training_changes_the_rows_of_the_mask_and_no_other(run):
    """Theorem D.1, bit for bit, for every method that trains the rows of a mask."""
    for before, after, active in zip(run.states, run.states[1:], run.installed, strict=False):
        for e in range(2):
            others = np.setdiff1d(np.arange(run.pool.size), active[e])
            for old, new in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
                assert np.array_equal(old[e][others], new[e][others])
                assert np.all(np.any((old != new)[e][active[e]].reshape(active.shape[1], -1), axis=1))


def test_a_selection_is_the_rows_that_it_names_realised(run):
    """``params_k`` is what the stored protocol makes of ``active`` later."""
    state, data = run.states[-1], run.stream.tasks[0]
    selection = recover(
        run.pool, state, data, np.int32(2), np.int32(0), method=run.method, support=8, axis=run.stream.axis
    )
    chex.assert_trees_all_equal(selection.params_k, active_rows(state, selection.active, method=run.method))


def test_every_score_is_finite_where_a_mask_exists(run):
    for i, row in enumerate(run.rows):
        for metric, values in row.reconfig.items():
            assert values.shape == (2, 3) and np.isfinite(values).all()
            np.testing.assert_array_equal(np.isfinite(row.stored[metric]), [np.arange(3) <= i] * 2)
