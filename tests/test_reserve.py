"""Methods that reserve components: whatever comes when, an earlier task keeps its components and its scores."""

import jax
import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from ftn_jax.evaluation import active_rows, score
from ftn_jax.methods import METHODS
from ftn_jax.trainer import init_state, train_task

RESERVING = [name for name in METHODS if toys.toy_method(name).claimed]
PAIRS = [(name, pool) for name in RESERVING for pool in toys.POOLS]
SEED = st.integers(0, 2**31 - 1)


def test_both_experiments_have_one():
    assert {"ftn_reserve", "lora_ftn_reserve"} <= set(RESERVING)


@pytest.mark.parametrize(("name", "pool_name"), PAIRS)
@settings(max_examples=8, deadline=None)
@given(order=st.lists(st.integers(0, 2), min_size=2, max_size=4), seeds=st.tuples(SEED, SEED))
def test_earlier_tasks_keep_components_and_scores(name, pool_name, order, seeds):
    """For any order of tasks, repeats too, and any seeds; AdamW's decay and moments that are kept included."""
    method, pool = toys.toy_method(name), toys.POOLS[pool_name]()
    stream = toys.toy_pool_stream(pool_name, seeds)
    training = toys.toy_training("adamw", weight_decay=0.1, steps=4, chunk=4, reset=False)
    state = init_state(pool, np.array(seeds, np.int32), method=method, training=training)
    installed, scores, rows = [], [], []

    def components(selection):
        return jax.tree.map(np.array, active_rows(state, selection, method=method))

    for block, task in enumerate(order):
        state, selection = train_task(pool, method, training, state, stream.tasks[task], block, axis=stream.axis)
        installed.append(selection)
        rows.append(components(selection))
        scores.append(score(pool, rows[-1], stream.tasks[task], axis=stream.axis))
    for e in range(2):
        every = np.concatenate([np.asarray(selection.active)[e] for selection in installed])
        assert len(np.unique(every)) == len(every) == 4 * len(order)
    for task, selection, row, before in zip(order, installed, rows, scores, strict=True):
        now = components(selection)
        jax.tree.map(np.testing.assert_array_equal, now, row)
        again = score(pool, now, stream.tasks[task], axis=stream.axis)
        jax.tree.map(np.testing.assert_array_equal, again, before)
