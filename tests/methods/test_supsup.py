"""SupSup against literal versions: what is masked, what is trained, what stays, and what is recovered."""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftn_jax.core.errors import InputError
from ftn_jax.methods import Configurer, Given, Stage, build_method
from ftn_jax.methods.supsup import top_half
from ftn_jax.pools.base import Pool
from ftn_jax.pools.neurons import NeuronPool, PointBatch
from ftn_jax.streams.synthetic import SyntheticTask
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import Training, init_state, make_optimizer

TASKS = 3
POOL = NeuronPool(size=3, layers=1, width=3, activation="tanh")  # layers of 6 and 3 weights
REGRESSION = POOL.replace(classes=0)


def method_of(signed=False, widen=1, *, name="supsup_weights", k=3):
    configurer = Configurer(k=k, steps=1, learning_rate=1.0, jitter=0.0, tasks=TASKS)
    return build_method(name, configurer, {"signed": signed, "widen": widen})


METHOD = method_of()
find = jax.jit(
    lambda pool, scores, extra, support: METHOD.select(pool, scores, extra, Given(support, None, None, None))
)
loss_of = jax.jit(lambda pool, params, batch: pool.active_loss(params, batch))


def top_half_by_hand(scores):
    """Each matrix by itself: sort by -|score| and, where these tie, by position; keep half, rounded up."""
    scores = np.asarray(scores)
    mask = np.zeros(scores.shape, bool)
    for place in np.ndindex(scores.shape[:-2]):
        flat = scores[place].ravel()
        order = sorted(range(len(flat)), key=lambda i: (-abs(flat[i]), i))
        mask[place].flat[order[: math.ceil(len(flat) / 2)]] = True
    return mask


