"""FTN-Compose: what is reused, that it stays what it was, and what a task has of its own."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ftn_jax.core.errors import InputError
from ftn_jax.lifelong.reuse import dependents, directly, reused
from ftn_jax.methods import Configurer, Selection
from ftn_jax.methods.compose import compose
from ftn_jax.training.evaluation import active_rows, score
from ftn_jax.training.loop import install, train_task
from ftn_jax.training.state import Training, init_state, make_optimizer

K, SIZE = 4, 36
METHOD = compose(Configurer(k=K, tasks=4), kernel=3, lateral_steps=2, share=0.5)
TRAINING = Training(make_optimizer("adamw", 0.03, 0.1), steps=60, batch=8, support=16, chunk=20)
SEEDS = np.array([0, 1], np.int32)


@pytest.fixture(scope="module")
def chain():
    """Task 0, then 0 again, 1, and 0 a third time: (pool, stream, [(state, selection) after each block])."""
    pool, stream = dataclasses.replace(toys.toy_pool(), size=SIZE), toys.toy_pool_stream("lora", tuple(SEEDS.tolist()))
    state = init_state(pool, SEEDS, method=METHOD, training=TRAINING)
    blocks, installed = [], []
    for block, task in enumerate((0, 0, 1, 0)):
        state, selection = train_task(
            pool, METHOD, TRAINING, state, stream.tasks[task], block, axis=stream.axis, installed=installed
        )
        installed.append(selection)
        blocks.append((jax.tree.map(jnp.copy, state), selection))
    return pool, stream, blocks


def own(selection, seed):
    mask = np.asarray(selection.active[seed])
    return mask[mask < SIZE].tolist()


def beside(selection, seed):
    mask = np.asarray(selection.frozen[seed])
    return mask[mask < SIZE].tolist()


def test_a_task_that_comes_back_builds_on_its_own_mask(chain):
    *_, blocks = chain
    first, again, other, third = (selection for _, selection in blocks)
    for seed in range(2):
        assert len(own(first, seed)) == K and not beside(first, seed)
        assert beside(again, seed) == own(first, seed) and len(own(again, seed)) == K // 2
        assert len(own(other, seed)) == (K // 2 if beside(other, seed) else K)
        # A chain: the mask that it reuses is made of two.
        assert {*own(first, seed), *own(again, seed)} <= {*beside(third, seed)} and len(own(third, seed)) == K // 2
        every = [component for _, selection in blocks for component in own(selection, seed)]
        assert len(set(every)) == len(every)


def test_what_is_reused_keeps_its_bits_and_every_task_its_score(chain):
    pool, stream, blocks = chain
    last, _ = blocks[-1]
    for (state, selection), task in zip(blocks, (0, 0, 1, 0), strict=True):
        then, now = (active_rows(s, selection, method=METHOD) for s in (state, last))
        jax.tree.map(np.testing.assert_array_equal, now, then)
        scores = [score(pool, rows, stream.tasks[task], axis=stream.axis) for rows in (then, now)]
        jax.tree.map(np.testing.assert_array_equal, *scores)
    for (before, _), (after, selection) in itertools.pairwise(blocks):
        for seed in range(2):
            leaves = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
            moved = [np.any(np.reshape(a[seed] != b[seed], (SIZE, -1)), axis=1) for a, b in leaves]
            assert np.flatnonzero(np.any(moved, axis=0)).tolist() == own(selection, seed)


def test_reuse_leaves_less_loss_from_the_start(chain):
    """The second block begins where the first one ended."""
    pool, stream, blocks = chain
    state = blocks[0][0]
    _, again = blocks[1]
    alone = Selection(again.active, again.variant, jnp.full_like(again.frozen, SIZE))

    def loss(mask):
        rows = active_rows(state, mask, method=METHOD)
        return np.asarray(score(pool, rows, stream.tasks[0], axis=stream.axis)["cross_entropy"])

    losses = [loss(mask) for mask in (again, alone, blocks[0][1])]
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-5)
    assert (losses[0] < losses[1] - 0.3).all()


def test_the_place_of_a_task_does_not_depend_on_what_it_reuses(chain):
    """Its own components are the first of those that FTN-Reserve would take."""
    pool, stream, blocks = chain
    reserve = toys.toy_method("lora_ftn_reserve", {"k": K})
    state, installed = blocks[0][0], [blocks[0][1]]
    settings = {"support": TRAINING.support, "axis": stream.axis, "installed": installed}
    found = install(pool, reserve, state, stream.tasks[0], 1, **settings)
    for seed in range(2):
        assert set(own(blocks[1][1], seed)) <= set(np.asarray(found.active[seed]).tolist())


def test_moments_that_are_kept_are_refused():
    with pytest.raises(InputError, match="expected 'fresh' where a mask is searched once per task"):
        compose(Configurer(k=2, tasks=2, moments="kept"))


def test_who_reuses_whom():
    masks = [np.array([0, 1]), np.array([2]), np.array([3, 4]), np.array([5])]
    answering = [masks[0], np.array([0, 1, 2]), masks[2], np.array([0, 1, 2, 3, 4, 5])]
    found = reused(masks, answering)
    assert found == [[], [0], [], [0, 1, 2]]
    assert directly(found) == [[], [0], [], [1, 2]]
    names = dict(zip("abcd", masks, strict=True)), dict(zip("abcd", answering, strict=True))
    assert [dependents(*names, task) for task in "abcd"] == [["b", "d"], ["d"], ["d"], []]
    assert reused([masks[0], masks[0]], [masks[0], masks[0]]) == [[], []]  # a mask that two blocks share
