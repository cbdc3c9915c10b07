"""The training loop: isolation bit for bit, keys, chunks, seeds, and a loss that is not finite."""

import functools
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import (
    SEEDS,
    VARIANTS,
    toy_configurer,
    toy_method,
    toy_neurons,
    toy_pool,
    toy_stream,
    toy_synthetic,
    toy_training,
)

from ftn_jax.core.errors import NonFiniteLoss
from ftn_jax.methods import Method, Selection, build_method
from ftn_jax.pools.base import Pool, gather
from ftn_jax.training import loop as trainer
from ftn_jax.training.loop import draw_support, train_task
from ftn_jax.training.state import INSTALL, TRAIN, fold, init_state, make_optimizer

POOL = toy_pool()
TASKS = toy_stream(3).tasks


def copied(tree):
    return jax.tree.map(np.asarray, tree)


def run(method, training, seeds, tasks=TASKS[:2], pool=POOL, axis=None):
    """The boundary states (params, opt_state) before and after each task, its masks, and losses [E, steps]."""
    state = init_state(pool, np.asarray(seeds, np.int32), method=method, training=training)
    boundaries, masks, losses = [copied(state[:2])], [], []
    for i, data in enumerate(tasks):
        chunks = []
        state, selection = train_task(
            pool, method, training, state, data, i,
            axis=axis, on_chunk=lambda step, c, masks, _, chunks=chunks: chunks.append(c),
        )  # fmt: skip
        boundaries.append(copied(state[:2]))
        masks.append(np.asarray(selection.active))
        losses.append(np.concatenate(chunks, axis=1))
    return boundaries, masks, losses


@flax.struct.dataclass
class Neurons(Pool):
    """A pool that compiles at once: y = sum_h m_h v_h tanh(w_h . x), fitted to the sum of sines of x [B, 3]."""

    size: int = flax.struct.field(pytree_node=False, default=16)

    def init(self, key):
        return {"w": jax.random.normal(key, (self.size, 3)), "v": jnp.ones((self.size, 1))}

    def example_losses(self, params, routing, batch, key=None):
        y = (jnp.tanh(batch @ params["w"].T) * routing[None]) @ params["v"][:, 0]
        return (y - jnp.sin(batch).sum(1)) ** 2, jnp.ones(len(batch))


@flax.struct.dataclass
class Normals:
    """Data for `Neurons`."""

    def batch(self, key, size):
        return jax.random.normal(key, (size, 3))


# --- Theorem D.1 -----------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam"},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "reset": False},
    "adamw, first moment in bfloat16": {
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "mu_dtype": "bfloat16",
        "reset": False,
    },
    "adam, dense rows": {"optimizer": "adam", "rows": "dense"},
    "adam, dense rows, moments kept": {"optimizer": "adam", "rows": "dense", "reset": False},
    "adamw, dense rows": {"optimizer": "adamw", "weight_decay": 0.1, "rows": "dense"},
}


@functools.cache
def fixed_blocks(setting, kind="neurons"):
    pool, tasks = {"neurons": (Neurons(), [Normals()] * 2), "lora": (POOL, TASKS[:2])}[kind]
    return run(toy_method("lora_fixed"), toy_training(**SETTINGS[setting]), [7], tasks, pool)


def rows_of(tree, active):
    return jax.tree.leaves(gather(tree, (0, active)))


def unchanged(boundaries, masks):
    """Whether task 1, on a disjoint block, leaves all components of task 0 and of no task bit for bit."""
    others = np.setdiff1d(np.arange(16), masks[1])
    assert set(masks[0][0]) < set(others)
    before, after = (rows_of(params, others) for params, _ in boundaries[1:])
    return all(map(np.array_equal, before, after))


@pytest.mark.parametrize(
    "setting, kind",
    [
        pytest.param("adamw", "lora", marks=pytest.mark.slow),  # with adam: contracts/test_methods.py
        ("adam", "neurons"),
        ("adamw", "neurons"),
        ("adamw, first moment in bfloat16", "neurons"),
        ("adam, dense rows", "neurons"),
    ],
)
def test_a_disjoint_block_leaves_earlier_components_bit_for_bit(setting, kind):
    """Theorem D.1; every leaf, weight decay and moments that are not initialised anew included."""
    boundaries, masks, losses = fixed_blocks(setting, kind)
    assert unchanged(boundaries, masks)
    for task, mask in enumerate(masks):  # and each component of each block was trained
        before, after = (rows_of(boundaries[i][0], mask[0]) for i in (task, task + 1))
        for left, right in zip(before, after, strict=True):
            assert np.all(np.any((left != right).reshape(len(left), -1), axis=1))
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("setting", ["adam, dense rows, moments kept", "adamw, dense rows"])
def test_zero_gradients_alone_do_not_isolate(setting):
    """Remark 2.2: momentum and decay move rows whose gradient is zero. The test above can fail."""
    boundaries, masks, _ = fixed_blocks(setting)
    assert not unchanged(boundaries, masks)


