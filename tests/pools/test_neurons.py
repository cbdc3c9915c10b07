"""The pool of small networks against loops over single ones, and its isolation bit for bit (Theorem 2.1)."""

import functools
import itertools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftn_jax.core import metrics
from ftn_jax.methods import Configurer, Method, Selection, build_method
from ftn_jax.pools.base import gather
from ftn_jax.pools.neurons import ACTIVATIONS, INITS, NeuronPool, PointBatch, _each
from ftn_jax.streams.synthetic import SyntheticTask
from ftn_jax.training.evaluation import evaluate_row
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import Training, init_state, make_optimizer

# Methods of the pool at hand, compiled once for all tests.
init_of = jax.jit(lambda pool, key: pool.init(key))
losses_of = jax.jit(lambda pool, *args: pool.example_losses(*args))
loss_of = jax.jit(lambda pool, *args: pool.loss(*args))
active_loss_of = jax.jit(lambda pool, *args: pool.active_loss(*args))
mask_loss_of = jax.jit(lambda pool, params, batch, mask: pool.mask_loss(params, batch)(mask))
metrics_of = jax.jit(lambda pool, *args: pool.metrics(*args))


@jax.jit
def everything(pool, params, mask, active, batch):
    """What a pool says under a relaxed mask and of active components, as one program."""
    rows = gather(params, active)
    return {
        "losses": pool.example_losses(params, mask, batch),
        "loss": pool.loss(params, mask, batch),
        "mask_loss": pool.mask_loss(params, batch)(mask),
        "losses of active": pool.example_losses(params, active, batch),
        "active_loss": pool.active_loss(rows, batch),
        "metrics": pool.metrics(rows, batch),
    }


# --- a loop over single networks -------------------------------------------------------------------------------

BY_HAND = {
    "gelu": lambda v: 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    "relu": lambda v: np.maximum(v, 0),
    "silu": lambda v: v / (1 + np.exp(-v)),
    "tanh": np.tanh,
}


def one_network(w, b, x, activation):
    """The scalar output of one network for one input."""
    hidden = x
    for weights, biases in zip(w[:-1], b[:-1], strict=True):
        hidden = BY_HAND[activation](np.array([hidden @ column for column in weights.T]) + biases)
    return hidden @ w[-1][:, 0] + b[-1][0]


