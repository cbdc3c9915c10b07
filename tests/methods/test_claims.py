"""The claim that fits a support batch best among forty: scores against differences, choices against comparing all."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from ftn_jax.core.shortlist import LENGTH
from ftn_jax.methods import Selection
from ftn_jax.methods.claims import best, first_order_scores
from ftn_jax.models import decoder
from ftn_jax.models.tokens import Example
from ftn_jax.pools.base import gather, scatter
from ftn_jax.streams.text.task import pad_examples
from ftn_jax.testing import counted_compilations

TASKS, ROOM, K, SIZE = 40, 45, 2, 100
POOL = toys.toy_pool(size=SIZE)

listed = jax.jit(functools.partial(best, shortlist=True))
full = jax.jit(functools.partial(best, shortlist=False))
scored = jax.jit(first_order_scores)
loss_of = jax.jit(POOL.loss)


PAIRS = list(itertools.permutations((3, 11, 19, 27, 35, 43, 51), 2))[:TASKS]


def batch_of(task, rows, seed):
    """Whatever is said, say the task's two words in turn; eleven other tasks begin or end with one of them."""
    rng = np.random.default_rng([task, seed])

    def example():
        return Example.of([toys.EOS, *rng.integers(1, 53, 2).tolist()], [*PAIRS[task]] * 2)

    return pad_examples([example() for _ in range(rows)], length=6, targets=4, pad=toys.EOS)


@functools.partial(jax.jit, static_argnames="steps")
def train(pool, rows, batches, steps=40):
    """Components of every task [N, k, ...], each trained on the task's own batch."""
    optimizer = optax.adam(0.02)

    def one(rows, batch):
        def step(carry, _):
            rows, state = carry
            updates, state = optimizer.update(jax.grad(pool.active_loss)(rows, batch), state)
            return (optax.apply_updates(rows, updates), state), None

        return jax.lax.scan(step, (rows, optimizer.init(rows)), length=steps)[0][0]

    return jax.lax.map(lambda own: one(*own), (rows, batches))


@pytest.fixture(scope="module")
def claims():
    """(params, masks): forty trained tasks on scattered components; the last rows are padding."""
    masks = np.full((ROOM, K), SIZE, np.int32)
    masks[:TASKS] = np.sort(np.random.default_rng(0).permutation(SIZE)[: TASKS * K].reshape(TASKS, K))
    params = jax.jit(lambda pool: pool.init(jax.random.key(0)))(POOL)
    every = masks[:TASKS].reshape(-1)
    rows = jax.tree.map(lambda leaf: leaf.reshape(TASKS, K, *leaf.shape[1:]), gather(params, every))
    batches = jax.tree.map(lambda *leaves: np.stack(leaves), *(batch_of(task, 16, 0) for task in range(TASKS)))
    trained = jax.tree.map(lambda leaf: leaf.reshape(TASKS * K, *leaf.shape[2:]), train(POOL, rows, batches))
    order = np.argsort(every)
    return scatter(params, every[order], gather(trained, order)), masks


def selection(masks, frozen=None):
    return Selection(jnp.asarray(masks), jnp.zeros(len(masks), jnp.int32), frozen)


def kept(masks, numbers):
    """The masks of these numbers, at the front, padded to the same length."""
    rest = np.full_like(masks, SIZE)
    rest[: len(numbers)] = masks[numbers]
    return selection(rest)


def test_scores_are_differences_of_the_loss_in_float64():
    """Masks that reuse others' components, one that is short, and padding; along each mask's own direction."""
    with jax.enable_x64():
        pool = toys.toy_pool(model=toys.toy_config(dtype="float64"))
        double = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64), (pool.base, toys.toy_params(toys.toy_pool()))
        )
        pool, params = pool.replace(base=double[0]), double[1]
        batch = jax.tree.map(
            lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf, toys.toy_batch()
        )
        active = np.array([[0, 3, 7], [2, 16, 16], [5, 6, 15], [16, 16, 16]], np.int32)
        frozen = np.array([[16, 16], [0, 7], [2, 16], [16, 16]], np.int32)
        without, scores = scored(pool, params, selection(active, jnp.asarray(frozen)), batch)
        loss = jax.jit(lambda gains: pool.loss(params, gains, batch))
        np.testing.assert_allclose(without, loss(jnp.zeros(16)), rtol=1e-12)
        for own, score in zip(np.concatenate([active, frozen], axis=1), scores, strict=True):
            gains = jnp.asarray(np.isin(np.arange(16), own), jnp.float64)
            # The four-point difference, whose error is of the fourth order.
            near, far = ((float(loss(h * gains)) - float(loss(-h * gains))) / (2 * h) for h in (1e-3, 2e-3))
            np.testing.assert_allclose(score, (4 * near - far) / 3, rtol=1e-8, atol=1e-10)
        assert np.abs(scores[:3]).min() > 1e-3 and scores[3] == 0