@pytest.mark.parametrize("rows", ["active", pytest.param("dense", marks=pytest.mark.slow)])
def test_moments_that_the_next_block_resets_end_with_a_block(rows):
    """Until then they are those of the rows that are trained: 2 seeds, of 16 components a mask of 4."""
    training, method = toy_training(steps=20, rows=rows), toy_method("fixedmask")
    state = init_state(POOL, np.array([3, 7], np.int32), method=method, training=training)
    assert state.opt_state is None
    half, _ = train_task(POOL, method, training, state, TASKS[0], 0, until=10)
    adam, *_ = half.opt_state
    count = {"active": 4, "dense": POOL.size}[rows]
    assert {leaf.shape[:2] for leaf in jax.tree.leaves((adam.mu, adam.nu))} == {(2, count)}
    np.testing.assert_array_equal(adam.count, [10, 10])
    state = init_state(POOL, np.array([3, 7], np.int32), method=method, training=training)
    assert train_task(POOL, method, training, state, TASKS[0], 0)[0].opt_state is None


@pytest.mark.parametrize("kind", [pytest.param("lora", marks=pytest.mark.slow), "neurons"])
def test_moments_of_earlier_components_are_kept_bit_for_bit(kind):
    boundaries, masks, _ = fixed_blocks("adamw", kind)
    (adam, *_), (later, *_) = boundaries[1][1], boundaries[2][1]
    before, after = (rows_of((state.mu, state.nu), masks[0][0]) for state in (adam, later))
    assert all(map(np.array_equal, before, after)) and all(map(np.any, before))
    assert (adam.count, later.count) == (60, 120)  # what is not per component goes on


def test_active_rows_train_as_dense_rows_do():
    """With fixed masks, Adam and fresh moments, to gather the rows changes the cost and nothing else."""
    (active, _, active_losses), (dense, _, dense_losses) = map(fixed_blocks, ("adam", "adam, dense rows"))
    np.testing.assert_allclose(active_losses, dense_losses, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), active[2][0], dense[2][0])


# --- the whole contract of a method ----------------------------------------------------------------------------


@jax.jit
def random_four(key):
    """Random masks, of either variant."""
    active = jnp.sort(jax.random.permutation(key, 16)[:4]).astype(jnp.int32)
    return Selection(active, jax.random.bernoulli(jax.random.fold_in(key, 1)).astype(jnp.int32))


def anchored(every, installs):
    """A method that uses every field: random masks, two gains, a pull towards the last boundary, v halved there."""
    return Method(
        select=lambda pool, params, extra, given: random_four(given.key),
        install=installs and (lambda pool, params, extra, given: random_four(jax.random.fold_in(given.key, 2))),
        init=lambda pool, params, key: (
            {"w": params["w"], "v": 2 * params["v"]},
            {"anchor": jnp.zeros((16, 3)), "gain": 1 + jax.random.uniform(key, (16, 2, 1))},
        ),
        realise=lambda params, extra, stage: {
            "w": params["w"] * extra["gain"][:, stage.variant],
            "v": params["v"],
        },
        penalty=lambda params, extra, stage: 0.1 * jnp.sum((params["w"] - extra["anchor"]) ** 2),
        finish=lambda pool, params, extra, task_data, selection, key: (
            params | {"v": params["v"] / 2},
            extra | {"anchor": params["w"]},
        ),
        every=every,
    )


def plain_loop(params, gain, *, seed, every, installs, tasks, steps, batch):
    """Two tasks of Adam on all rows, step by step, with masked losses: nothing is gathered."""
    optimizer, key, anchor, selections = optax.adam(0.02), jax.random.key(seed), jnp.zeros((16, 3)), []
    init, key_of = jax.jit(optimizer.init), jax.jit(fold)

    @jax.jit
    def step(params, state, anchor, selection, gain, key):
        mask, x = jnp.zeros(16).at[selection.active].set(1), Normals().batch(key, batch)
        gain = gain[:, selection.variant]

        def objective(params):
            realised = params | {"w": params["w"] * gain}
            pull = 0.1 * jnp.sum(mask[:, None] * (params["w"] - anchor) ** 2)
            return jnp.mean(Neurons().example_losses(realised, mask, x)[0]) + pull

        updates, state = optimizer.update(jax.grad(objective)(params), state)
        return optax.apply_updates(params, updates), state

    for task in range(tasks):
        state = init(params)
        selections.append([])
        selection = random_four(key_of(key, INSTALL, task, 1, *[2] * installs))
        for i in range(steps):
            if every == "batch":
                selection = random_four(key_of(key, TRAIN, task, i, 2))
            params, state = step(params, state, anchor, selection, gain, key_of(key, TRAIN, task, i, 0))
            selections[-1].append(selection)
        anchor = params["w"]
        params = params | {"v": params["v"] / 2}
    return params, anchor, selections


