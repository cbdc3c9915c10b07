"""Streams whose boundaries nobody announces: what is decided, what is undone, and that a killed run does the same."""

import itertools
import sys

import jax
import kills
import numpy as np
import pytest
import toys

from ftn_jax.core.errors import InputError
from ftn_jax.lifelong.boundaries import remains_of, train_unannounced
from ftn_jax.lifelong.growth import make_room
from ftn_jax.lifelong.novelty import Changes, at_home
from ftn_jax.lifelong.progress import Progress
from ftn_jax.lifelong.reuse import reused
from ftn_jax.lifelong.touched import Touched
from ftn_jax.methods import Selection
from ftn_jax.methods.compose import compose
from ftn_jax.runs.build import make_problem
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.training.loop import draw_support
from ftn_jax.training.state import WATCH, init_state

NAME = "lora_ftn_reserve"
ORDER = (0, 1, 0, 2, 1)  # shifts of the toy stream, which conflict


@pytest.fixture(scope="module")
def run():
    return follow(ORDER)


def follow(order, method=None, size=16):
    """Blocks of 60 steps of these tasks, which nobody announces; what was known and trained at each block's end."""
    method, stream = method or toys.toy_method(NAME), toys.toy_pool_stream("lora")
    training = toys.toy_training(chunk=10)
    pool = toys.toy_pool(size=size)
    state = init_state(pool, np.array(toys.SEEDS, np.int32), method=method, training=training)
    progress = Progress(state, Touched(2, len(order), pool.size))
    ends = []
    for block, task in enumerate(order):
        train_unannounced(
            pool, method, training, progress, stream.tasks[task], axis=None, feed=None,
            on_chunk=lambda *_: None, room=lambda pool: pool,
        )  # fmt: skip
        progress.task, progress.step = block + 1, 0
        ends.append(jax.tree.map(np.asarray, progress.state.params))
    return pool, method, training, stream, progress, ends


def masks_of(progress):
    """int32[E, M, k], where every seed has M."""
    return np.stack([np.asarray(mask.active) for mask in progress.masks], axis=1)


def selections_of(progress):
    """The same as selections, leaves [E, M, ...]."""
    masks = masks_of(progress)
    return Selection(masks, np.zeros(masks.shape[:2], np.int32))


def test_each_task_gets_one_mask_and_is_found_again(run):
    *_, progress, _ = run
    for memory in progress.memories:
        installed = [event["block"] for event in memory.events if event["new"]]
        assert installed == [0, 1, 3] and len(memory.own) == 3
    np.testing.assert_array_equal(progress.used, np.repeat([[0], [1], [0], [2], [1]], 2, 1))
    for number, selection in zip((0, 1, 0, 2, 1), progress.selections, strict=True):
        np.testing.assert_array_equal(selection.active, progress.masks[number].active)
    for seed in masks_of(progress):
        assert len(np.unique(seed)) == 12


def test_a_change_is_noticed_within_a_chunk(run):
    *_, progress, _ = run
    for memory in progress.memories:
        first = {event["block"]: event["step"] for event in reversed(memory.events)}
        assert all(first[block] <= 10 for block in (1, 2, 3, 4))


def test_what_a_change_did_to_a_mask_is_undone(run):
    """In the blocks of other tasks a mask's components keep their every bit, though nobody said that it was over."""
    *_, progress, ends = run
    for seed, masks in enumerate(masks_of(progress)):
        for mask, blocks in {0: (0, 1), 1: (1, 2), 2: (3, 4)}.items():
            before, after = (ends[block] for block in blocks)
            for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
                np.testing.assert_array_equal(old[seed][masks[mask]], new[seed][masks[mask]])


def test_a_false_alarm_changes_nothing(monkeypatch):
    """Of one seed, in the middle of its first block; the other trains on as well."""
    *_, quiet, _ = follow((0,))
    update, calls = Changes.update, itertools.count()
    monkeypatch.setattr(Changes, "update", lambda self, losses: 3 if next(calls) == 6 else update(self, losses))
    *_, alarmed, _ = follow((0,))
    first, second = (memory.events for memory in alarmed.memories)
    assert [(event["step"], event["new"]) for event in first] == [(0, True), (34, False)] and len(second) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, alarmed.state._replace(keys=None)),
                 jax.tree.map(np.asarray, quiet.state._replace(keys=None)))  # fmt: skip


def test_a_mask_knows_its_own_task_and_no_other(run):
    pool, method, training, stream, progress, _ = run
    masks = selections_of(progress)
    for task, mask in ((0, 0), (1, 1), (2, 2)):
        found = remains_of(pool, method, training, progress.state, stream.tasks[task], masks, (9, 9), axis=None)
        assert found.shape == (2, 3, 2, 8)
        for memory, left in zip(progress.memories, found, strict=True):
            assert at_home(left, [memory.settled(m) for m in range(3)]) == mask
    strange = toys.toy_task(5)
    found = remains_of(pool, method, training, progress.state, strange, masks, (9, 9), axis=None)
    for memory, left in zip(progress.memories, found, strict=True):
        assert at_home(left, [memory.settled(m) for m in range(3)]) is None


