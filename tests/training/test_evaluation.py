"""The stored and the reconfig protocol: forgetting that is exactly nothing, and masks that are found again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SEEDS, toy_method, toy_neurons, toy_pool, toy_run, toy_stream, toy_synthetic, toy_training

from ftn_jax.core import metrics
from ftn_jax.methods import Given, Method, Selection
from ftn_jax.pools.base import gather
from ftn_jax.training.evaluation import evaluate_row, recover, score_untrained
from ftn_jax.training.state import init_state

POOL = toy_pool()
losses_of = jax.jit(lambda pool, params, active, batch: pool.example_losses(params, active, batch))
STREAM = toy_stream(3)


def matrices(rows, protocol, metric="cross_entropy"):
    """R [E, N, N]."""
    return np.stack([getattr(row, protocol)[metric] for row in rows], axis=1)


def test_an_oracle_s_forgetting_is_exactly_nothing_under_both_protocols():
    run = toy_run("lora_fixed")
    for protocol in ("stored", "reconfig"):
        for matrix in matrices(run.rows, protocol):
            assert metrics.fm(matrix, "cross_entropy") == 0.0
            assert metrics.bwt(matrix, "cross_entropy") == 0.0
            for j in range(3):  # bit for bit, at every row
                assert len(set(matrix[j:, j])) == 1
            assert matrix[2].mean() < 1.0  # and it learnt
    for i, row in enumerate(run.rows):
        for j in range(3):
            np.testing.assert_array_equal(row.recovered[j].active, [np.arange(4) + 4 * j] * 2)
        np.testing.assert_array_equal(run.installed[i].active, [np.arange(4) + 4 * i] * 2)


def test_naive_fine_tuning_forgets():
    """So that the test above could fail: the same stream does interfere."""
    rows = toy_run("lora_naive").rows
    for matrix in matrices(rows, "stored"):
        assert metrics.fm(matrix, "cross_entropy") > 2.0
    np.testing.assert_array_equal(matrices(rows, "stored")[:, 2], matrices(rows, "reconfig")[:, 2])


@pytest.mark.parametrize(
    "name, pool_name, metric",
    [
        ("lora_fixed", "lora", "cross_entropy"),
        pytest.param("fixedmask", "regression", "mse", marks=pytest.mark.slow),
        pytest.param("ftn_slow", "regression", "mse", marks=pytest.mark.slow),
    ],
)
def test_scores_are_those_of_each_example_alone(name, pool_name, metric):
    """The loss over the test set, each seed's own where it has one, under the installed mask and the recovered one."""
    run = toy_run(name, pool_name)
    for j, data in enumerate(run.stream.tasks):
        for e in range(2):
            params = jax.tree.map(lambda leaf, e=e: leaf[e], run.states[3].params)
            own = data if run.stream.axis is None else jax.tree.map(lambda leaf, e=e: leaf[e], data)
            for protocol, selections in (("stored", run.installed), ("reconfig", run.rows[2].recovered)):
                sums, counts = losses_of(run.pool, params, selections[j].active[e], own.test())
                wanted = sum(map(float, sums)) / sum(map(float, counts))
                np.testing.assert_allclose(getattr(run.rows[2], protocol)[metric][e, j], wanted, rtol=1e-5)


@pytest.mark.parametrize("name, pool_name", [("lora_fixed", "lora"), ("ftn_slow", "regression")])
def test_the_untrained_model_is_scored_without_components(name, pool_name):
    """Whatever has been trained: the loss of each test example under no component, summed one by one."""
    run = toy_run(name, pool_name)
    for state in (run.states[0], run.states[3]):
        tasks, axis = run.stream.tasks, run.stream.axis
        scores = score_untrained(run.pool, run.method, state, tasks, run.installed[0], axis=axis)
        for j, data in enumerate(tasks):
            for e in range(2):
                params = jax.tree.map(lambda leaf, e=e, state=state: leaf[e], state.params)
                own = data if run.stream.axis is None else jax.tree.map(lambda leaf, e=e: leaf[e], data)
                sums, counts = losses_of(run.pool, params, np.zeros(0, np.int32), own.test())
                found = scores[run.stream.metric][e, j]
                np.testing.assert_allclose(found, np.sum(sums) / np.sum(counts), rtol=1e-5)


