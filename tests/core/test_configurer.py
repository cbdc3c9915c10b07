"""Algorithm 1 against a literal NumPy version: Adam by hand, T circular convolutions, a full sort."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from literal import literal_smoothing, literal_winners
from toys import blob_sizes

from ftn_jax.core.configurer import PROPOSALS, kwta, propose, smooth_kwta, whole_vector
from ftn_jax.core.torus import smooth

KERNELS = range(1, 18, 2)


class Quadratic:
    """L(m) = m' Q m / 2 - b' m: every mask component interacts with every other; the gradient is known."""

    def __init__(self, size: int, seed: int):
        rng = np.random.default_rng(seed)
        root = rng.standard_normal((size, size)) / size
        self.q, self.b = root @ root.T + np.eye(size), rng.uniform(0, 1, size)

    def loss(self, mask):
        q, b = jnp.asarray(self.q, mask.dtype), jnp.asarray(self.b, mask.dtype)
        return mask @ q @ mask / 2 - b @ mask

    def gradient(self, mask):
        return self.q @ mask - self.b


def literal_proposal(gradient, size, steps, learning_rate, proposal="adam", start=0.5):
    """How far S steps move mask logits, in float64: Adam (Kingma & Ba 2015, Algorithm 1), or -eta g / rms(g)."""
    moved, first, second = np.zeros(size), np.zeros(size), np.zeros(size)
    for t in range(1, steps + 1):
        mask = 1 / (1 + (1 / start - 1) * np.exp(-moved))
        g = gradient(mask) * mask * (1 - mask)
        if proposal == "gradient":
            moved = moved - learning_rate * g / np.sqrt(np.mean(g**2))
            continue
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g**2
        moved = moved - learning_rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return moved


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("steps", range(1, 16))
@pytest.mark.parametrize("proposal", PROPOSALS)
def test_the_proposal_is_steps_on_the_relaxed_mask(float64, steps, proposal):
    task, start = Quadratic(25, seed=steps), (0.5, 0.05)[steps % 2]
    settings = {"steps": steps, "start": start, "dtype": jnp.float64}
    logits, _ = propose(task.loss, 25, optimizer=PROPOSALS[proposal](0.5), **settings)
    expected = literal_proposal(task.gradient, 25, steps, 0.5, proposal, start)
    np.testing.assert_allclose(logits, expected, atol=1e-11)
    found = smooth_kwta(task.loss, 25, k=6, kernel=3, lateral_steps=2, learning_rate=0.5, proposal=proposal, **settings)
    np.testing.assert_array_equal(found.active, literal_winners(literal_smoothing(expected, 3, 2), 6))


@pytest.mark.parametrize("steps", [1, 15])
def test_the_gradient_s_mask_does_not_depend_on_the_loss_s_unit(steps):
    task = Quadratic(144, seed=steps)
    settings = {"k": 18, "kernel": 3, "lateral_steps": 4, "steps": steps, "learning_rate": 0.5}

    @jax.jit
    def mask(unit):
        return smooth_kwta(lambda m: unit * task.loss(m), 144, proposal="gradient", **settings).active

    for unit in (1e-3, 1e3, 1e-24):  # whose square is no number of float32
        np.testing.assert_array_equal(mask(unit), mask(1.0))


def test_the_first_step_keeps_the_gradient_s_proportions_or_takes_its_signs():
    """By hand, on four components: rms [3, -0.01, 0.2, -5] = 2.917218."""
    slopes = np.array([3.0, -0.01, 0.2, -5.0])
    settings = {"k": 2, "kernel": 1, "lateral_steps": 0, "steps": 1, "learning_rate": 0.5}
    by = {
        name: smooth_kwta(lambda m: m @ jnp.array(slopes, jnp.float32), 4, proposal=name, **settings)
        for name in PROPOSALS
    }
    np.testing.assert_allclose(by["adam"].logits, [-0.5, 0.5, -0.5, 0.5], rtol=1e-4)
    np.testing.assert_allclose(by["gradient"].logits, -0.5 * slopes / 2.917218, rtol=1e-5)
    np.testing.assert_array_equal(by["adam"].active, [1, 3])


def test_a_gradient_of_zeros_moves_nothing():
    np.testing.assert_array_equal(settle(steps=3, proposal="gradient").logits, 0)


def test_moments_go_on_where_they_are_handed_on(float64):
    """Two calls of S steps with the state between them have the moments of one of 2 S; the mask starts anew."""
    slopes = jnp.asarray(np.random.default_rng(0).standard_normal((2, 9)))
    adam, first, second = PROPOSALS["adam"](0.5), np.zeros(9), np.zeros(9)
    logits, state = propose(lambda m: m @ slopes[0], 9, steps=3, optimizer=adam, dtype=jnp.float64)
    again, _ = propose(lambda m: m @ slopes[1], 9, steps=1, optimizer=adam, state=state, dtype=jnp.float64)
    moved = np.zeros(9)
    for t, slope in enumerate([*np.asarray(slopes)[[0, 0, 0, 1]]], 1):
        moved = np.zeros(9) if t == 4 else moved  # cold
        mask = 1 / (1 + np.exp(-moved))
        g = slope * mask * (1 - mask)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        moved = moved - 0.5 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        if t == 3:
            np.testing.assert_allclose(logits, moved, atol=1e-12)
    np.testing.assert_allclose(again, moved, atol=1e-12)


def test_any_optax_transformation_proposes():
    """Plain gradient descent of two steps on a linear loss: sigmoid's slope is 1/4 at first."""
    slopes = jnp.array([3.0, -1.0, 0.5, -2.0])
    settings = {"k": 1, "kernel": 1, "lateral_steps": 0, "steps": 2, "proposal": optax.sgd(0.1)}
    found = smooth_kwta(lambda m: m @ slopes, 4, **settings)
    first = -0.1 * np.asarray(slopes) / 4
    mask = 1 / (1 + np.exp(-first))
    np.testing.assert_allclose(found.logits, first - 0.1 * np.asarray(slopes) * mask * (1 - mask), rtol=1e-5)


