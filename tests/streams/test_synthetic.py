"""The synthetic stream: labels by hand, tasks balanced against each other, draws that depend on keys only."""

import functools
import importlib
import math

import jax
import numpy as np
import pytest

from ftn_jax.cli.command import load_config
from ftn_jax.core.errors import InputError
from ftn_jax.runs.build import filled
from ftn_jax.streams import Context
from ftn_jax.streams.synthetic import draw_encoder, label_statistics, synthetic, target

CONFIG = filled(load_config("synthetic"))
NAMES = ("first", "second", "third")
# Few features and slow waves: encoders are found at once.
SMALL = {"block": 2, "scale": 1.2, "frequency": 2.0}


def labels_by_hand(x, weights, frequency):
    """c sum over the block's features h_j of sin(frequency h_j), a feature and an input at a time, in float64."""
    features = len(weights[0])
    amplitude = 0.67 / math.sqrt(features)
    return np.array(
        [
            amplitude * sum(math.sin(frequency * (a * weights[0][j] + b * weights[1][j])) for j in range(features))
            for a, b in np.asarray(x, float)
        ]
    )


@functools.cache
def stream_of(target="classification", seeds=(3, 7)):
    return synthetic(Context(seeds), NAMES, target=target, **SMALL, test=40)


def seed_of(stream, task, seed):
    """One seed's task."""
    return jax.tree.map(lambda leaf: leaf[seed], stream.tasks[task])


# --- labels ----------------------------------------------------------------------------------------------------


def test_targets_are_the_formula_s():
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((50, 2), np.float32), rng.normal(scale=0.4, size=(2, 8)).astype(np.float32)
    np.testing.assert_allclose(target(x, weights, 8.0), labels_by_hand(x, weights, 8.0), atol=2e-5)


def test_the_targets_variance_is_what_the_paper_s_errors_imply():
    """Table 4: another task's answer costs twice the variance, NoMask 0.461 above the oracle's 0.006."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((20_000, 2), np.float32), rng.standard_normal((2, 8), np.float32)
    assert 2 * np.var(target(x, weights, 8.0)) == pytest.approx(0.467, rel=0.05)


@pytest.mark.parametrize("task", range(3))
def test_examples_are_normal_inputs_with_the_labels_of_the_task_s_block(task):
    keys = [jax.random.key(seed) for seed in range(3)]
    classified, valued = (seed_of(stream_of(e), task, 1) for e in ("classification", "regression"))
    for draw in (
        lambda data: data.batch(keys[0], 30),
        lambda data: data.support(keys[1], 20),
        lambda data: data.test(),
    ):
        classes, values = draw(classified), draw(valued)
        np.testing.assert_array_equal(classes.x, values.x)  # both variants share their inputs
        wanted = labels_by_hand(values.x, np.asarray(valued.weights), 2.0)
        assert values.y.dtype == np.float32 and classes.y.dtype == np.int32
        np.testing.assert_allclose(values.y, wanted, atol=2e-5)
        clear = np.abs(wanted) > 1e-4
        assert clear.sum() >= len(wanted) - 1
        np.testing.assert_array_equal(classes.y[clear], (wanted > 0)[clear])
    x = np.asarray(classified.batch(keys[2], 4000).x)
    np.testing.assert_allclose(x.mean(0), 0, atol=4 / math.sqrt(4000))
    np.testing.assert_allclose(np.cov(x.T), np.eye(2), atol=4 * math.sqrt(2 / 4000))


def test_a_label_does_not_depend_on_the_batch_it_is_in():
    """Bit for bit: at high frequencies another rounding of h would be another label."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((64, 2), np.float32), rng.standard_normal((2, 8), np.float32)
    together = jax.jit(target)(x, weights, 1000.0)
    np.testing.assert_array_equal(together[:7], jax.jit(target)(x[:7], weights, 1000.0))


# --- balance and agreement -------------------------------------------------------------------------------------


def monte_carlo(weights, frequency, size=100_000):
    """Shares of normal inputs: in the positive class [N], and where two tasks agree [N, N]."""
    x = np.random.default_rng(1).standard_normal((size, 2))
    positive = np.stack([np.sin(frequency * (x @ w)).sum(1) > 0 for w in weights])
    return positive.mean(1), np.array([[np.mean(a == b) for b in positive] for a in positive])


ERROR = 4 * 0.5 / math.sqrt(100_000)  # of a share, four standard deviations