def test_the_shortlist_s_choice_is_that_of_all(claims):
    params, masks = claims
    right = []
    for task in range(TASKS):
        batch = batch_of(task, 4, 1 + task % 2)
        found = listed(POOL, params, selection(masks), batch)
        np.testing.assert_array_equal(found.active, full(POOL, params, selection(masks), batch).active)
        right.append(found.active.tolist() == masks[task].tolist())
    assert np.mean(right) > 0.95


def fluent(batch):
    """The batch with the labels that the base finds likeliest."""
    hidden, _ = decoder.Decoder(POOL.model).apply({"params": POOL.base}, batch.tokens)
    likeliest = decoder.logits(POOL.base, hidden).argmax(-1)
    return batch._replace(labels=jnp.take_along_axis(likeliest, batch.columns, 1).astype(jnp.int32))


def test_where_scores_can_t_tell_the_choice_is_that_of_all(claims):
    """Components that are untrained, or so small that rounding hides them, and a base that nothing improves."""
    params, masks = claims
    untrained = {name: {"a": pair["a"], "b": jnp.zeros_like(pair["b"])} for name, pair in params.items()}
    tiny = {name: {"a": pair["a"], "b": 1e-7 * pair["b"]} for name, pair in params.items()}
    beyond = []
    for task in range(8):
        batch = batch_of(task, 4, 1)
        for these, given in ((untrained, batch), (tiny, batch), (params, fluent(batch))):
            wanted = full(POOL, these, selection(masks), given).active
            np.testing.assert_array_equal(listed(POOL, these, selection(masks), given).active, wanted)
        without, scores = scored(POOL, params, selection(masks), given)
        assert loss_of(params, wanted, given) > without > 0
        beyond.append(wanted.tolist() not in masks[np.argsort(scores[:TASKS])[: 2 * LENGTH]].tolist())
    assert any(beyond)  # else a shortlist alone would do


def test_a_mask_that_reuses_others_is_compared_whatever_its_score(claims):
    """All other tasks' components are four times too large: they promise more than they keep, but keep something."""
    params, masks = claims
    free = np.setdiff1d(np.arange(SIZE), masks)[:1]  # untrained: reused, it changes no loss and no score
    for task in (0, 5, TASKS - 1):
        batch = batch_of(task, 4, 1)
        own = np.isin(np.arange(SIZE), masks[task])
        large = jax.tree.map(
            lambda leaf, own=own: np.where(own[(...,) + (None,) * (leaf.ndim - 1)], leaf, 4 * leaf), params
        )
        found = []
        for reusing in (np.zeros(ROOM, bool), np.arange(ROOM) == task):
            frozen = jnp.asarray(np.where(reusing[:, None], free, SIZE).astype(np.int32))
            held = selection(masks, frozen)
            assert full(POOL, large, held, batch).active.tolist() == masks[task].tolist()
            found.append(listed(POOL, large, held, batch).active.tolist())
        assert found[0] != masks[task].tolist() == found[1]


def test_one_program_serves_any_number_of_tasks_and_never_takes_padding(claims):
    params, masks = claims
    rng = np.random.default_rng(1)
    jax.block_until_ready(listed(POOL, params, kept(masks, np.arange(3)), batch_of(0, 4, 1)))
    with counted_compilations() as count:
        for number in (1, LENGTH, LENGTH + 1, TASKS - 1, TASKS):
            numbers = np.sort(rng.permutation(TASKS)[:number])
            held, batch = kept(masks, numbers), batch_of(int(numbers[-1]), 4, 1)
            found = listed(POOL, params, held, batch).active.tolist()
            assert found in masks[numbers].tolist()
            assert found == masks[numbers[-1]].tolist() or number > LENGTH
        assert count() == 0


def test_a_task_that_is_forgotten_is_not_found(claims):
    """Its row is gone or, if the masks were not moved up, padding among the others."""
    params, masks = claims
    for task in (0, 17, TASKS - 1):
        batch = batch_of(task, 4, 1)
        gap = masks.copy()
        gap[task] = SIZE
        moved = kept(masks, np.setdiff1d(np.arange(TASKS), task))
        found = [
            side(POOL, params, held, batch).active.tolist()
            for side in (listed, full)
            for held in (selection(gap), moved)
        ]
        assert found[0] != masks[task].tolist() and found[0][0] < SIZE
        assert found[0] == found[1] == found[2] == found[3]


def test_seeds_that_are_mapped_choose_as_each_alone(claims):
    """On an accelerator seeds are a vmap; they have different tasks, and different numbers of them."""
    params, masks = claims
    numbers = [np.arange(TASKS), np.arange(3), np.arange(20, 40)]
    held = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(kept(masks, own) for own in numbers))
    batches = [batch_of(task, 4, 1) for task in (31, 2, 25)]
    together = jax.jit(jax.vmap(best, (None, None, 0, 0)))(
        POOL, params, held, jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    )
    alone = [listed(POOL, params, kept(masks, own), batch).active for own, batch in zip(numbers, batches, strict=True)]
    np.testing.assert_array_equal(together.active, alone)
