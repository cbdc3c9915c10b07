"""HAT: gates over components, against the paper's equations written out step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from ftn_jax.core.errors import InputError
from ftn_jax.methods import Given, build_method
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import INIT, TRAIN, Training, fold, init_state

STEPS, SEED, LAMBDA, LARGEST = 12, 3, 0.75, 40.0
POOL, OPTIMIZER = (
    toys.toy_neurons(dropout=0.0),
    optax.sgd(0.02, momentum=0.9),
)  # the paper's; Adam blows up what is tiny
TRAINING = Training(OPTIMIZER, steps=STEPS, batch=8, support=8, chunk=4)
METHOD = build_method("hat", toys.toy_configurer(), {"sharpness": LARGEST})


def protected(used, leaf, update):
    return leaf + update * (1 - used).reshape(-1, *[1] * (leaf.ndim - 1))


def by_the_paper(tasks):
    """(params, embeddings [H, N], gates [N][H] at s_max) after blocks of SGD on the gated networks."""
    key = jax.random.key(SEED)
    params = POOL.init(fold(key, INIT, 0))
    e = jax.random.normal(fold(key, INIT, 1), (16, 3))
    used, gates = np.zeros(16), []

    def loss(params, a, batch, used):
        free = 1 - used
        return POOL.loss(params, a, batch) + LAMBDA * (a * free).sum() / free.sum()

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    for task, data in enumerate(tasks):
        state = OPTIMIZER.init((params, e))
        for b in range(1, STEPS + 1):
            s = 1 / LARGEST + (LARGEST - 1 / LARGEST) * (b - 1) / (STEPS - 1)
            batch = data.batch(fold(key, TRAIN, task, b - 1, 0), 8)
            column = np.asarray(e[:, task], float)
            a = np.float32(1 / (1 + np.exp(-s * column)))
            _, (grads, slope) = step(params, a, batch, jnp.asarray(used, jnp.float32))
            slope = np.asarray(slope, float) * s / (4 * np.cosh(s * column / 2) ** 2)
            slope = slope * LARGEST * (np.cosh(s * column) + 1) / (s * (np.cosh(column) + 1))
            whole = jnp.zeros_like(e).at[:, task].set(slope)
            (moved, turned), state = OPTIMIZER.update((grads, whole), state)
            params = jax.tree.map(functools.partial(protected, used), params, moved)
            e = jnp.asarray(e).at[:, task].set(jnp.clip(e[:, task] + turned[:, task], -6, 6))
        gates.append(1 / (1 + np.exp(-LARGEST * np.asarray(e[:, task], float))))
        used = np.maximum(used, gates[-1])
    return params, e, gates


@pytest.fixture(scope="module")
def trained():
    stream = toys.toy_synthetic("classification", (SEED,))
    state, states = init_state(POOL, np.array([SEED], np.int32), method=METHOD, training=TRAINING), []
    for task, data in enumerate(stream.tasks):
        state, _ = train_task(POOL, METHOD, TRAINING, state, data, task, axis=0)
        states.append(jax.tree.map(lambda leaf: np.array(leaf[0]), state._replace(keys=())))
    return [jax.tree.map(lambda leaf: leaf[0], data) for data in stream.tasks], states


def test_training_follows_the_paper_s_equations(trained):
    tasks, states = trained
    params, e, gates = by_the_paper(tasks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), states[-1].params["networks"], params)
    np.testing.assert_allclose(states[-1].params["embeddings"], e, atol=2e-3)
    np.testing.assert_allclose(states[-1].extra["used"], np.max(gates, 0), atol=2e-3)
    assert np.ptp(gates[0]) > 0.9  # some components are the first task's, and others are free


def test_a_component_that_a_task_uses_fully_keeps_its_bits(trained):
    """In float32 a gate is one exactly where e is large enough: then its weights don't move, with momentum neither."""
    _, (first, *_, last) = trained
    held = first.extra["used"] == 1
    assert 2 <= held.sum() < 16
    for before, after in zip(*(jax.tree.leaves(s.params["networks"]) for s in (first, last)), strict=True):
        np.testing.assert_array_equal(before[held], after[held])
        assert np.any(before[~held] != after[~held])
    np.testing.assert_array_equal(first.params["embeddings"][:, 0], last.params["embeddings"][:, 0])


def test_the_task_is_told_and_gates_are_sharp_at_evaluation(trained):
    tasks, states = trained
    selection = METHOD.select(POOL, states[-1].params, states[-1].extra, Given(None, 1, None, None))
    params = METHOD.params_of(states[-1].params, states[-1].extra, selection)
    gate = jax.nn.sigmoid(LARGEST * states[-1].params["embeddings"][:, 1])
    networks, batch = states[-1].params["networks"], tasks[1].test()
    np.testing.assert_allclose(POOL.active_loss(params, batch), POOL.loss(networks, gate, batch), rtol=1e-5)
    assert METHOD.oracle


def test_other_pools_are_refused():
    with pytest.raises(InputError, match=r"hat gates small networks, expected pool\.name=neurons"):
        METHOD.adapt_pool(toys.toy_pool())
