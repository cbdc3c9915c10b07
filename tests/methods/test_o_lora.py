"""O-LoRA: orthogonal subspaces and frozen adapters, against a loop over whole pools with the penalty written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from ftn_jax.core.errors import InputError
from ftn_jax.methods import build_method
from ftn_jax.training.evaluation import evaluate_row
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import INIT, TRAIN, fold, init_state

STEPS, SEED, LAMBDA = 8, 3, 0.05
POOL, TRAINING = toys.toy_pool(modules=("attn.c_attn", "mlp.c_fc")), toys.toy_training(steps=STEPS, chunk=4)
TASKS = [toys.toy_task(shift, seed=shift) for shift in (1, 2, 3)]
METHOD = build_method("o_lora", toys.toy_configurer(), {"strength": LAMBDA})


def penalty(params, task):
    """lambda sum_i |A_i A_t^T| over modules and layers, each task's A of all its ranks."""
    total = jnp.float32(0)
    for module in params.values():
        for layer in range(module["a"].shape[1]):
            a = [module["a"][4 * t : 4 * t + 4, layer].reshape(8, -1) for t in range(task + 1)]
            for earlier in a[:-1]:
                total = total + jnp.abs(earlier @ a[-1].T).sum()
    return LAMBDA * total


def by_hand():
    key, optimizer = jax.random.key(SEED), optax.adam(0.02)
    params = jax.jit(POOL.init)(fold(key, INIT, 0))
    for task, data in enumerate(TASKS):
        mask = (np.arange(16) < 4 * (task + 1)).astype(np.float32)
        own = np.isin(np.arange(16), 4 * task + np.arange(4))

        def loss(params, batch, mask=mask, task=task):
            return POOL.loss(params, jnp.asarray(mask), batch) + penalty(params, task)

        step, state = jax.jit(jax.grad(loss)), optimizer.init(params)
        for i in range(STEPS):
            grads = step(params, data.batch(fold(key, TRAIN, task, i, 0), 8))
            moved, state = optimizer.update(grads, state)
            keep = jax.tree.map(lambda m: jnp.where(own.reshape(-1, *[1] * (m.ndim - 1)), m, 0), moved)  # noqa: B023
            params = optax.apply_updates(params, keep)
    return params


@pytest.fixture(scope="module")
def trained():
    state = init_state(POOL, np.array([SEED], np.int32), method=METHOD, training=TRAINING)
    states, installed, rows = [state.params], [], []
    states = [jax.tree.map(np.array, state.params)]
    for task, data in enumerate(TASKS):
        state, selection = train_task(POOL, METHOD, TRAINING, state, data, task, installed=installed)
        installed.append(selection)
        states.append(jax.tree.map(np.array, state.params))
        rows.append(evaluate_row(POOL, METHOD, state, TASKS, task, installed, support=8))
    return states, installed, rows


def test_training_is_the_loop_by_hand(trained):
    states, installed, _ = trained
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=2e-4), states[-1], by_hand())
    for task, selection in enumerate(installed):
        np.testing.assert_array_equal(selection.active[0], 4 * task + np.arange(4))
        np.testing.assert_array_equal(selection.answering(0, 16), np.arange(4 * (task + 1)))


def test_the_penalty_makes_subspaces_orthogonal(trained):
    """Without it what later tasks learn overlaps more with what was there."""
    free = build_method("o_lora", toys.toy_configurer(), {"strength": 0.0})
    state = init_state(POOL, np.array([SEED], np.int32), method=free, training=TRAINING)
    installed = []
    for task, data in enumerate(TASKS):
        state, selection = train_task(POOL, free, TRAINING, state, data, task, installed=installed)
        installed.append(selection)
    with_it, without = (jax.tree.map(lambda leaf: leaf[0], params) for params in (trained[0][-1], state.params))
    for task in (1, 2):
        assert penalty(with_it, task) < 0.7 * penalty(without, task)


def test_adapters_that_are_trained_never_move(trained):
    states, installed, rows = trained
    for block, (before, after) in enumerate(itertools.pairwise(states)):
        own = np.asarray(installed[block].active[0])
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            rest = np.setdiff1d(np.arange(16), own)
            np.testing.assert_array_equal(old[:, rest], new[:, rest])
            assert np.any(old[:, own] != new[:, own])
    for j in range(3):
        for row in rows[j:]:
            np.testing.assert_array_equal(row.stored["cross_entropy"][:, j], rows[j].stored["cross_entropy"][:, j])


def test_at_evaluation_every_adapter_answers_whatever_the_examples(trained):
    states, _, rows = trained
    losses_of = jax.jit(POOL.example_losses)
    for i, row in enumerate(rows):
        mask = jnp.asarray(np.arange(16) < 4 * (i + 1), jnp.float32)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), states[i + 1])
        for j, data in enumerate(TASKS):
            np.testing.assert_array_equal(row.recovered[j].answering(0, 16), np.arange(4 * (i + 1)))
            sums, counts = losses_of(params, mask, data.test())
            np.testing.assert_allclose(row.reconfig["cross_entropy"][0, j], sums.sum() / counts.sum(), rtol=1e-4)


def test_other_pools_are_refused():
    with pytest.raises(InputError, match=r"o_lora keeps LoRA's A apart, expected pool\.name=lora"):
        METHOD.adapt_pool(toys.toy_neurons())
