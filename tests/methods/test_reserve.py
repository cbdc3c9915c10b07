"""Methods that reserve components: whatever comes when, an earlier task keeps its components and its scores."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from ftn_jax.methods import METHODS, Given, Selection
from ftn_jax.training.evaluation import active_rows, score
from ftn_jax.training.loop import draw_support, held_masks, train_task
from ftn_jax.training.state import init_state

RESERVING = [name for name in METHODS if toys.toy_method(name).reserves]
PAIRS = [(name, "lora" if "lora" in name else "neurons") for name in RESERVING]  # each on its experiment's pool
# For all on every Python, one order of tasks: exclusive_methods_forget_nothing_under_stored_masks in the contract.
SEED = st.integers(0, 2**31 - 1)


def test_both_experiments_have_one():
    assert {"ftn_reserve", "lora_ftn_reserve"} <= set(RESERVING)


@pytest.mark.parametrize(
    ("name", "pool_name"),
    [pytest.param(*pair, marks=[] if pair[0] == "lora_ftn_reserve" else [pytest.mark.slow]) for pair in PAIRS],
)
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
        state, selection = train_task(
            pool, method, training, state, stream.tasks[task], block, axis=stream.axis, installed=installed
        )
        installed.append(selection)
        rows.append(components(selection))
        scores.append(score(pool, rows[-1], stream.tasks[task], axis=stream.axis))
    for e in range(2):
        every = np.concatenate([np.asarray(selection.active)[e] for selection in installed])
        own = every[every < pool.size]
        assert len(np.unique(own)) == len(own) and (method.reuses or len(own) == 4 * len(order))
    for task, selection, row, before in zip(order, installed, rows, scores, strict=True):
        now = components(selection)
        jax.tree.map(np.testing.assert_array_equal, now, row)
        again = score(pool, now, stream.tasks[task], axis=stream.axis)
        jax.tree.map(np.testing.assert_array_equal, again, before)


def test_the_masks_that_tasks_have_are_held_in_their_order():
    """A mask that comes back is held once; a seed that has fewer is padded, and so is what there is room for."""
    method, pool = toys.toy_method("lora_ftn_reserve"), toys.toy_pool()
    state = init_state(pool, np.array([0, 1], np.int32), method=method, training=toys.toy_training())
    blocks = [[[4, 5, 6, 7], [0, 1, 2, 3]], [[0, 1, 2, 9], [16] * 4], [[4, 5, 6, 7], [0, 1, 2, 3]]]
    held = held_masks(pool, method, state, [Selection(jnp.array(block)) for block in blocks])
    wanted = [[[4, 5, 6, 7], [0, 1, 2, 9], [16] * 4, [16] * 4], [[0, 1, 2, 3], [16] * 4, [16] * 4, [16] * 4]]
    np.testing.assert_array_equal(held.active, wanted)
    assert held.frozen is None
    assert held_masks(pool, toys.toy_method("lora_ftn"), state, []) is None


@pytest.mark.parametrize("pool_name", toys.POOLS)
def test_recovery_takes_the_claim_that_leaves_the_least_loss(pool_name):
    """Against every claim's loss, one by one, on claims that are scattered."""
    method, pool = toys.toy_method("lora_ftn_reserve"), toys.POOLS[pool_name]()
    stream, found = toys.toy_pool_stream(pool_name, (0,)), []
    select = jax.jit(lambda params, held, batch: method.select(pool, params, {}, Given(batch, None, held, None)))
    loss = jax.jit(lambda params, own, batch: pool.loss(params, own.astype(jnp.float32), batch))
    whole = np.array([2, 0, 2, 1, 0, 1, 2, 0, 1, 3, 3, 0, 3, 2, 1, 3])
    for task, count in itertools.product(range(len(stream.tasks)), (4, 3)):
        claim = np.where(whole < count, whole, -1)
        rows = [np.flatnonzero(claim == number) if number < count else [16] * 4 for number in range(4)]
        held = Selection(np.array(rows), np.zeros(4, np.int32))
        for seed in range(4):
            keys = jax.random.split(jax.random.key(seed), 1)
            params = jax.tree.map(
                lambda leaf, key=keys[0]: leaf + 0.3 * jax.random.normal(key, leaf.shape), pool.init(keys[0])
            )
            _, batch = draw_support(stream.tasks[task], keys, (), split="support", size=4, axis=stream.axis)
            batch = jax.tree.map(lambda leaf: leaf[0], batch)
            losses = {number: float(loss(params, claim == number, batch)) for number in set(claim.tolist()) - {-1}}
            best = min(losses, key=losses.__getitem__)
            assert select(params, held, batch).active.tolist() == np.flatnonzero(claim == best).tolist()
            found.append(best)
    assert len(set(found)) > 1  # else any one claim would do
