"""PackNet: prune, retrain, freeze, against a loop that keeps its own lists of weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from ftn_jax.core.errors import InputError
from ftn_jax.methods import Given, build_method
from ftn_jax.training.evaluation import evaluate_row
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import INIT, TRAIN, Training, fold, init_state

STEPS, SEED, KEEP = 12, 3, 0.3
PRUNES = 7  # of twelve, from 0.6
POOL = toys.toy_neurons(dropout=0.0)
# Momentum and decay would move what has no gradient. After Adam's first steps magnitudes nearly tie.
OPTIMIZER = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
TRAINING = Training(OPTIMIZER, steps=STEPS, batch=8, support=8, chunk=4)
METHOD = build_method("packnet", toys.toy_configurer(), {"keep": KEEP, "prune_at": 0.6})


def layers(params):
    return [np.array(leaf, float) for leaf in (*params["w"], params["readout"])]


def by_hand(tasks):
    """(params, owners [-1: free]) after blocks in which frozen weights have no gradient, no update and no decay."""
    key = jax.random.key(SEED)
    params = POOL.init(fold(key, INIT, 0))
    owners = [np.full(layer.shape, -1) for layer in layers(params)]
    slope = jax.jit(jax.grad(lambda params, batch: POOL.loss(params, jnp.ones(16), batch)))
    for task, data in enumerate(tasks):
        state, trains = OPTIMIZER.init(params), [owner == -1 for owner in owners]
        for i in range(STEPS):
            if i == PRUNES:
                before = layers(params)
            moved, state = OPTIMIZER.update(slope(params, data.batch(fold(key, TRAIN, task, i, 0), 8)), state, params)
            new = []
            for layer, owner, train, move in zip(layers(params), owners, trains, layers(moved), strict=True):
                new.append(np.where(train, layer + move, layer))
                if i == PRUNES:  # by the magnitudes before this step; what is left makes it
                    free = np.flatnonzero(owner == -1)
                    magnitudes = np.abs(before[len(new) - 1].ravel()[free])
                    kept = free[np.argsort(-magnitudes)[: int(np.ceil(KEEP * len(free)))]]
                    pruned = np.setdiff1d(free, kept)
                    new[-1].ravel()[pruned] = 0
                    train.ravel()[pruned] = False
            biases = params["b"] if task else [b + m for b, m in zip(params["b"], moved["b"], strict=True)]
            *w, readout = (jnp.asarray(layer, jnp.float32) for layer in new)
            params = {"w": w, "b": biases, "readout": readout}
        for owner, train in zip(owners, trains, strict=True):
            owner[train] = task
    return params, owners


@pytest.fixture(scope="module")
def trained():
    stream = toys.toy_synthetic("classification", (SEED,))
    state, states = init_state(POOL, np.array([SEED], np.int32), method=METHOD, training=TRAINING), []
    rows, installed = [], []
    for task, data in enumerate(stream.tasks):
        state, selection = train_task(POOL, METHOD, TRAINING, state, data, task, axis=0)
        installed.append(selection)
        states.append(jax.tree.map(lambda leaf: np.array(leaf[0]), state._replace(keys=())))
        rows.append(evaluate_row(POOL, METHOD, state, stream.tasks, task, installed, support=8, axis=0))
    return [jax.tree.map(lambda leaf: leaf[0], data) for data in stream.tasks], states, rows


def test_training_is_pruning_and_retraining_by_hand(trained):
    tasks, states, _ = trained
    params, owners = by_hand(tasks)
    for found, wanted in zip(layers(states[-1].extra["owner"]), owners, strict=True):
        np.testing.assert_array_equal(found, wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), states[-1].params, params)


def test_each_task_keeps_its_share_of_the_free_weights_and_the_rest_is_zero(trained):
    _, states, _ = trained
    for owner, layer in zip(layers(states[-1].extra["owner"]), layers(states[-1].params), strict=True):
        free = owner.size
        for task in range(3):
            kept = int(np.ceil(KEEP * free))
            assert (owner == task).sum() == kept
            free -= kept
        assert np.all(layer[owner == -1] == 0) and np.all(layer[owner >= 0] != 0)


def test_nothing_is_forgotten_to_the_bit(trained):
    """With decay and momentum: what a task has keeps its bits, and so its scores."""
    _, states, rows = trained
    for before, after in itertools.pairwise(states):
        for old, new, owner in zip(*map(layers, (before.params, after.params, before.extra["owner"])), strict=True):
            np.testing.assert_array_equal(old[owner >= 0], new[owner >= 0])
        jax.tree.map(np.testing.assert_array_equal, before.params["b"], after.params["b"])
    for j in range(3):
        for row in rows[j:]:
            np.testing.assert_array_equal(row.stored["accuracy"][:, j], rows[j].stored["accuracy"][:, j])
            np.testing.assert_array_equal(row.reconfig["accuracy"][:, j], row.stored["accuracy"][:, j])


def test_a_task_answers_with_its_weights_and_those_before(trained):
    tasks, states, _ = trained
    params, extra = states[-1].params, states[-1].extra
    _, owners = by_hand(tasks)
    for task, data in enumerate(tasks):
        own = [np.where((owner >= 0) & (owner <= task), w, 0) for owner, w in zip(owners, layers(params), strict=True)]
        *w, readout = (jnp.asarray(layer, jnp.float32) for layer in own)
        wanted = POOL.loss({"w": w, "b": params["b"], "readout": readout}, jnp.ones(16), data.test())
        selection = METHOD.select(POOL, params, extra, Given(None, task, None, None))
        found = POOL.active_loss(METHOD.params_of(params, extra, selection), data.test())
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert METHOD.oracle


def test_other_pools_are_refused():
    with pytest.raises(InputError, match=r"packnet prunes small networks, expected pool\.name=neurons"):
        METHOD.adapt_pool(toys.toy_pool())
