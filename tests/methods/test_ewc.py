"""EWC against loops over examples, parameters and tasks, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftn_jax.methods import Configurer, build_method
from ftn_jax.methods.ewc import fisher_diagonal
from ftn_jax.pools.neurons import NeuronPool, PointBatch

SIZE, LAMBDA = 3, 7.0
fisher_of = jax.jit(fisher_diagonal)


def pool_of(classes):
    """With dropout: a Fisher is taken without."""
    return NeuronPool(size=SIZE, layers=1, width=4, classes=classes, activation="tanh", dropout=0.5)


def random_params(pool, seed):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(pool.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.8 * rng.standard_normal(leaf.shape), jnp.float32), shapes)


def random_batch(classes, rows, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows, np.int32) if classes else rng.standard_normal(rows, np.float32)
    return PointBatch(jnp.asarray(rng.standard_normal((rows, 2), np.float32)), jnp.asarray(y))


def gradient_by_hand(params, x, y, classes):
    """Back-propagation of one example's loss through one hidden layer of tanh, in float64."""
    (w1, w2), (b1, b2), readout = params["w"], params["b"], params["readout"]
    hidden = [np.tanh(x @ w1[h] + b1[h]) for h in range(SIZE)]
    z = [hidden[h] @ w2[h][:, 0] + b2[h][0] for h in range(SIZE)]
    answer = sum(z[h] * readout[h] for h in range(SIZE))
    if classes:
        error = np.exp(answer) / np.exp(answer).sum() - np.eye(classes)[y]
    else:
        error = 2 * (answer - y)
    grads = jax.tree.map(np.zeros_like, params)
    for h in range(SIZE):
        grads["readout"][h] = z[h] * error
        dz = error @ readout[h]
        grads["w"][1][h][:, 0], grads["b"][1][h][0] = dz * hidden[h], dz
        inner = dz * w2[h][:, 0] * (1 - hidden[h] ** 2)
        grads["w"][0][h], grads["b"][0][h] = np.outer(x, inner), inner
    return grads


def fisher_by_hand(params, batch, classes):
    """Mean over the examples of the squares of each one's own gradient, at its true label."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    total = jax.tree.map(np.zeros_like, params)
    for x, y in zip(np.asarray(batch.x, np.float64), np.asarray(batch.y), strict=True):
        total = jax.tree.map(lambda t, g: t + g**2, total, gradient_by_hand(params, x, y, classes))
    return jax.tree.map(lambda t: t / len(batch.x), total)


def close(found, wanted, rtol=1e-4):
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * (1e-6 + np.abs(right).max()))


@pytest.mark.parametrize(
    "classes, rows",
    [(3, 1), (3, 32), (3, 37), (0, 24)],  # in blocks of 1, 16, 1 and 12
)
def test_fisher_is_the_mean_of_squared_gradients_of_single_examples(classes, rows):
    pool = pool_of(classes)
    params, batch = random_params(pool, 1), random_batch(classes, rows)
    close(fisher_of(pool, params, batch), fisher_by_hand(params, batch, classes))


class Recorded:
    """A task's data that gives one batch, and writes down what it was asked for."""

    def __init__(self, batch):
        self.given, self.asked = batch, []

    def batch(self, key, size):
        self.asked.append((key, size))
        return self.given


def method_of(examples=8):
    configurer = Configurer(k=SIZE, steps=1, learning_rate=1.0, jitter=0.0, tasks=3)
    return build_method("ewc", configurer, {"strength": LAMBDA, "examples": examples})


def after_tasks(count, rows=8):
    """The method, its extra after ``count`` tasks, and (Fisher, anchor) of each by hand."""
    pool, method = pool_of(2), method_of(rows)
    _, extra = method.init(pool, random_params(pool, 0), jax.random.key(0))
    parts = []
    for task in range(count):
        params, batch = random_params(pool, 10 + task), random_batch(2, rows, seed=task)
        if task == 0:  # a component that nobody reads has no gradient yet
            params["readout"] = params["readout"].at[1].set(0)
        returned, extra = method.finish(pool, params, extra, Recorded(batch), None, jax.random.key(task))
        jax.tree.map(np.testing.assert_array_equal, returned, params)
        parts.append((fisher_by_hand(params, batch, 2), jax.tree.map(np.float64, params)))
    return pool, method, extra, parts