@pytest.mark.parametrize("tasks, features, scale", [(3, 8, 0.4), (2, 1, 0.2), (4, 3, 0.3)])
def test_shares_by_integration_are_those_of_random_inputs(tasks, features, scale):
    weights = np.random.default_rng(features).normal(scale=scale, size=(tasks, 2, features))
    positive, agreement = label_statistics(weights, 8.0)
    wanted_positive, wanted_agreement = monte_carlo(weights, 8.0)
    np.testing.assert_allclose(positive, wanted_positive, atol=ERROR)
    np.testing.assert_allclose(agreement, wanted_agreement, atol=ERROR)
    assert agreement.shape == (tasks, tasks) and np.abs(agreement - 0.5).max() > 0.03
    np.testing.assert_allclose(agreement, agreement.T, atol=1e-9)
    np.testing.assert_allclose(np.diag(agreement), 1, atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_classes_are_balanced_and_tasks_agree_on_half_of_the_labels(seed):
    """With the settings of the experiment: 50 +- 1 % and 50 +- 2 %."""
    s = CONFIG.stream
    weights = draw_encoder(seed, tasks=len(s.tasks), block=s.block, scale=s.scale, frequency=s.frequency)
    assert weights.shape == (3, 2, 8)
    off_diagonal = ~np.eye(3, dtype=bool)
    for statistics, error in ((label_statistics, 0), (monte_carlo, ERROR)):
        positive, agreement = statistics(weights, s.frequency)
        np.testing.assert_allclose(positive, 0.5, atol=0.01)
        np.testing.assert_allclose(agreement[off_diagonal], 0.5, atol=0.02 + error)


def test_the_stream_tells_what_is_known_of_each_seed():
    stream = stream_of()
    weights = np.stack([np.asarray(data.weights, float) for data in stream.tasks], axis=1)  # [E, N, d, n]
    expected = [f"positive, {name}" for name in NAMES]
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected += [f"agree, {NAMES[i]} / {NAMES[j]}" for i, j in pairs]
    assert list(stream.facts) == expected
    for seed in range(2):
        positive, agreement = monte_carlo(weights[seed], SMALL["frequency"])
        found = [values[seed] for values in stream.facts.values()]
        np.testing.assert_allclose(found, [*positive, *(agreement[i, j] for i, j in pairs)], atol=ERROR)
    assert (stream.names, stream.metric, stream.axis) == (NAMES, "accuracy", 0)
    assert stream_of("regression").metric == "mse"


def test_what_cannot_be_balanced_is_one_line(monkeypatch):
    """Features that hardly vary: labels are the sign of a line, and lines through zero agree by their angle."""
    monkeypatch.setattr(importlib.import_module("ftn_jax.streams.synthetic"), "_DRAWS", 3)
    with pytest.raises(InputError) as caught:
        synthetic(Context((5,)), NAMES, target="classification", block=8, scale=1e-4, frequency=8.0, test=10)
    assert "config.stream: no encoder in 3 draws for seed 5" in str(caught.value) and "\n" not in str(caught.value)


# --- seeds and keys --------------------------------------------------------------------------------------------


def test_a_seed_s_data_do_not_depend_on_the_other_seeds():
    alone = stream_of(seeds=(7,))
    for i in range(3):
        ours, theirs = seed_of(alone, i, 0), seed_of(stream_of(), i, 1)
        np.testing.assert_array_equal(ours.weights, theirs.weights)
        jax.tree.map(np.testing.assert_array_equal, ours.test(), theirs.test())
    for name, values in alone.facts.items():
        assert values == [stream_of().facts[name][1]]
    # Seeds and tasks differ in their blocks and in their test inputs.
    blocks = [np.asarray(seed_of(stream_of(), i, e).weights) for i in range(3) for e in range(2)]
    tests = [np.asarray(seed_of(stream_of(), i, e).test().x) for i in range(3) for e in range(2)]
    for drawn in (blocks, tests):
        assert len(np.unique(np.stack(drawn))) == sum(d.size for d in drawn)


def test_batches_are_functions_of_the_key_and_never_share_an_example():
    data = seed_of(stream_of(), 0, 0)
    keys = [jax.random.key(0), jax.random.key(1), data.key]
    drawn = [getattr(data, split)(key, 30) for split in ("batch", "support") for key in keys]
    again = [getattr(data, split)(key, 30) for split in ("batch", "support") for key in keys]
    jax.tree.map(np.testing.assert_array_equal, drawn, again)
    drawn.append(data.test())
    inputs = np.concatenate([batch.x for batch in drawn])
    assert len(np.unique(inputs)) == inputs.size == 2 * (6 * 30 + 40)