def answers(pool, params, masks, x):
    """y [B, C] in float64, a network and an example at a time; ``masks`` [B, H]."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    y = np.zeros((len(x), params["readout"].shape[1]))
    for row in range(len(x)):
        for h in range(pool.size):
            z = one_network([w[h] for w in params["w"]], [b[h] for b in params["b"]], x[row], pool.activation)
            y[row] += masks[row, h] * z * params["readout"][h]
    return y


def losses_by_hand(pool, y, target):
    if pool.classes:
        return np.array([math.log(sum(map(math.exp, row))) - row[c] for row, c in zip(y, target, strict=True)])
    return (y[:, 0] - target) ** 2


def problem(classes, activation="tanh", size=7, rows=6):
    """A pool of three inputs, two hidden layers of five; params with biases that matter; a batch."""
    rng = np.random.default_rng(classes)
    pool = NeuronPool(size=size, inputs=3, layers=2, width=5, classes=classes, activation=activation)
    shapes = jax.eval_shape(pool.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.7 * rng.standard_normal(leaf.shape), jnp.float32), shapes)
    y = rng.integers(0, classes, rows, np.int32) if classes else rng.standard_normal(rows, np.float32)
    return pool, params, PointBatch(jnp.asarray(rng.standard_normal((rows, 3), np.float32)), jnp.asarray(y))


close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [3, 0], ids=["classification", "regression"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_pool_is_a_loop_over_single_networks(activation, classes):
    """Every loss, for a relaxed mask and for active components, and what is reported."""
    pool, params, batch = problem(classes, activation)
    relaxed = np.random.default_rng(1).uniform(0, 1, 7).astype(np.float32)
    wanted = losses_by_hand(pool, answers(pool, params, np.tile(relaxed, (6, 1)), batch.x), batch.y)
    active = np.array([0, 3, 4, 6], np.int32)
    found = everything(pool, params, relaxed, active, batch)
    close(found["losses"][0], wanted)
    np.testing.assert_array_equal(found["losses"][1], np.ones(6))
    close((found["loss"], found["mask_loss"]), [wanted.mean()] * 2)

    y = answers(pool, params, np.tile(np.isin(np.arange(7), active), (6, 1)), batch.x)
    wanted = losses_by_hand(pool, y, batch.y)
    close(found["losses of active"][0], wanted)
    close(found["active_loss"], wanted.mean())
    if classes:
        assert found["metrics"] == {"accuracy": (sum(y.argmax(1) == batch.y), 6)}
    else:
        assert set(found["metrics"]) == {"mse"}
        close(found["metrics"]["mse"], (wanted.sum(), 6))


@pytest.mark.parametrize("classes", [3, 0], ids=["classification", "regression"])
def test_each_row_may_have_its_own_mask_or_components(classes):
    pool, params, batch = problem(classes)
    rng = np.random.default_rng(2)
    masks = rng.uniform(0, 1, (6, 7)).astype(np.float32)
    close(
        losses_of(pool, params, masks, batch)[0], losses_by_hand(pool, answers(pool, params, masks, batch.x), batch.y)
    )
    active = np.stack([np.sort(rng.permutation(7)[:3]) for _ in range(6)]).astype(np.int32)
    binary = np.stack([np.isin(np.arange(7), row) for row in active])
    wanted = losses_by_hand(pool, answers(pool, params, binary, batch.x), batch.y)
    close(losses_of(pool, params, active, batch)[0], wanted)
    close(loss_of(pool, params, active, batch), wanted.mean())


STD = {  # of a weight, from fan-in and fan-out
    "he_normal": lambda i, o: math.sqrt(2 / i),
    "lecun_normal": lambda i, o: math.sqrt(1 / i),
    "xavier_normal": lambda i, o: math.sqrt(2 / (i + o)),
}


@pytest.mark.parametrize("weights", INITS)
def test_weights_are_drawn_with_the_std_of_their_fans(weights):
    pool = NeuronPool(size=900, inputs=3, layers=2, width=6, weights=weights)
    params = jax.tree.map(np.asarray, pool.init(jax.random.key(0)))  # not compiled: the draws are the same programs
    fans = [(3, 6), (6, 6), (6, 1)]
    assert [w.shape for w in params["w"]] == [(900, *fan) for fan in fans]
    for w, fan in zip(params["w"], fans, strict=True):
        # A sample's std is off by a share of 1 / sqrt(2 n).
        assert np.std(w) == pytest.approx(STD[weights](*fan), rel=4 / math.sqrt(2 * w.size))
        assert abs(np.mean(w)) < 4 * np.std(w) / math.sqrt(w.size)
        assert np.mean(np.abs(w) < np.std(w)) == pytest.approx(0.683, abs=4 * 0.466 / math.sqrt(w.size))
    assert [b.shape for b in params["b"]] == [(900, 6), (900, 6), (900, 1)]
    assert not any(map(np.any, params["b"]))
    # The readout's fan-in is H.
    assert params["readout"].shape == (900, 2)
    assert np.abs(params["readout"]).max() == pytest.approx(900**-0.5, rel=0.01)
    assert np.std(params["readout"]) == pytest.approx(900**-0.5 / math.sqrt(3), rel=0.05)


def test_the_readout_has_no_bias():
    """Without components the answer is nothing: every class is as likely, every value is zero."""
    for classes, nothing in ((3, lambda y: np.full(6, math.log(3))), (0, lambda y: y**2)):
        pool, params, batch = problem(classes)
        close(losses_of(pool, params, np.zeros(7, np.float32), batch)[0], nothing(np.asarray(batch.y)))


@pytest.mark.parametrize("size", [5, 16, 37])
def test_blocks_of_components_are_a_plain_vmap(size):
    """On the CPU, where the last block may be smaller; gradients, which compute a block again, included."""
    rng = np.random.default_rng(size)
    weights = jnp.asarray(rng.standard_normal((size, 3, 4)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((6, 3)), jnp.float32)
    pull = jnp.asarray(rng.standard_normal((size, 6)), jnp.float32)

    def network(w, x):
        return jnp.tanh(x @ w).sum(1)

    def values_and_slopes(map_networks):
        return jax.value_and_grad(lambda w: (map_networks(w) * pull).sum())(weights), map_networks(weights)

    blocks = values_and_slopes(lambda w: _each(network, w, x))
    plain = values_and_slopes(lambda w: jax.vmap(network, (0, None))(w, x))
    jax.tree.map(close, blocks, plain)


# --- dropout ---------------------------------------------------------------------------------------------------


def ones(size, rows, dropout):
    """A pool whose networks all say 1, read by 1, and targets of zero: a loss is the square of the sum of the z."""
    pool = NeuronPool(size=size, layers=1, width=2, classes=0, dropout=dropout)
    params = jax.tree.map(jnp.zeros_like, init_of(pool, jax.random.key(0)))
    params["b"][-1], params["readout"] = jnp.ones((size, 1)), jnp.ones((size, 1))
    return pool, params, PointBatch(jnp.zeros((rows, 2)), jnp.zeros(rows))


@pytest.mark.parametrize("routing", ["mask", "masks", "active", "active of each row"])
def test_a_key_zeroes_outputs_and_scales_the_rest(routing):
    """Of three active components 0 to 3 are left, binomially, each as 1 / (1 - p)."""
    rows, p = 4000, 0.3
    pool, params, batch = ones(5, rows, p)
    active = np.array([0, 2, 3], np.int32)
    mask = np.isin(np.arange(5), active).astype(np.float32)
    route = {
        "mask": mask,
        "masks": np.tile(mask, (rows, 1)),
        "active": active,
        "active of each row": np.tile(active, (rows, 1)),
    }[routing]
    losses = losses_of(pool, params, route, batch, jax.random.key(1))[0]
    left = np.sqrt(losses) * (1 - p)
    close(left, np.round(left))
    for n in range(4):
        share = math.comb(3, n) * (1 - p) ** n * p ** (3 - n)
        assert np.mean(np.round(left) == n) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / rows))
    np.testing.assert_array_equal(losses, losses_of(pool, params, route, batch, jax.random.key(1))[0])
    assert np.any(losses != losses_of(pool, params, route, batch, jax.random.key(2))[0])


def test_dropout_of_gathered_components():
    """The mean of (n / (1 - p))^2 for n of three is 9 + 3 p / (1 - p)."""
    rows, p = 4000, 0.3
    pool, params, batch = ones(3, rows, p)
    squares = np.array([(n / (1 - p)) ** 2 for n in range(4)])
    shares = np.array([math.comb(3, n) * (1 - p) ** n * p ** (3 - n) for n in range(4)])
    wanted = 9 + 3 * p / (1 - p)
    error = math.sqrt((squares**2 @ shares - wanted**2) / rows)
    assert active_loss_of(pool, params, batch, jax.random.key(1)) == pytest.approx(wanted, abs=4 * error)


def test_without_a_key_nothing_is_dropped():
    pool, params, batch = ones(3, 50, 0.3)
    np.testing.assert_array_equal(losses_of(pool, params, np.ones(3, np.float32), batch)[0], np.full(50, 9.0))
    assert active_loss_of(pool, params, batch) == mask_loss_of(pool, params, batch, np.ones(3, np.float32)) == 9
    assert metrics_of(pool, params, batch)["mse"] == (9 * 50, 50)
    assert active_loss_of(pool.replace(dropout=0.0), params, batch, jax.random.key(1)) == 9


# --- Theorem 2.1 and Remark 2.2 --------------------------------------------------------------------------------

SEEDS = np.array([3, 7], np.int32)
K, TASKS = 4, 3
POOL = NeuronPool(size=14, layers=1, width=4)  # three blocks of four, and two components that no task owns
FIXED = build_method("fixedmask", Configurer(k=K, steps=1, learning_rate=1.0, jitter=0.0, tasks=TASKS), {})


@functools.cache
def stream(classify):
    """Three tasks of hidden blocks of four features, for each seed its own."""
    rng = np.random.default_rng(0)
    keys = jax.vmap(jax.random.key)(SEEDS)
    return [
        SyntheticTask(jnp.asarray(rng.normal(scale=0.6, size=(2, 2, 4)), jnp.float32), keys, 2.0, classify, 1024)
        for _ in range(TASKS)
    ]


def trained(pool, method, classify, *, optimizer, decay=0.0, rows, reset):
    """(params at each boundary, masks of each task, rows of R) of 60 steps a task."""
    optimizer = make_optimizer(optimizer, 0.03, decay)
    training = Training(optimizer, steps=60, batch=32, support=8, rows=rows, reset=reset, chunk=60)
    state = init_state(pool, SEEDS, method=method, training=training)
    boundaries, installed, matrix = [jax.tree.map(np.array, state.params)], [], []
    for i, data in enumerate(stream(classify)):
        state, selection = train_task(pool, method, training, state, data, i, axis=0)
        installed.append(selection)
        boundaries.append(jax.tree.map(np.array, state.params))
        matrix.append(evaluate_row(pool, method, state, stream(classify), i, installed, support=8, axis=0))
    return boundaries, [np.asarray(s.active) for s in installed], matrix


PRECAUTIONS: dict[str, dict[str, Any]] = {
    "dense rows, adam, fresh moments": {"optimizer": "adam", "rows": "dense", "reset": True},
    "active rows, adamw with decay, moments carried": {
        "optimizer": "adamw",
        "decay": 0.1,
        "rows": "active",
        "reset": False,
    },
}
LEAKS: dict[str, dict[str, Any]] = {
    "dense rows, adamw with decay": {"optimizer": "adamw", "decay": 0.3, "rows": "dense", "reset": True},
    "dense rows, moments carried": {"optimizer": "adam", "rows": "dense", "reset": False},
}


@functools.cache
def fixed_blocks(setting, classify=True):
    pool = POOL if classify else POOL.replace(classes=0)
    return trained(pool, FIXED, classify, **(PRECAUTIONS | LEAKS)[setting])


def forgetting(rows, protocol, classify=True):
    """[E], FM in classification and the rise in squared error in regression."""
    metric = "accuracy" if classify else "mse"
    matrices = np.stack([getattr(row, protocol)[metric] for row in rows], axis=1)
    return [(metrics.fm if classify else metrics.fm_rise)(matrix, metric) for matrix in matrices]


@pytest.mark.parametrize("setting", PRECAUTIONS)
def test_a_block_leaves_every_other_component_bit_for_bit(setting):
    """Theorem 2.1: each leaf, the readout's columns included; and all of a block's own components train."""
    boundaries, masks, _ = fixed_blocks(setting)
    for task, (before, after) in enumerate(itertools.pairwise(boundaries)):
        np.testing.assert_array_equal(masks[task], [np.arange(task * K, (task + 1) * K)] * 2)
        changed = jax.tree.map(lambda a, b: (a != b).reshape(2, 14, -1).any(2), before, after)
        for leaf in jax.tree.leaves(changed):
            np.testing.assert_array_equal(leaf, [np.isin(np.arange(14), masks[task][0])] * 2)


@pytest.mark.parametrize("setting", LEAKS)
def test_zero_gradients_alone_do_not_isolate(setting):
    """So that the test above can fail: decay and momentum move what has no gradient."""
    boundaries, masks, _ = fixed_blocks(setting)
    for before, after in zip(jax.tree.leaves(boundaries[1]), jax.tree.leaves(boundaries[2]), strict=True):
        assert np.any(before[:, masks[0][0]] != after[:, masks[0][0]])


@pytest.mark.parametrize(
    "setting, classify",
    [
        ("dense rows, adam, fresh moments", True),
        pytest.param("dense rows, adam, fresh moments", False, marks=pytest.mark.slow),
        ("active rows, adamw with decay, moments carried", True),
    ],
)
def test_with_the_precautions_nothing_is_forgotten(setting, classify):
    rows = fixed_blocks(setting, classify)[2]
    for protocol in ("stored", "reconfig"):
        assert forgetting(rows, protocol, classify) == [0.0, 0.0]
    for name, values in rows[-1].reconfig.items():  # and there was something to forget
        assert values.mean() > 0.75 if name == "accuracy" else values.mean() < 0.12  # half of the targets' variance


@pytest.mark.parametrize("setting", LEAKS)
def test_decay_or_carried_moments_make_fixed_masks_forget(setting):
    """Remark 2.2."""
    rows = fixed_blocks(setting)[2]
    for protocol in ("stored", "reconfig"):
        assert np.mean(forgetting(rows, protocol)) > 0.005


@flax.struct.dataclass
class SharedBias(NeuronPool):
    """With a bias of the readout that no mask gates: the sum of a part for each component."""

    gain: Any = 1.0  # of the bias; an array, so that there is one program with it and without

    def init(self, key):
        return super().init(key) | {"bias": jnp.zeros((self.size, self.classes))}

    def active_loss(self, params_k, batch, key=None):
        return self._losses(self._biased(params_k, batch.x, key), batch.y).mean()

    def metrics(self, params_k, batch):
        hits = self._biased(params_k, batch.x, None).argmax(1) == batch.y
        return {"accuracy": (hits.sum().astype(jnp.float32), jnp.float32(len(batch.x)))}

    def _biased(self, params, x, key):
        return (
            self._read(self._outputs(params, x), params["readout"], None, key) + self.gain * params["bias"].sum(0)[None]
        )


def gated_blocks(rows, extra, stage):
    """The readout of a task's own block; the others' columns are zero."""
    own = jnp.arange(len(rows["readout"])) // K == stage.variant
    return rows | {"readout": rows["readout"] * own[:, None]}


def test_a_readout_bias_makes_fixed_masks_forget():
    """Remark 2.2 by appendix C. What is gathered can't share a bias, so here masks multiply, and every row trains."""
    method = Method(
        lambda pool, params, extra, given: Selection(jnp.arange(pool.size), jnp.int32(given.task)),
        realise=gated_blocks,
        oracle=True,
    )
    precautions = PRECAUTIONS["dense rows, adam, fresh moments"]
    pool = SharedBias(size=14, layers=1, width=4)
    *_, biased = trained(pool, method, True, **precautions)
    *_, plain = trained(pool.replace(gain=0.0), method, True, **precautions)
    for protocol in ("stored", "reconfig"):
        assert forgetting(plain, protocol) == [0.0, 0.0]
        assert np.mean(forgetting(biased, protocol)) > 0.005