def penalty_by_hand(params, parts):
    """lambda / 2 sum over tasks and parameters of F (theta - theta*)^2, and its gradient."""
    params = jax.tree.map(np.float64, params)
    value, slope = 0.0, jax.tree.map(np.zeros_like, params)
    for fisher, anchor in parts:
        for f, p, a in zip(*map(jax.tree.leaves, (fisher, params, anchor)), strict=True):
            value += LAMBDA / 2 * sum(fi * (pi - ai) ** 2 for fi, pi, ai in zip(f.flat, p.flat, a.flat, strict=True))
        slope = jax.tree.map(lambda s, f, p, a: s + LAMBDA * f * (p - a), slope, fisher, params, anchor)
    return value, slope


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_the_penalty_keeps_one_fisher_and_anchor_a_task(tasks):
    pool, method, extra, parts = after_tasks(tasks)
    for params in (random_params(pool, 99), jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), parts[-1][1])):
        value, slope = jax.value_and_grad(method.penalty)(params, extra, None)
        wanted, wanted_slope = penalty_by_hand(params, parts)
        assert value == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        close(slope, wanted_slope)


def test_a_task_s_own_anchor_costs_nothing_and_lambda_is_halved():
    """Of one task: at theta* nothing; a step s from there in one parameter lambda / 2 F s^2."""
    _, method, extra, ((fisher, anchor),) = after_tasks(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), anchor)
    assert method.penalty(params, extra, None) == 0
    params["readout"] = params["readout"].at[2, 1].add(0.5)
    assert method.penalty(params, extra, None) == pytest.approx(LAMBDA / 2 * fisher["readout"][2, 1] * 0.25, rel=1e-4)


def test_parameters_without_fisher_information_are_free():
    """Those of the component whose readout is zero; a later task that needs them anchors them at its own values."""
    pool, method, extra, ((fisher, _),) = after_tasks(1)
    for name in ("w", "b"):
        for found, wanted in zip(extra["fisher"][name], fisher[name], strict=True):
            assert not np.any(found[1]) and not np.any(wanted[1]) and np.all(found[0] > 0)
    slope = jax.grad(method.penalty)(random_params(pool, 99), extra, None)
    for leaf in [*slope["w"], *slope["b"]]:
        assert not np.any(leaf[1]) and np.all(leaf[0] != 0)

    _, _, extra, (_, (_, anchor)) = after_tasks(2)
    for name in ("w", "b"):
        for found, wanted in zip(extra["anchor"][name], anchor[name], strict=True):
            np.testing.assert_array_equal(found[1], wanted[1])


def test_before_the_first_task_ends_there_is_no_penalty():
    pool, method, extra, _ = after_tasks(0)
    value, slope = jax.value_and_grad(method.penalty)(random_params(pool, 99), extra, None)
    assert value == 0 and not any(map(np.any, jax.tree.leaves(slope)))


def test_a_fisher_is_taken_from_as_many_training_examples_as_are_set():
    pool, method = pool_of(2), method_of(examples=1024)
    data, key = Recorded(random_batch(2, 8)), jax.random.key(5)
    params, extra = method.init(pool, random_params(pool, 0), jax.random.key(0))
    method.finish(pool, params, extra, data, None, key)
    ((asked_key, asked_size),) = data.asked
    assert asked_size == 1024
    assert jnp.all(jax.random.key_data(asked_key) == jax.random.key_data(key))


def test_all_components_answer():
    pool, method = pool_of(2), method_of()
    selection = method.select(pool, random_params(pool, 0), {}, None)
    np.testing.assert_array_equal(selection.active, np.arange(SIZE))
    assert not method.oracle and method.every == "task"