def test_without_components_every_point_is_of_the_first_class():
    pool, method, tasks = toy_neurons(), toy_method("fixedmask"), toy_synthetic().tasks
    state = init_state(pool, np.array(SEEDS, np.int32), method=method, training=toy_training())
    mask = Selection(jnp.tile(jnp.arange(4), (2, 1)), jnp.zeros(2, jnp.int32))
    found = score_untrained(pool, method, state, tasks, mask, axis=0)
    for j, data in enumerate(tasks):
        for e in range(2):
            own = jax.tree.map(lambda leaf, e=e: leaf[e], data)
            np.testing.assert_allclose(found["accuracy"][e, j], np.mean(own.test().y == 0))


@pytest.mark.slow
def test_a_variant_answers_with_its_own_params():
    """SupSup: each task's score is that of the supermask that it left, whatever the scores are by then."""
    run = toy_run("supsup_weights", "neurons")
    hits = jax.jit(lambda pool, params, batch: pool.metrics(params, batch)["accuracy"][0])
    for j, data in enumerate(run.stream.tasks):
        for e in range(2):
            extra, own = jax.tree.map(lambda leaf, e=e: leaf[e], (run.states[3].extra, data))
            for protocol, selections in (("stored", run.installed), ("reconfig", run.rows[2].recovered)):
                variant = int(selections[j].variant[e])
                pairs = zip(extra["frozen"]["w"], extra["supermasks"], strict=True)
                masked = extra["frozen"] | {"w": [w * masks[:, variant] for w, masks in pairs]}
                correct = hits(run.pool, masked, own.test())
                np.testing.assert_allclose(getattr(run.rows[2], protocol)["accuracy"][e, j], correct / 64, rtol=1e-6)


def test_a_row_is_a_function_of_the_state():
    """Evaluated again, after all that came later, a row is the same bit for bit."""
    run = toy_run("lora_fixed")
    again = evaluate_row(POOL, run.method, run.states[2], STREAM.tasks, 1, run.installed[:2], support=8)
    jax.tree.map(np.testing.assert_array_equal, again, run.rows[1])


def test_support_is_keyed_by_seed_row_and_column_and_neither_trains_nor_tests():
    shown = Method(lambda pool, params, extra, given: Selection(jnp.zeros(1, jnp.int32), given.support))
    state = init_state(POOL, np.array([3, 7], np.int32), method=shown, training=toy_training())
    data = STREAM.tasks[0]
    n = [len(split.tokens) for split in (data.train, data.recovery, data.held_out)]
    # Every example's first token says which one it is.
    numbers = np.split(np.arange(sum(n)), np.cumsum(n)[:2])
    train, recovery, held_out = (
        split._replace(tokens=np.repeat(ids[:, None], 6, axis=1))
        for split, ids in zip((data.train, data.recovery, data.held_out), numbers, strict=True)
    )
    data = data.replace(train=train, recovery=recovery, held_out=held_out)

    def drawn(row, column, state=state):
        batch = recover(POOL, shown, state, data, row, column, support=8, axis=None).variant
        return np.asarray(batch.tokens)[:, :, 0]

    batches = [seed for row in range(3) for column in range(3) for seed in drawn(row, column)]
    for batch in batches:
        assert len(set(batch)) == 8 and set(batch) <= set(numbers[1])
    assert len({tuple(batch) for batch in batches}) == 18
    np.testing.assert_array_equal(drawn(1, 2), batches[10:12])
    other = state._replace(params=jax.tree.map(jnp.ones_like, state.params))
    np.testing.assert_array_equal(drawn(1, 2, other), batches[10:12])  # whatever was learnt


def test_recovery_finds_an_installed_adapter():
    """Two tasks in disjoint rows of the torus; a fresh support batch of each finds its own again."""
    params_of_seeds, searched = toy_run("lora_fixed").states[2].params, toy_method("lora_ftn")
    blocks = jnp.arange(8).reshape(2, 4)

    @jax.jit
    def losses(params, data, task, key):
        support = data.support(jax.random.fold_in(key, 0), 8)
        found = searched.select(POOL, params, {}, Given(support, None, None, jax.random.fold_in(key, 1)))
        candidates = found.active, blocks[task], blocks[1 - task]
        return [POOL.active_loss(gather(params, active), support) for active in candidates]

    for e in range(2):
        params = jax.tree.map(lambda leaf, e=e: leaf[e], params_of_seeds)
        for task in range(2):
            for draw in range(3):
                recovered, stored, other = losses(params, STREAM.tasks[task], task, jax.random.key(draw))
                assert recovered <= 1.05 * stored
                assert other > 5 * stored  # the tasks do conflict
