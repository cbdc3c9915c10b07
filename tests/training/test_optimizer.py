"""The optimizer's settings: the rate by hand, the clipped norm in NumPy, a batch in parts as the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ftn_jax.core.errors import InputError
from ftn_jax.runs.build import check, training_of
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import init_state, make_optimizer

RATE = 0.5


def rates(count, **settings):
    """The rates of ``count`` updates: Adam's update for a gradient that stays the same is the rate itself."""
    optimizer = make_optimizer("adam", RATE, 0.0, **settings)
    params = jnp.zeros(1)
    state, found = optimizer.init(params), []
    for _ in range(count):
        updates, state = optimizer.update(jnp.ones(1), state, params)
        found.append(-float(updates[0]))
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.5, 0.5, 0.5, 0.5]),
        ({"warmup_steps": 2}, [0, 0.25, 0.5, 0.5, 0.5]),
        ({"lr_scheduler_type": "linear"}, [0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"lr_scheduler_type": "linear", "warmup_steps": 1}, [0, 0.5, 0.375, 0.25, 0.125]),
        # Half of 1 + cos(pi i / 4) for i = 0, ..., 3.
        ({"lr_scheduler_type": "cosine", "warmup_steps": 1}, [0, 0.5, 0.4267767, 0.25, 0.0732233]),
    ],
)
def test_the_rate_by_hand_in_each_block_anew(settings, expected):
    np.testing.assert_allclose(rates(10, steps=5, **settings), 2 * expected, atol=2e-5)


def test_a_large_gradient_is_scaled_to_the_norm_and_a_small_one_is_not():
    optimizer = make_optimizer("adam", RATE, 0.0, max_grad_norm=1.0)
    params, gradients = np.zeros(2), np.array([[3.0, 4.0], [0.3, -0.4]])
    state, m, v = optimizer.init(params), np.zeros(2), np.zeros(2)
    for i, (gradient, scaled) in enumerate(zip(gradients, [[0.6, 0.8], gradients[1]], strict=True), 1):
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        m, v = 0.9 * m + 0.1 * np.array(scaled), 0.999 * v + 0.001 * np.square(scaled)
        expected = -RATE * (m / (1 - 0.9**i)) / (np.sqrt(v / (1 - 0.999**i)) + 1e-8)
        np.testing.assert_allclose(updates, expected, rtol=1e-4)


def test_a_first_moment_in_bfloat16_by_hand():
    """It is rounded as it is put away, and its decay in bfloat16, as optax has it. The second moment is not rounded."""
    optimizer, gradients = (
        make_optimizer("adam", RATE, 0.0, mu_dtype="bfloat16"),
        np.linspace(1, 2, 7, dtype=np.float32),
    )
    state, m, v = optimizer.init(jnp.zeros(1)), np.float32(0), np.float32(0)
    for i, gradient in enumerate(gradients, 1):
        updates, state = optimizer.update(jnp.full(1, gradient), state, jnp.zeros(1))
        decayed = (jnp.bfloat16(0.9) * jnp.bfloat16(m)).astype(np.float32)
        m, v = decayed + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected = -RATE * (m / (1 - 0.9**i)) / (np.sqrt(v / (1 - 0.999**i)) + 1e-8)
        np.testing.assert_allclose(updates[0], expected, rtol=1e-4)
        m = m.astype(jnp.bfloat16)
        assert state[0].mu.dtype == jnp.bfloat16 and state[0].mu[0] == m
    np.testing.assert_allclose(state[0].nu[0], v, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "pool_name"),
    [
        pytest.param("fixedmask", "lora", marks=pytest.mark.slow),
        ("ftn_slow", "neurons"),
        pytest.param("ewc", "neurons", marks=pytest.mark.slow),
        pytest.param("lora_ftn_compose", "lora", marks=pytest.mark.slow),
    ],
)
def test_a_batch_in_parts_is_the_whole_batch(name, pool_name):
    """Parts of text have different numbers of tokens, by which their losses count."""
    method, stream = toys.toy_method(name), toys.toy_pool_stream(pool_name)
    pool = toys.POOLS[pool_name]()
    pool = method.adapt_pool(pool.replace(dropout=0.0) if pool_name == "neurons" else pool)
    ends = []
    for accumulate in (1, 4):
        training = toys.toy_training(steps=6, chunk=3, accumulate=accumulate)
        state, installed, losses = init_state(pool, toys.SEEDS, method=method, training=training), [], []
        for task in range(2):
            state, selection = train_task(
                pool, method, training, state, stream.tasks[task], task, axis=stream.axis, installed=installed,
                on_chunk=lambda step, found, *_, to=losses: to.append(found),
            )  # fmt: skip
            installed.append(selection)
        ends.append((np.concatenate(losses, axis=1), state.params))
    (whole, params), (parts, others) = ends
    np.testing.assert_allclose(parts, whole, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), others, params)
    before = init_state(pool, toys.SEEDS, method=method, training=training).params
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before, params)), strict=True)) > 0.02


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"optimizer.warmup_steps": 12},
            "config.optimizer.warmup_steps is 12, expected fewer than config.stream.steps",
        ),
        ({"optimizer.lr_scheduler_type": "step"}, "expected one of constant, linear, cosine"),
        (
            {"optimizer.lr_scheduler_type": "linear", "stream.boundaries": "unknown", "methods": ("ftn_reserve",)},
            "config.optimizer.lr_scheduler_type is linear, expected constant if config.stream.boundaries is unknown",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        check(toys.points_config(**({"stream.steps": 12} | settings)))


def test_a_config_s_training():
    settings = {"warmup_steps": 3, "lr_scheduler_type": "cosine", "gradient_accumulation_steps": 4}
    config = toys.points_config(**{f"optimizer.{name}": value for name, value in settings.items()})
    training, batch = training_of(config), config.stream.batch
    assert (training.batch, training.accumulate) == (4 * batch, 4)
    assert training == training_of(config)  # of one configuration is one program