@pytest.mark.slow
def test_a_new_task_may_build_on_known_ones(monkeypatch):
    """Three decisions: mine, new, and new but built on these; what is reused keeps its bits."""
    # The first mask is taken for helpful, whatever it is worth.
    monkeypatch.setattr(
        sys.modules["ftn_jax.methods.compose"], "helpful", lambda losses, members, there, **_: there.at[1:].set(False)
    )
    *_, progress, ends = follow((0, 1, 0, 2, 1), compose(toys.toy_configurer(), lateral_steps=2, share=0.5), size=25)
    for seed, memory in enumerate(progress.memories):
        assert [numbers[seed] for numbers in progress.used] == [0, 1, 0, 2, 1]
        assert [event["new"] for event in memory.events] == [True, True, False, True, False]
        masks = [mask.answering(seed, 25) for mask in progress.masks]
        own = [np.asarray(mask.active[seed]) for mask in progress.masks]
        own = [mask[mask < 25] for mask in own]
        assert reused(own, masks) == [[], [0], [0]] and list(map(len, own)) == [4, 2, 2]
        for old, new in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(ends[1]), strict=True):
            np.testing.assert_array_equal(old[seed][own[0]], new[seed][own[0]])


def test_what_a_mask_leaves_of_each_example(run):
    """Against the contract's reference: a mask over all components, and none."""
    pool, method, training, stream, progress, _ = run
    masks, selections = masks_of(progress), selections_of(progress)
    found = remains_of(pool, method, training, progress.state, stream.tasks[1], selections, (1, 2), axis=None)
    path, losses_of = (WATCH, 1, 2), jax.jit(type(pool).example_losses)
    _, batch = draw_support(stream.tasks[1], progress.state.keys, path, split="support", size=8, axis=None)
    for seed, mask in itertools.product(range(2), range(3)):
        params, examples = jax.tree.map(lambda leaf, seed=seed: leaf[seed], (progress.state.params, batch))
        dense = np.isin(np.arange(16), masks[seed, mask]).astype(np.float32)
        (sums, counts), (without, _) = (losses_of(pool, params, m, examples) for m in (dense, 0 * dense))
        losses = sums / counts
        np.testing.assert_allclose(found[seed, mask], np.sqrt([losses, losses / (without / counts)]), rtol=1e-4)


def config_of(base, **settings):
    own = {"stream.steps": 60, "checkpoint.every_steps": 10} | kills.RUNS["unannounced"][1]
    return toys.styles_config(base, **(own | settings))


@pytest.mark.slow
def test_a_pool_grows_where_a_new_task_finds_no_room():
    """Nine components have room for two masks of four; the third task makes them sixteen."""
    method, training = toys.toy_method(NAME), toys.toy_training(chunk=10)
    stream, small = toys.toy_pool_stream("lora"), toys.toy_pool(size=9)
    sizes = []
    for may_grow in (True, False):
        state = init_state(small, np.array(toys.SEEDS, np.int32), method=method, training=training)
        progress = Progress(state, Touched(2, 4, 9))

        def room(pool, progress=progress, may_grow=may_grow):
            return make_room(pool, method, training, progress) if may_grow else pool

        def train(pool, task, progress=progress, room=room):
            pool = train_unannounced(
                pool, method, training, progress, stream.tasks[task], axis=None, feed=None, on_chunk=lambda *_: None,
                room=room,
            )  # fmt: skip
            progress.task, progress.step = progress.task + 1, 0
            sizes.append(pool.size)
            return pool

        pool = train(train(small, 0), 1)
        if may_grow:
            train(train(pool, 2), 0)
            assert sizes == [9, 9, 16, 16]
            for memory, masks in zip(progress.memories, masks_of(progress), strict=True):
                assert [event["new"] for event in memory.events] == [True, True, True, False]
                assert len(np.unique(masks)) == 12 and memory.current == 0
        else:
            with pytest.raises(InputError, match=r"config\.pool\.size is 9: data of a new task .* config\.pool\.grow"):
                train(pool, 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"methods": ("lora_ftn",)}, r"config\.stream\.boundaries is unknown, and lora_ftn must be told"),
        ({"methods": ("lora_fixed",)}, r"config\.stream\.boundaries is unknown, and lora_fixed must be told"),
        ({"optimizer.rows": "dense"}, r"config\.optimizer\.rows is dense, expected active"),
        ({"stream.tasks": ("lower", "yoda#2")}, r"unknown task 'yoda'"),
    ],
)
def test_what_cannot_go_without_boundaries(base, tmp_path, settings, said):
    with pytest.raises(InputError, match=said):
        train_and_evaluate(config_of(base, **settings), tmp_path)


def test_a_task_of_points_comes_back_with_the_same_data():
    config = toys.points_config(**{"stream.tasks": ("first", "second", "first#2"), "methods": ("ftn_reserve",)})
    stream = make_problem(config, None).stream
    assert stream.returns == ["first", "second", "first"]
    tasks = stream.tasks
    np.testing.assert_array_equal(tasks[0].weights, tasks[2].weights)
    np.testing.assert_array_equal(*(jax.random.key_data(task.key) for task in (tasks[0], tasks[2])))
    assert np.any(np.asarray(tasks[0].weights) != np.asarray(tasks[1].weights))
