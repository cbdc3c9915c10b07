"""What every pool keeps (`ftn_jax.testing`); tests/toys.py lists the pools."""

import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import BASES, POOLS, family_pool, toy_batch, toy_method, toy_params, toy_pool_batch, toy_task, toy_training

from ftn_jax.models.families import FAMILIES
from ftn_jax.pools.base import component_count, gather, scatter
from ftn_jax.testing.pools import POOL_CHECKS, pool_case
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import init_state

ACTIVE = np.array([1, 4, 5, 13], np.int32)
OTHERS = np.setdiff1d(np.arange(16), ACTIVE)

# What differs to a pool are the decoder's modules: the one has biases and a plain MLP, the other gates, grouped heads,
# windows, and all norms that there are. Adapters on each of the other families: test_family_contract.py.
EACH = ["gpt2", pytest.param("gemma3_text", marks=pytest.mark.slow)]

# Methods of the pool at hand, compiled once for all tests.
losses_of = jax.jit(lambda pool, *args: pool.example_losses(*args))
loss_of = jax.jit(lambda pool, *args: pool.loss(*args))


def test_every_family_has_a_base_here():
    assert BASES.keys() == FAMILIES.keys()


@pytest.fixture(params=[*(name for name in POOLS if name != "lora"), *EACH], scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name):
    pool = POOLS[name]() if name in POOLS else family_pool(name)
    return pool_case(pool, toy_pool_batch(name if name in POOLS else "lora"))


@pytest.mark.parametrize("check", POOL_CHECKS, ids=operator.attrgetter("__name__"))
def test_contract(check, case):
    check(case)


def test_the_params_are_float32(case):
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(case.params))


def test_gather_and_scatter_are_inverse(case):
    params = case.params
    rows = gather(params, ACTIVE)
    assert component_count(rows) == 4
    chex.assert_trees_all_equal(scatter(params, ACTIVE, rows), params)
    cleared = scatter(params, ACTIVE, jax.tree.map(jnp.zeros_like, rows))
    assert all(not np.any(leaf[ACTIVE]) for leaf in jax.tree.leaves(cleared))
    chex.assert_trees_all_equal(gather(cleared, OTHERS), gather(params, OTHERS))
    each = gather(params, np.stack([ACTIVE, ACTIVE + 1]))
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[1], each), gather(params, ACTIVE + 1))


@pytest.mark.parametrize("family", EACH)
def test_a_large_batch_and_its_rows_have_the_same_losses(family):
    """W + Delta W is formed for the one, and tokens pass through the inner dimensions for the others."""
    pool = family_pool(family)
    params, batch = toy_params(pool), toy_batch(24)
    sums, _ = losses_of(pool, params, ACTIVE, batch)
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch) for i in range(0, 24, 5)]
    rank = len(ACTIVE) * pool.rank
    assert not any(pool.merges(m, rank, rows[0]) for m in pool.modules)
    assert any(pool.merges(m, rank, batch) for m in pool.modules)
    alone = [losses_of(pool, params, ACTIVE, row)[0][0] for row in rows]
    np.testing.assert_allclose(sums[::5], alone, rtol=1e-4)


@pytest.mark.parametrize("family", EACH)
def test_a_task_that_is_learned_keeps_its_loss_bit_for_bit(family):
    """Theorem D.1 on a language model's pool."""
    pool, method, training = family_pool(family), toy_method("lora_fixed"), toy_training(steps=10, chunk=5)
    state = init_state(pool, np.array([3], np.int32), method=method, training=training)
    test, losses, active = toy_task(1).test(), [], None

    def loss():
        return np.asarray(loss_of(pool, jax.tree.map(lambda leaf: leaf[0], state.params), active, test))

    for task in (1, 2):
        state, selection = train_task(pool, method, training, state, toy_task(task), task - 1)
        active = np.asarray(selection.active[0]) if active is None else active
        losses.append(loss())
    assert losses[0] == losses[1] < loss_of(pool, toy_params(pool), np.zeros(0, np.int32), test) - 0.1
    assert not np.isin(selection.active[0], active).any()
