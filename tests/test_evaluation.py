"""The stored and the reconfig protocol: forgetting that is exactly nothing, and masks that are found again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import toy_method, toy_pool, toy_run, toy_stream, toy_training

from ftn_jax import metrics
from ftn_jax.evaluation import evaluate_row, recover
from ftn_jax.methods import Method, Selection
from ftn_jax.pools.base import gather
from ftn_jax.trainer import init_state

POOL = toy_pool()
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
            np.testing.assert_array_equal(row.recovered[j], [np.arange(4) + 4 * j] * 2)
        np.testing.assert_array_equal(run.installed[i], [np.arange(4) + 4 * i] * 2)


def test_naive_fine_tuning_forgets():
    """So that the test above could fail: the same stream does interfere."""
    rows = toy_run("lora_naive").rows
    for matrix in matrices(rows, "stored"):
        assert metrics.fm(matrix, "cross_entropy") > 2.0
    np.testing.assert_array_equal(matrices(rows, "stored")[:, 2], matrices(rows, "reconfig")[:, 2])


@pytest.mark.parametrize("name", ["lora_fixed", "lora_naive"])
def test_stored_is_nan_where_no_mask_exists_yet(name):
    rows = toy_run(name).rows
    for metric in ("cross_entropy", "exact_match"):
        stored = matrices(rows, "stored", metric)
        np.testing.assert_array_equal(np.isnan(stored), np.triu(np.ones((3, 3), bool), 1)[None].repeat(2, 0))
        assert np.isfinite(matrices(rows, "reconfig", metric)).all()


def test_scores_are_those_of_each_example_alone():
    """Cross-entropy per target token over the test set under the installed mask, and under the recovered one."""
    run = toy_run("lora_fixed")
    losses = jax.jit(lambda pool, params, active, batch: pool.example_losses(params, active, batch))
    for j, data in enumerate(STREAM.tasks):
        for e in range(2):
            params = jax.tree.map(lambda leaf, e=e: leaf[e], run.states[3].params)
            sums, counts = losses(POOL, params, run.installed[j][e], data.held_out)
            wanted = sum(map(float, sums)) / sum(map(float, counts))
            np.testing.assert_allclose(run.rows[2].stored["cross_entropy"][e, j], wanted, rtol=1e-5)
            np.testing.assert_allclose(run.rows[2].reconfig["cross_entropy"][e, j], wanted, rtol=1e-5)


def test_a_row_is_a_function_of_the_state():
    """Evaluated again, after all that came later, a row is the same bit for bit."""
    run = toy_run("lora_fixed")
    again = evaluate_row(POOL, run.method, run.states[2], STREAM.tasks, 1, run.installed[:2], support=8)
    jax.tree.map(np.testing.assert_array_equal, again, run.rows[1])


def test_support_is_keyed_by_seed_row_and_column_and_neither_trains_nor_tests():
    shown = Method(lambda pool, params, extra, support, task, key: Selection(support, jnp.zeros(1, jnp.int32)))
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
        batch = recover(POOL, state, data, row, column, method=shown, support=8, axis=None).params_k
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
        found = searched.select(POOL, params, {}, support, None, jax.random.fold_in(key, 1))
        candidates = found.params_k, gather(params, blocks[task]), gather(params, blocks[1 - task])
        return [POOL.active_loss(rows, support) for rows in candidates]

    for e in range(2):
        params = jax.tree.map(lambda leaf, e=e: leaf[e], params_of_seeds)
        for task in range(2):
            for draw in range(3):
                recovered, stored, other = losses(params, STREAM.tasks[task], task, jax.random.key(draw))
                assert recovered <= 1.05 * stored
                assert other > 5 * stored  # the tasks do conflict
