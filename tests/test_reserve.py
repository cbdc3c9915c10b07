"""Methods that reserve components: whatever comes when, an earlier task keeps its components and its scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from ftn_jax.configurer import smooth_kwta
from ftn_jax.evaluation import active_rows, score
from ftn_jax.methods import METHODS, Selection
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


def test_claims_are_numbered_and_kept_where_a_block_goes_on():
    method, pool = toys.toy_method("lora_ftn_reserve"), toys.toy_pool()
    _, extra = method.init(pool, {}, jax.random.key(0))
    for active in ([0, 5, 6, 7], [1, 2, 3, 4], [0, 5, 6, 7], [8, 9, 10, 11]):
        _, extra = method.finish(pool, {}, extra, None, Selection(jnp.array(active)), None)
    assert extra["claim"].tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 2, 2, 2, 2, -1, -1, -1, -1]
    assert method.claimed(extra).tolist() == [True] * 12 + [False] * 4


def test_recovery_draws_components_to_those_that_were_claimed_with_them():
    """Against a literal version, on components of which some speak for another task."""
    method, pool = toys.toy_method("lora_ftn_reserve"), toys.toy_pool()
    claim = np.array([-1, 0, 0, 2, 2, 1, 1, -1, 0, 2, -1, 1, 2, 0, 1, -1])
    params = jax.tree.map(lambda leaf: leaf + 0.3, pool.init(jax.random.key(1)))  # B is not zero: no ties
    moved = 0
    for seed in range(6):
        batch, key = toys.toy_batch(seed=seed), jax.random.key(seed)
        found = method.select(pool, params, {"claim": jnp.asarray(claim)}, batch, None, key).active
        c, smoothing = toys.toy_configurer(), {"kernel": 3, "lateral_steps": 1}
        field = smooth_kwta(
            pool.mask_loss(params, batch), 16, k=4, steps=c.steps, learning_rate=c.learning_rate, key=key,
            jitter=c.jitter, **smoothing,
        ).smoothed  # fmt: skip
        field = np.asarray(field, float)
        value = {
            h: (field[h] + np.mean([field[i] for i in range(16) if claim[i] == claim[h]])) / 2
            for h in range(16)
            if claim[h] >= 0
        }
        assert sorted(sorted(value, key=value.__getitem__)[-4:]) == found.tolist()
        moved += set(sorted(value, key=field.__getitem__)[-4:]) != set(found.tolist())
    assert moved > 0  # else the smoothed field alone would do
