"""What every pool keeps (docs/house.md); tests/toys.py lists the pools."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import BASES, POOLS, family_pool, toy_batch, toy_method, toy_params, toy_pool_batch, toy_task, toy_training

from ftn_jax.models.families import FAMILIES
from ftn_jax.pools.base import Pool, component_count, gather, scatter
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import init_state

ACTIVE = np.array([1, 4, 5, 13], np.int32)
MASK = np.isin(np.arange(16), ACTIVE).astype(np.float32)
OTHERS = np.setdiff1d(np.arange(16), ACTIVE)

# Methods of the pool at hand, compiled once for all tests.
losses_of = jax.jit(lambda pool, *args: pool.example_losses(*args))
loss_of = jax.jit(lambda pool, *args: pool.loss(*args))
init_of = jax.jit(lambda pool, key: pool.init(key))


def test_every_family_of_bases_has_a_pool_here():
    assert BASES.keys() == FAMILIES.keys()


@pytest.fixture(params=[*POOLS, *BASES], scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pool(name):
    return POOLS[name]() if name in POOLS else family_pool(name)


@pytest.fixture(scope="module")
def params(pool):
    return toy_params(pool)


@pytest.fixture(scope="module")
def batch(name):
    return toy_pool_batch(name if name in POOLS else "lora")


def test_a_pool_is_a_pytree_with_static_settings(pool):
    assert isinstance(pool, Pool) and pool.size == 16
    leaves, structure = jax.tree.flatten(pool)
    assert jax.tree.unflatten(structure, leaves).size == 16
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    hash(structure)  # jit needs it


def test_every_leaf_of_the_params_has_the_component_axis_first(pool):
    params = init_of(pool, jax.random.key(0))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params)} == {16} == {component_count(params)}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_init_is_a_function_of_the_key(pool):
    first, again, other = (init_of(pool, jax.random.key(seed)) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))
    # No two components are born alike.
    rows = np.concatenate([np.reshape(leaf, (16, -1)) for leaf in jax.tree.leaves(first)], axis=1)
    assert len(np.unique(rows, axis=0)) == 16


def test_the_losses_agree(pool, params, batch):
    sums, counts = losses_of(pool, params, MASK, batch)
    mean = sum(map(float, sums)) / sum(map(float, counts))
    close = lambda value: np.testing.assert_allclose(value, mean, rtol=1e-5)  # noqa: E731
    close(loss_of(pool, params, MASK, batch))
    close(loss_of(pool, params, ACTIVE, batch))
    close(jax.jit(lambda pool, rows, batch: pool.active_loss(rows, batch))(pool, gather(params, ACTIVE), batch))
    close(jax.jit(lambda pool, *args: pool.mask_loss(*args[:2])(args[2]))(pool, params, batch, MASK))


def test_mask_loss_is_the_loss_of_relaxed_masks_gradients_included(pool, params, batch):
    """Against one mask a row, all alike, from which nothing that rows share can be computed once."""
    mask = np.random.default_rng(0).uniform(0, 1, 16).astype(np.float32)
    rows = len(jax.tree.leaves(batch)[0])
    both = jax.jit(
        lambda pool, params, mask, batch: (
            jax.value_and_grad(pool.mask_loss(params, batch))(mask),
            jax.value_and_grad(lambda mask: pool.loss(params, jnp.tile(mask[None], (rows, 1)), batch))(mask),
        )
    )
    (value, slope), (wanted, wanted_slope) = both(pool, params, mask, batch)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-3, atol=1e-5)
    assert np.all(slope != 0)  # every component matters


def test_rows_of_a_batch_may_be_routed_apart(pool, params, batch):
    """[B, H] and [B, k] against each row's routing given to the whole batch."""
    rng = np.random.default_rng(0)
    size = len(jax.tree.leaves(batch)[0])
    active = np.stack([np.sort(rng.permutation(16)[:4]) for _ in range(size)]).astype(np.int32)
    masks = np.stack([np.isin(np.arange(16), row) for row in active]).astype(np.float32)
    each = [losses_of(pool, params, mask, batch) for mask in masks]
    for routing in (active, masks):
        sums, counts = losses_of(pool, params, routing, batch)
        for row in range(size):
            np.testing.assert_allclose(sums[row], each[row][0][row], rtol=1e-4)
            assert counts[row] == each[row][1][row]
    assert len(np.unique([sums[0] for sums, _ in each])) > size / 2  # routing does matter


def test_inactive_components_have_no_say(pool, params, batch):
    noise = jax.tree.map(lambda leaf: leaf.at[OTHERS].set(7.0), params)
    for routing in (MASK, ACTIVE):
        chex.assert_trees_all_equal(losses_of(pool, params, routing, batch), losses_of(pool, noise, routing, batch))


def test_gather_and_scatter_are_inverse(params):
    rows = gather(params, ACTIVE)
    assert component_count(rows) == 4
    chex.assert_trees_all_equal(scatter(params, ACTIVE, rows), params)
    cleared = scatter(params, ACTIVE, jax.tree.map(jnp.zeros_like, rows))
    assert all(not np.any(leaf[ACTIVE]) for leaf in jax.tree.leaves(cleared))
    chex.assert_trees_all_equal(gather(cleared, OTHERS), gather(params, OTHERS))
    each = gather(params, np.stack([ACTIVE, ACTIVE + 1]))
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[1], each), gather(params, ACTIVE + 1))


def test_metrics_are_sums_and_counts(pool, params, batch):
    for total, count in jax.jit(lambda pool, *args: pool.metrics(*args))(pool, gather(params, ACTIVE), batch).values():
        chex.assert_shape([total, count], ())
        assert np.isfinite(total) and count > 0


@pytest.mark.parametrize("family", BASES)
def test_a_large_batch_and_its_rows_have_the_same_losses(family):
    """W + Delta W is formed for the one, and tokens pass through the inner dimensions for the others."""
    pool = family_pool(family)
    params, batch = toy_params(pool), toy_batch(24)
    sums, _ = losses_of(pool, params, ACTIVE, batch)
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch) for i in range(0, 24, 5)]
    assert [pool._merges(m, batch) for m in pool.modules] != [pool._merges(m, rows[0]) for m in pool.modules]
    alone = [losses_of(pool, params, ACTIVE, row)[0][0] for row in rows]
    np.testing.assert_allclose(sums[::5], alone, rtol=1e-4)


@pytest.mark.parametrize("family", BASES)
def test_a_task_that_is_learned_keeps_its_loss_bit_for_bit(family):
    """Theorem D.1 on a pool of every family."""
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