def random_params(pool, seed=0):
    """With biases and a readout that matter."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(pool.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes)


def masked(params, masks):
    """The network under one mask for each weight matrix."""
    return params | {"w": [w * np.asarray(m, np.float32) for w, m in zip(params["w"], masks, strict=True)]}


def started(pool=POOL, method=METHOD, seed=0):
    """(drawn params, scores, extra) before the first task."""
    params = random_params(pool, seed)
    return params, *method.init(pool, params, jax.random.key(seed))


def inputs(rows, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((rows, 2), np.float32))


# --- the mask of the scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2, 5), (2, 3, 3), (4, 1, 1), (2, 8, 8), (2, 3, 5, 3)])
@pytest.mark.parametrize("change", [np.array, np.round, np.zeros_like], ids=["distinct", "ties", "all equal"])
def test_top_half(shape, change):
    scores = change(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    found = jax.jit(top_half)(scores)
    np.testing.assert_array_equal(found, top_half_by_hand(scores))
    assert np.all(found.sum((-2, -1)) == -(-shape[-1] * shape[-2] // 2))


def test_the_gradient_of_the_loss_is_that_of_the_mask_s_values():
    """In training: d loss / d score = d loss / d mask * sign(score), on or off."""
    params, scores, extra = started()
    batch = PointBatch(inputs(8, 2), jnp.asarray(np.arange(8) % 2, jnp.int32))
    selection = METHOD.install(POOL, scores, extra, Given(batch, None, None, None))

    def loss(scores):
        return POOL.active_loss(METHOD.realise(scores, extra, Stage(selection.variant, 1, 1)), batch)

    def loss_of_masks(masks):
        return POOL.active_loss(params | {"w": [w * m for w, m in zip(params["w"], masks, strict=True)]}, batch)

    masks = [jnp.asarray(top_half_by_hand(score), jnp.float32) for score in scores]
    both = jax.jit(lambda *args: (jax.value_and_grad(loss)(args[0]), jax.value_and_grad(loss_of_masks)(args[1])))
    (value, slope), (wanted, wanted_slope) = both(scores, masks)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for found, by_mask, score in zip(slope, wanted_slope, scores, strict=True):
        assert np.any(found[~top_half_by_hand(score)] != 0)
        np.testing.assert_allclose(found, by_mask * np.sign(score), rtol=1e-4, atol=1e-7)


# --- what is frozen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_the_network_is_frozen_as_it_was_drawn_or_at_signed_constants(signed):
    params, scores, extra = started(method=method_of(signed=signed))
    for drawn, frozen, score in zip(params["w"], extra["frozen"]["w"], scores, strict=True):
        fan_in = drawn.shape[1]
        wanted = np.sign(drawn) * np.float32(math.sqrt(2 / fan_in)) if signed else drawn
        np.testing.assert_array_equal(frozen, wanted)
        assert score.shape == drawn.shape and np.abs(score).max() <= fan_in**-0.5
    for name in ("b", "readout"):  # answer as they were drawn, and are not masked
        jax.tree.map(np.testing.assert_array_equal, extra["frozen"][name], params[name])
    assert len(scores) == len(params["w"])


def test_wide_is_wider_and_nothing_else():
    wide = method_of(widen=2).adapt_pool(POOL)
    assert wide == POOL.replace(width=6)
    assert method_of().adapt_pool(POOL) == POOL


@flax.struct.dataclass
class Numbers(Pool):
    """A pool of components that are not networks."""

    size: int = flax.struct.field(pytree_node=False, default=3)


def test_a_pool_of_anything_but_networks_is_refused():
    with pytest.raises(InputError, match=r"config\.methods: supsup .* expected pool\.name=neurons") as caught:
        METHOD.adapt_pool(Numbers())
    assert "\n" not in str(caught.value)


# --- training --------------------------------------------------------------------------------------------------


@functools.cache
def trained():
    """The states (scores, extra) of two seeds at each boundary of three tasks."""
    rng = np.random.default_rng(0)
    keys = jax.vmap(jax.random.key)(np.array([3, 7]))
    # Carried moments and decay are what would move weights that are not meant to move.
    optimizer = make_optimizer("adamw", 0.05, 0.1)
    training = Training(optimizer, steps=20, batch=8, support=4, rows="dense", reset=False, chunk=20)
    state = init_state(POOL, np.array([3, 7], np.int32), method=METHOD, training=training)
    states = [jax.tree.map(np.array, (state.params, state.extra))]
    for i in range(TASKS):
        weights = jnp.asarray(rng.normal(scale=0.6, size=(2, 2, 4)), jnp.float32)
        data = SyntheticTask(weights, keys, 2.0, True, 8)
        state, _ = train_task(POOL, METHOD, training, state, data, i, axis=0)
        states.append(jax.tree.map(np.array, (state.params, state.extra)))
    return states


def test_training_leaves_the_frozen_weights_bit_for_bit():
    (_, first), *_, (_, last) = trained()
    jax.tree.map(np.testing.assert_array_equal, last["frozen"], first["frozen"])
    assert all(map(np.any, first["frozen"]["w"]))


def test_a_stored_supermask_never_changes_and_each_task_leaves_one():
    for task, ((_, before), (_, after)) in enumerate(zip(trained(), trained()[1:], strict=False)):
        for old, new in zip(before["supermasks"], after["supermasks"], strict=True):
            assert not np.any(old[:, :, task:])
            np.testing.assert_array_equal(new[:, :, :task], old[:, :, :task])
            sizes = new[:, :, task].sum((-2, -1))
            assert np.all(sizes == math.ceil(new.shape[-2] * new.shape[-1] / 2))
    # They are learnt: tasks differ, and no supermask is that of the scores as drawn.
    scores, extra = trained()[0][0], trained()[-1][1]
    for score, masks in zip(scores, extra["supermasks"], strict=True):
        for task in range(TASKS):
            assert np.any(masks[:, :, task] != masks[:, :, (task + 1) % TASKS])
            assert np.any(masks[:, :, 0] != top_half_by_hand(score))


def test_what_is_stored_is_the_top_half_of_the_trained_scores_and_new_ones_are_drawn():
    _, scores, extra = started()
    finish = jax.jit(lambda scores, extra, key: METHOD.finish(POOL, scores, extra, None, None, key))
    for task in range(TASKS):
        fresh, after = finish(scores, extra, jax.random.key(10 + task))
        for score, new, old, masks in zip(scores, fresh, extra["supermasks"], after["supermasks"], strict=True):
            np.testing.assert_array_equal(masks[:, task], top_half_by_hand(score))
            others = np.delete(np.arange(TASKS), task)
            np.testing.assert_array_equal(masks[:, others], old[:, others])
            assert np.all(new != score) and np.abs(new).max() <= score.shape[1] ** -0.5
        scores, extra = fresh, after


# --- recovery --------------------------------------------------------------------------------------------------


def with_stored(count, seed=0):
    """(frozen params, scores, extra) with supermasks of ``count`` tasks, at random."""
    params, scores, extra = started(REGRESSION, seed=seed)
    rng = np.random.default_rng(seed + 1)
    masks = []
    for stored in extra["supermasks"]:
        random = rng.uniform(size=stored.shape)
        masks.append(jnp.asarray(top_half_by_hand(random) & (np.arange(TASKS) < count)[:, None, None]))
    return params, scores, extra | {"supermasks": masks}


def answers(params, masks, x):
    """What the masked networks say together, [B]."""
    (w1, w2), (b1, b2) = masked(params, masks)["w"], params["b"]
    z = [np.tanh(x @ w1[h] + b1[h][None]) @ w2[h] + b2[h][None] for h in range(3)]
    return sum(z[h][:, 0] * params["readout"][h, 0] for h in range(3))


@pytest.mark.parametrize("stored", [1, 2, 3])
def test_recovery_is_the_argmin_of_the_support_loss_over_the_stored_supermasks(stored):
    """Supports are labelled by each supermask in turn, and once by the mask of the scores, which is not stored."""
    params, scores, extra = with_stored(stored)
    masks = [[m[:, task] for m in extra["supermasks"]] for task in range(stored)]
    found = []
    for writer in [*masks, [top_half_by_hand(score) for score in scores]]:
        x = inputs(12, 5)
        noise = 0.1 * np.random.default_rng(6).standard_normal(12).astype(np.float32)
        support = PointBatch(x, answers(params, writer, x) + noise)
        losses = [float(loss_of(REGRESSION, masked(params, mask), support)) for mask in masks]
        selection = find(REGRESSION, scores, extra, support)
        assert selection.variant == losses.index(min(losses))
        np.testing.assert_array_equal(selection.active, np.arange(3))
        found.append(int(selection.variant))
        # And so it answers.
        answering = METHOD.realise(scores, extra, Stage(selection.variant, 1, 1))
        assert loss_of(REGRESSION, answering, support) == pytest.approx(min(losses), rel=1e-6)
    assert found[:-1] == list(range(stored))
    # The last support was the unstored mask's: no stored one fits it as well.
    own = loss_of(REGRESSION, masked(params, [top_half_by_hand(score) for score in scores]), support)
    assert own < min(losses) / 2


def test_before_any_is_stored_the_scores_answer():
    params, scores, extra = with_stored(0)
    support = PointBatch(inputs(12, 5), jnp.ones(12))
    answering = METHOD.realise(scores, extra, Stage(find(REGRESSION, scores, extra, support).variant, 1, 1))
    wanted = masked(params, [top_half_by_hand(score) for score in scores])
    jax.tree.map(np.testing.assert_array_equal, answering, wanted)


def test_a_task_is_trained_in_the_first_free_slot():
    for stored in range(TASKS):
        _, scores, extra = with_stored(stored)
        selection = METHOD.install(REGRESSION, scores, extra, Given(None, None, None, None))
        assert selection.variant == stored
        wanted = [top_half_by_hand(score) for score in scores]
        answering = METHOD.realise(scores, extra, Stage(selection.variant, 1, 1))
        jax.tree.map(np.testing.assert_array_equal, answering, masked(extra["frozen"], wanted))


# --- masks over components -------------------------------------------------------------------------------------

NETWORKS = NeuronPool(size=7, layers=1, width=3, activation="tanh")
K = 3


def best_by_hand(scores, k=K):
    """The k with the highest scores, the first of equal ones."""
    mask = np.zeros(len(scores), np.float32)
    mask[sorted(range(len(scores)), key=lambda h: (-scores[h], h))[:k]] = 1
    return mask


def literal_slots(params, scores, batch, steps, learning_rate):
    """SupSup over components in NumPy and float64: Adam on the scores by hand, the gradient of every gate.

    The logits are sum_h m_h z_h W_out[h]; with m the top k, d loss / d score_h is taken for d loss / d m_h.
    """
    (w1, w2), (b1, b2) = ([np.asarray(a, float) for a in params[name]] for name in ("w", "b"))
    x, y = np.asarray(batch.x, float), np.asarray(batch.y)
    hidden = np.tanh(np.einsum("bi,hij->hbj", x, w1) + b1[:, None])
    z = (np.einsum("hbj,hjo->hbo", hidden, w2) + b2[:, None])[..., 0]  # [H, B]
    readout = np.asarray(params["readout"], float)
    scores, first, second = np.asarray(scores, float), np.zeros(len(scores)), np.zeros(len(scores))
    for t in range(1, steps + 1):
        logits = np.einsum("hb,hc->bc", best_by_hand(scores)[:, None] * z, readout)
        share = np.exp(logits - logits.max(1, keepdims=True))
        share = share / share.sum(1, keepdims=True)
        error = (share - np.eye(2)[y]) / len(y)
        g = np.einsum("bc,hb,hc->h", error, z, readout)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        scores = scores - learning_rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return scores


@flax.struct.dataclass
class SameBatch:
    """A task that is one batch."""

    only: PointBatch

    def batch(self, key, size):
        return self.only

    support = batch

    def test(self):
        return self.only


def test_scores_of_components_are_trained_as_by_hand_and_nothing_else():
    method, training = method_of(name="supsup", k=K), Training(make_optimizer("adam", 0.003, 0.0), 30, 8, 8)
    pool = NETWORKS.replace(dropout=0.0)
    start = init_state(pool, np.array([5], np.int32), method=method, training=training)
    rng = np.random.default_rng(0)
    frozen = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), start.extra["frozen"])
    start = start._replace(extra=start.extra | {"frozen": frozen})
    batch = PointBatch(inputs(8, 3), jnp.asarray(np.arange(8) % 2, jnp.int32))
    drawn, params = np.array(start.params[0][0]), jax.tree.map(lambda leaf: np.array(leaf[0]), frozen)
    seen = []

    def on_chunk(step, losses, masks, snapshot):
        seen.append(np.array(snapshot()[0].params[0][0]))

    state, _ = train_task(pool, method, training, start, SameBatch(batch), 0, on_chunk=on_chunk)
    for steps, scores in zip((10, 20, 30), seen, strict=True):
        np.testing.assert_allclose(scores, literal_slots(params, drawn, batch, steps, 0.003), atol=1e-6)
    assert np.any(best_by_hand(drawn) != best_by_hand(seen[-1]))  # other components answer than at the start
    jax.tree.map(np.testing.assert_array_equal, state.extra["frozen"], frozen)
    np.testing.assert_array_equal(state.extra["supermasks"][0][0, :, 0], best_by_hand(seen[-1]) > 0)


def test_a_stored_mask_of_components_is_the_pool_under_that_mask():
    """Whatever the mask: the loss is the pool's under the same routing, and recovery is their argmin."""
    method = method_of(name="supsup", k=K)
    params = random_params(NETWORKS)
    scores, extra = method.init(NETWORKS, params, jax.random.key(1))
    masks = []
    for task in range(TASKS):
        masks.append(best_by_hand(scores[0]))
        scores, extra = method.finish(NETWORKS, scores, extra, None, None, jax.random.key(10 + task))
    assert len({tuple(mask) for mask in masks}) == TASKS
    batch = PointBatch(inputs(9, 4), jnp.asarray(np.arange(9) % 2, jnp.int32))
    routed = [float(NETWORKS.loss(params, mask, batch)) for mask in masks]
    answered = [
        float(NETWORKS.active_loss(method.realise(scores, extra, Stage(task, 1, 1)), batch)) for task in range(TASKS)
    ]
    np.testing.assert_allclose(answered, routed, rtol=1e-6)
    assert method.select(NETWORKS, scores, extra, Given(batch, None, None, None)).variant == np.argmin(routed)