@pytest.mark.parametrize("side", [5, 24])  # 5: most kernels are wider than the torus
@pytest.mark.parametrize("kernel", KERNELS)
def test_smoothing_is_circular_convolutions(float64, side, kernel):
    values = np.random.default_rng(kernel).standard_normal(side**2)
    expected = values
    for lateral_steps in range(16):
        smoothed = smooth(jnp.asarray(values), kernel=kernel, lateral_steps=lateral_steps)
        np.testing.assert_allclose(smoothed, expected, atol=1e-13)
        expected = literal_smoothing(expected, kernel, 1)


# On a torus of side 24 no kernel up to 17 flattens 15 times smoothed fields below float64's resolution; on one of
# side 6, narrower than most kernels, a few times do.
CASES = [
    (24, 1, 0, 1, 72),
    *((24, kernel, 15, 15, 72) for kernel in KERNELS),
    *((6, kernel, 1, 15 - kernel // 2, 6) for kernel in KERNELS),
    *((24, kernel, 16 - kernel, kernel, 1) for kernel in (3, 7, 11, 15)),
]


@pytest.mark.parametrize("side, kernel, lateral_steps, steps, k", CASES)
def test_algorithm_1(side, kernel, lateral_steps, steps, k):
    task = Quadratic(side**2, seed=kernel)
    logits = literal_proposal(task.gradient, side**2, steps, 0.5)
    smoothed = literal_smoothing(logits, kernel, lateral_steps)
    winners = literal_winners(smoothed, k)

    @functools.partial(jax.jit, static_argnames="dtype")
    def run(dtype):
        settings = {"k": k, "kernel": kernel, "lateral_steps": lateral_steps, "steps": steps}
        return smooth_kwta(task.loss, side**2, learning_rate=0.5, dtype=dtype, **settings)

    single = run("float32")
    with jax.enable_x64(True):
        double = run("float64")
        np.testing.assert_allclose(double.logits, logits, atol=1e-10)
        np.testing.assert_allclose(double.smoothed, smoothed, atol=1e-10)
        np.testing.assert_array_equal(double.active, winners)
    np.testing.assert_allclose(single.logits, logits, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(single.smoothed, smoothed, rtol=1e-5, atol=2e-5)
    disputed = np.setxor1d(single.active, winners)
    assert np.all(np.abs(smoothed[disputed] - np.sort(smoothed)[-k]) < 1e-5)
    chex.assert_shape(single.active, (k,))
    chex.assert_type([single.logits, single.smoothed, single.active], [jnp.float32, jnp.float32, jnp.int32])


def test_winners_are_sorted_and_ties_go_to_the_lower_index():
    np.testing.assert_array_equal(kwta(jnp.array([0.0, 2.0, 1.0, 2.0, 1.0]), 3), [1, 2, 3])


def constant_loss(mask):
    return 0.0 * mask.sum()


def settle(loss=constant_loss, size=16, k=3, **settings):
    own = {"kernel": 3, "lateral_steps": 2, "steps": 2, "learning_rate": 0.5}
    return smooth_kwta(loss, size, k=k, **(own | settings))


def test_a_bias_of_minus_infinity_bars_components():
    task = Quadratic(16, seed=0)
    run = jax.jit(lambda bias: settle(task.loss, bias=bias))
    free = run(np.zeros(16, np.float32))
    bias = np.where(np.isin(np.arange(16), free.active), -np.inf, 0).astype(np.float32)
    barred = run(bias)
    assert not np.intersect1d(free.active, barred.active).size
    others = np.setdiff1d(np.arange(16), free.active)
    expected = others[literal_winners(np.asarray(free.smoothed)[others], 3)]
    np.testing.assert_array_equal(barred.active, expected)
    np.testing.assert_array_equal(barred.logits, free.logits)


def test_vmapped_equals_looped():
    rng = np.random.default_rng(0)
    targets = rng.uniform(0, 1, (5, 16)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 5)

    def run(target, key):
        return settle(lambda m: jnp.sum((m - target) ** 2), key=key, jitter=0.1)

    together = jax.jit(jax.vmap(run))(targets, keys)
    alone_of = jax.jit(run)
    for i in range(5):
        alone = alone_of(targets[i], keys[i])
        np.testing.assert_array_equal(together.active[i], alone.active)
        np.testing.assert_allclose(together.smoothed[i], alone.smoothed, atol=1e-6)


def test_jitter_is_noise_of_the_given_size_on_the_logits():
    still = settle(size=576, k=72)
    np.testing.assert_array_equal(still.logits, 0)
    noisy = settle(size=576, k=72, key=jax.random.key(3), jitter=0.01)
    assert 0.009 < np.std(noisy.logits) < 0.011 and abs(np.mean(noisy.logits)) < 0.002
    np.testing.assert_allclose(noisy.smoothed, literal_smoothing(np.asarray(noisy.logits, float), 3, 2), atol=1e-8)


def test_an_all_zero_gradient_gives_a_compact_blob_that_depends_on_the_key_only():
    """The first LoRA task at the paper's settings: B = 0, so nothing but the jitter tells components apart."""

    @functools.partial(jax.jit, static_argnames=("lateral_steps", "jitter"))
    def first_mask(key, lateral_steps=15, jitter=1e-6):
        return settle(size=576, k=72, key=key, jitter=jitter, steps=15, lateral_steps=lateral_steps).active

    masks = [tuple(np.asarray(first_mask(jax.random.key(seed)))) for seed in range(10)]
    for mask in masks:
        sizes = blob_sizes(mask, 24)
        assert len(sizes) <= 3 and sizes[0] >= 24
    assert len(blob_sizes(first_mask(jax.random.key(0), lateral_steps=0), 24)) > 30  # what smoothing is for
    assert len(set(masks)) == 10
    assert tuple(np.asarray(first_mask(jax.random.key(0)))) == masks[0]
    # The place is the key's, whatever the jitter's size.
    assert len(np.setxor1d(first_mask(jax.random.key(0), jitter=1.0), masks[0])) == 0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"k": 0}, "k must be between 1 and 16, got 0"),
        ({"k": 17}, "k must be between 1 and 16, got 17"),
        ({"kernel": 4}, "odd and positive, got 4"),
        ({"kernel": -1}, "odd and positive, got -1"),
        ({"size": 15}, "square number of components, got 15"),
        ({"jitter": 0.1}, "jitter 0.1 needs a key"),
        ({"start": 1e-7}, "starts between 1e-6 and 1 - 1e-6, got 1e-07"),
        ({"start": 1.0}, "starts between 1e-6 and 1 - 1e-6, got 1.0"),
        ({"proposal": "sign"}, "unknown proposal 'sign', known: adam, gradient"),
        ({"learning_rate": None}, "the proposal 'adam' needs a learning_rate"),
        ({"proposal": whole_vector(0.5)}, "has its own learning_rate"),
    ],
)
def test_what_cannot_work_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        settle(**settings)


def test_without_smoothing_the_number_of_components_need_not_be_a_square():
    assert settle(size=15, lateral_steps=0).active.shape == (3,)
