"""FTN's searches in training and at recovery: how often each smooths, and which moments it starts with."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from literal import literal_smoothing, literal_winners
from toys import toy_configurer, toy_neurons, toy_params, toy_points

from ftn_jax.core.errors import InputError
from ftn_jax.methods import Given, build_method

POOL = toy_neurons(size=64)
PARAMS = toy_params(POOL)
SIDE, K = 8, 9


def method_of(name="ftn_slow", /, *, proposal="adam", moments="fresh", steps=2, **variant):
    configurer = toy_configurer(k=K, steps=steps, proposal=proposal, moments=moments, jitter=0.0)
    return build_method(name, configurer, {"kernel": 3, "lateral_steps": 4} | variant)


def slopes(batch, logits):
    """The gradient of the batch's loss at mask logits, float64[H]."""
    loss = POOL.mask_loss(PARAMS, batch)
    return np.asarray(jax.grad(lambda logits: loss(jax.nn.sigmoid(logits)))(jnp.asarray(logits, jnp.float32)), float)


def winners(logits, lateral_steps):
    return literal_winners(literal_smoothing(np.asarray(logits, float), 3, lateral_steps), K)


@pytest.mark.parametrize("every", ["task", "batch"])
def test_recovery_may_smooth_less_than_training(every):
    """By hand, one step of the gradient: its sign and size are the proposal's, and T blurs choose the winners."""
    method = method_of(proposal="gradient", steps=1, every=every, recovery_lateral_steps=1)
    batch, key = toy_points(rows=32), jax.random.key(0)
    proposed = -slopes(batch, np.zeros(64))
    trained, recovered = winners(proposed, 4), winners(proposed, 1)
    assert np.any(trained != recovered)
    np.testing.assert_array_equal(method.select(POOL, PARAMS, {}, Given(batch, None, None, key)).active, recovered)
    np.testing.assert_array_equal(method.install(POOL, PARAMS, {}, Given(batch, None, None, key)).active, trained)
    np.testing.assert_array_equal(method.search(POOL, PARAMS, {}, Given(batch, None, None, key))[0].active, trained)


def test_kept_moments_go_on_from_batch_to_batch_and_recovery_knows_none():
    """Adam by hand over three batches of two steps: the mask starts cold at each, the moments do not."""
    method = method_of(moments="kept", every="batch")
    params, extra = method.init(POOL, PARAMS, jax.random.key(0))
    first, second, steps = np.zeros(64), np.zeros(64), itertools.count(1)
    for seed in range(3):
        batch, logits = toy_points(rows=32, seed=seed), np.zeros(64)
        for t in itertools.islice(steps, 2):
            g = slopes(batch, logits)
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            logits = logits - 0.5 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        selection, extra = method.search(POOL, params, extra, Given(batch, None, None, None))
        np.testing.assert_array_equal(selection.active, winners(logits, 4))
        adam = extra["moments"][0]
        np.testing.assert_allclose(adam.mu, first, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(adam.nu, second, rtol=1e-3, atol=1e-9)
        np.testing.assert_array_equal(adam.count, np.full(64, t))
    cold = method_of(every="batch").select(POOL, params, {}, Given(batch, None, None, None))
    np.testing.assert_array_equal(
        method.select(POOL, params, extra, Given(batch, None, None, None)).active, cold.active
    )


@pytest.mark.parametrize(
    "name, settings",
    [
        ("ftn_slow", {"every": "task"}),
        ("ftn_slow", {"every": "batch", "proposal": "gradient"}),
        ("ftn_reserve", {}),
    ],
)
def test_moments_that_cannot_be_kept_are_refused(name, settings):
    with pytest.raises(InputError, match=rf"^config\.methods: {name}: configurer\.moments is 'kept', expected"):
        method_of(name, moments="kept", **settings)