@pytest.mark.parametrize(
    "every, rows, installs",
    [("task", "active", False), ("task", "active", True), ("task", "dense", True), ("batch", "active", True)],
)
def test_training_is_a_plain_loop(every, rows, installs):
    """Rows that are gathered, in chunks, with extras, variants and penalties, against a loop that does none of it."""
    method, training, pool = anchored(every, installs), toy_training(steps=20, chunk=10, rows=rows), Neurons()
    state = init_state(pool, np.array([3, 7], np.int32), method=method, training=training)
    before, found, masks = copied((state.params, state.extra["gain"])), [], [[], []]
    np.testing.assert_array_equal(before[0]["v"], np.full((2, 16, 1), 2))
    for task in range(2):
        state, selection = train_task(
            pool, method, training, state, Normals(), task,
            on_chunk=lambda step, losses, chunk, _, task=task: masks[task].append(chunk),
        )  # fmt: skip
        found.append(copied(selection))
    for e, seed in enumerate((3, 7)):
        params, gain = jax.tree.map(lambda leaf, e=e: jnp.asarray(leaf[e]), before)
        wanted, anchor, selections = plain_loop(
            params, gain, seed=seed, every=every, installs=installs, tasks=2, steps=20, batch=8
        )
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, jax.tree.map(lambda leaf, e=e: leaf[e], state.params), wanted)
        close(state.extra["anchor"][e], anchor)
        for task in range(2):
            chex.assert_trees_all_equal(jax.tree.map(lambda leaf, e=e: leaf[e], found[task]), selections[task][-1])
            if every == "task":
                assert masks[task] == [None] * 2
            else:  # of each step, chunk by chunk
                path = [selection.active for selection in selections[task]]
                np.testing.assert_array_equal(np.concatenate(masks[task], axis=1)[e], path)


# --- seeds -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_seeds_together_equal_seeds_one_at_a_time(monkeypatch):
    """Vmapped as on an accelerator, against each seed alone."""
    seeds = [3, 7, 11]
    alone = [run(toy_method("lora_ftn"), toy_training(steps=10), [seed]) for seed in seeds]
    monkeypatch.setattr(trainer, "over_seeds", jax.vmap)
    # A method and an optimizer of their own, so that no program of before is reused.
    method = build_method("lora_ftn", toy_configurer(), VARIANTS["lora_ftn"])
    boundaries, masks, losses = run(method, toy_training.__wrapped__(steps=10), seeds)
    for e, (own_boundaries, own_masks, own_losses) in enumerate(alone):
        for task in range(2):
            np.testing.assert_array_equal(masks[task][e], own_masks[task][0])
            np.testing.assert_allclose(losses[task][e], own_losses[task][0], rtol=1e-4)
        for left, right in zip(jax.tree.leaves(boundaries[2][0]), jax.tree.leaves(own_boundaries[2][0]), strict=True):
            np.testing.assert_allclose(left[e], right[0], atol=2e-3)


@pytest.mark.slow  # on every Python, from end to end: runs/test_driver_points.py
def test_seeds_with_data_of_their_own_each_train_on_theirs():
    """Two seeds together against each alone with its part of the data."""
    method, training, pool = toy_method("fixedmask"), toy_training(), toy_neurons(dropout=0.1)
    tasks = toy_synthetic().tasks[:2]
    both = run(method, training, SEEDS, tasks, pool, axis=0)
    for e, seed in enumerate(SEEDS):
        own = jax.tree.map(lambda leaf, e=e: leaf[e : e + 1], tasks)
        alone = run(method, training, [seed], own, pool, axis=0)
        jax.tree.map(
            lambda together, single, e=e: np.testing.assert_allclose(together[e], single[0], rtol=1e-4, atol=1e-5),
            both,
            alone,
        )
    # The first seed's data makes something else of the second seed.
    swapped = run(method, training, SEEDS[1:], jax.tree.map(lambda leaf: leaf[:1], tasks), pool, axis=0)
    assert np.abs(swapped[2][0] - both[2][0][1:]).max() > 0.1


def test_the_first_task_s_mask_depends_on_the_seed_only():
    """B = 0: no gradient tells components apart, whatever the data."""
    method, training = toy_method("lora_ftn"), toy_training()

    def first_masks(seeds, data):
        state = init_state(POOL, np.asarray(seeds, np.int32), method=method, training=training)
        return np.asarray(trainer.install(POOL, method, state, data, 0, support=8, axis=None).active)

    masks = first_masks([3, 7], TASKS[0])
    np.testing.assert_array_equal(masks, first_masks([3, 7], TASKS[1]))
    np.testing.assert_array_equal(masks[::-1], first_masks([7, 3], TASKS[2]))
    assert tuple(masks[0]) != tuple(masks[1])  # that they are compact: test_configurer.py


# --- batches, chunks, faults -----------------------------------------------------------------------------------


@flax.struct.dataclass
class Echo(Pool):
    """A pool whose loss is the number that the batch holds: its losses show what was drawn."""

    size: int = flax.struct.field(pytree_node=False, default=4)

    def init(self, key):
        return {"w": jax.random.normal(key, (self.size, 3))}

    def active_loss(self, params_k, batch, key=None):
        return batch + 0 * params_k["w"].sum()


@flax.struct.dataclass
class Draws:
    """Data whose batches are a number drawn from the key; the batch of the key ``poison`` is not a number."""

    poison: jax.Array = flax.struct.field(default_factory=lambda: jax.random.key(12345))

    def batch(self, key, size):
        poisoned = jnp.all(jax.random.key_data(key) == jax.random.key_data(self.poison))
        return jnp.where(poisoned, jnp.nan, jax.random.uniform(key))


def drawn(seeds, *, tasks=(0, 1), training=None, data=None):
    """Losses [E, steps] of each task."""
    training = training or toy_training()
    method = toy_method("lora_naive")
    state = init_state(Echo(), np.asarray(seeds, np.int32), method=method, training=training)
    losses = {task: [] for task in tasks}
    for task in tasks:
        state, _ = train_task(
            Echo(), method, training, state, data or Draws(), task,
            on_chunk=lambda step, chunk, masks, _, task=task: losses[task].append(chunk),
        )  # fmt: skip
    return {task: np.concatenate(chunks, axis=1) for task, chunks in losses.items()}


def test_batches_are_a_function_of_seed_task_and_step():
    both = drawn([3, 7])
    assert len(np.unique(np.stack([both[0], both[1]]))) == 2 * 2 * 60  # no two batches alike
    np.testing.assert_array_equal(drawn([7, 3], tasks=(1,))[1], both[1][::-1])
    # Nor do they depend on what was learnt, or on the length of chunks.
    other = drawn([3, 7], training=toy_training("adamw", 0.1, 0.1, chunk=30))
    jax.tree.map(np.testing.assert_array_equal, other, both)


def test_the_length_of_a_chunk_changes_nothing():
    parts = fixed_blocks("adam")  # 20, 20, 20
    whole = run(toy_method("lora_fixed"), toy_training(chunk=40), [7], [Normals()] * 2, Neurons())  # 40, 20
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), whole, parts)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_seed_task_and_step():
    """The poisoned batch is that of the second seed, 7, in task 1 at step 9 (0-based: 8)."""
    data = Draws(poison=fold(jax.random.key(7), TRAIN, 1, 8, 0))
    with pytest.raises(NonFiniteLoss, match="loss is nan for seed 1 of task 1 at step 9") as error:
        drawn([3, 7], data=data)
    assert (error.value.seed, error.value.task, error.value.step) == (1, 1, 9)
    drawn([3, 7], tasks=(0, 2), data=data)  # nothing else meets it


def test_optimizers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="'sgd'"):
        make_optimizer("sgd", 0.1, 0.0)
    with pytest.raises(ValueError, match=r"weight_decay is 0\.1, but adam has no decay"):
        make_optimizer("adam", 0.1, 0.1)


def test_data_of_two_classes_with_equal_fields_are_told_apart():
    """JAX may take them for one another: see `ftn_jax.pools.base.kind_of`."""

    def task_class(value):
        @flax.struct.dataclass
        class Constant:
            x: jax.Array

            def batch(self, key, size):
                return jnp.full(size, value) + self.x

            support = batch

        return Constant

    keys = jax.random.split(jax.random.key(0), 1)
    for number in range(10):
        for value in (2.0 * number, 2.0 * number + 1):
            _, batch = draw_support(task_class(value)(jnp.zeros(())), keys, (), split="support", size=2, axis=None)
            np.testing.assert_array_equal(batch, [[value, value]])
