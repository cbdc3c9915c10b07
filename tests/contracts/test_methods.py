"""What every registered method keeps (`ftn_jax.testing`), on each of the pools of tests/toys.py that it takes."""

import dataclasses
import itertools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import POOLS, SEEDS, toy_method, toy_run, training_of

from ftn_jax.core.errors import InputError
from ftn_jax.lifelong.progress import Progress
from ftn_jax.lifelong.touched import Touched
from ftn_jax.methods import METHODS
from ftn_jax.runs.checkpoints import Checkpoints
from ftn_jax.testing import counted_compilations
from ftn_jax.testing.methods import METHOD_CHECKS
from ftn_jax.training.evaluation import recover
from ftn_jax.training.loop import install, train_task


def refusal(name, pool_name):
    """What a method says of a pool that it can't have; None where it can."""
    try:
        toy_method(name).adapt_pool(POOLS[pool_name]())
    except InputError as error:
        return str(error)
    return None


EVERY = list(itertools.product(METHODS, ("lora", "neurons")))  # to which a regression adds nothing but time
REFUSED = {pair: said for pair in EVERY if (said := refusal(*pair))}
# A mask that is searched at every step is Experiment 1's: on a language model it would only take long to compile.
SLOW = {(name, "lora") for name in METHODS if toy_method(name).every == "batch"}
# Names that build the same method are one: lora_fixed is fixedmask.
PAIRS = list({(toy_method(name), pool): (name, pool) for name, pool in EVERY}.values())
# Each method is held to the contract on its experiment's pool. On the other one these have no code of their own, and
# runs/test_own_tasks.py trains Joint and Replay on text.
ALIKE = {("joint", "lora"), ("replay", "lora"), ("lora_fixed", "neurons"), ("lora_ftn", "neurons")}
PAIRS = [pair for pair in PAIRS if pair not in REFUSED and pair not in SLOW and pair not in ALIKE]
# One Python is enough on a second pool, for other settings of a method that is there, and for what tests/methods goes
# through by hand. Compose and Reserve are compiled sooner on networks.
_OFF = ("ewc", "lora_ftn_compose", "lora_ftn_reserve")
_AGAIN = ("ftn_fast", "kwta", "nomask", "supsup_wide", "supsup_weights")
_BY_HAND = {("o_lora", "lora"), *((name, "neurons") for name in ("ewc", "hat", "packnet", "supsup_weights_wide"))}
ONCE = {(name, "lora") for name in _OFF} | {(name, "neurons") for name in _AGAIN} | _BY_HAND
# Other settings of the configurer, of which one method for each kind of search is enough.
SEARCHES = {
    "kept": ("ftn_slow", "neurons", {"moments": "kept"}),
    "gradient": ("lora_ftn", "lora", {"proposal": "gradient", "start": 0.1}),
}


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(pair, marks=[pytest.mark.slow] if pair in ONCE else [], id="-".join(pair)) for pair in PAIRS),
        *(pytest.param(search, id=name) for name, search in SEARCHES.items()),
    ],
)
def run(request):
    name, pool, *configurer = request.param
    return toy_run(name, pool, *configurer)


def test_every_method_is_here():
    assert {toy_method(name) for name, _ in PAIRS} == {toy_method(name) for name in METHODS}


def test_a_pool_that_a_method_cannot_have_is_refused_in_one_line():
    networks = {name for name in METHODS if name.startswith(("supsup", "hat", "packnet"))}
    loras = {"icl", "lora_bank", "o_lora"}
    assert set(REFUSED) == {*((name, "neurons") for name in loras), *((name, "lora") for name in networks)}
    for (name, _), said in REFUSED.items():
        assert name.split("_w")[0] in said and "config.methods" in said and "pool.name=" in said
        assert "\n" not in said


def test_compilations_are_counted():
    with counted_compilations() as count:
        jax.jit(lambda x: x * 2.5 + 1)(jnp.zeros(7))
    assert count() > 0


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=operator.attrgetter("__name__"))
def test_contract(check, run):
    check(run)


def test_there_are_components_that_a_block_does_not_touch(run):
    """Else the contract's isolation would say nothing, but for methods that always train the whole pool."""
    size = run.pool.size
    touched = [len(np.unique(masks[e])) for masks in run.masks for e in range(2)]
    assert min(touched) < size or run.masks[0].shape[-1] == size


def test_a_block_s_selection_is_its_last_mask(run):
    """And masks are told for each step where they move, else not at all."""
    for (active, *_), masks in zip(run.installed, run.masks, strict=True):
        assert masks.shape == (2, 4 if run.method.every == "batch" else 1, active.shape[1])
        np.testing.assert_array_equal(masks[:, -1], active)


def test_only_oracles_are_told_the_task(run):
    told = []

    def spy(function):
        def spied(pool, trainable, extra, given):
            told.append(given.task)
            return function(pool, trainable, extra, given)

        return function and spied

    spied = dataclasses.replace(run.method, select=spy(run.method.select), install=spy(run.method.install))
    state, data, axis = run.states[0], run.stream.tasks[0], run.stream.axis
    jax.eval_shape(lambda s: install(run.pool, spied, s, data, 1, support=8, axis=axis), state)
    once = len(told)
    jax.eval_shape(lambda s: recover(run.pool, spied, s, data, 2, 1, support=8, axis=axis), state)
    assert once and (len(told) > once) == (run.method.install is not None)  # else both are one program
    assert all((task is not None) == run.method.oracle for task in told)


def test_a_block_goes_on_from_its_checkpoint(run, tmp_path):
    """The second block, saved after its first chunk and read again, ends in the bits of one that nobody stopped."""
    if not run.method.trains:  # its blocks have no steps to stop at: see methods/test_icl.py
        chex.assert_trees_all_equal(run.states[2], run.states[0])
        return
    training, wandering = training_of(run.method), Touched(2, 3, run.pool.size)
    wandering.add(1, 1, np.zeros((2, 1, 1), int))

    def train(progress, checkpoints, **settings):
        def on_chunk(step, losses, masks, snapshot):
            if step == training.chunk and checkpoints:
                state, selection = snapshot()
                used = [np.zeros(2, int), np.ones(2, int)]
                masks = [run.installed[0], selection]
                checkpoints.save(Progress(state, wandering, 1, step, masks, used, run.rows[:1]), 9)

        axis = run.stream.axis
        data = run.method.training_data(run.stream.tasks, 1, axis)
        return train_task(
            run.pool,
            run.method,
            training,
            progress.state,
            data,
            1,
            axis=axis,
            installed=run.installed[:1],
            on_chunk=on_chunk,
            **settings,
        )

    with Checkpoints(tmp_path) as checkpoints:
        start = Progress(jax.tree.map(jnp.copy, run.states[1]), wandering)
        whole = train(start, checkpoints)
        checkpoints.wait()
        saved = checkpoints.restore(run.pool, run.method, training, len(run.stream.names), SEEDS)
    assert saved is not None and (saved.task, saved.step) == (1, training.chunk)
    np.testing.assert_array_equal(saved.touched.counts, wandering.counts)
    assert saved.touched.path == wandering.path
    jax.tree.map(np.testing.assert_array_equal, saved.rows, [row._replace(recovered=[]) for row in run.rows[:1]])
    chex.assert_trees_all_equal(saved.selections[0], run.installed[0])
    # `whole` is what the run had, and what the saved one comes to.
    for state, selection in (whole, train(saved, None, start=saved.step, begun=saved.selections[1])):
        chex.assert_trees_all_equal(state, run.states[2])
        chex.assert_trees_all_equal(selection, run.installed[1])


@pytest.mark.parametrize("name", ("supsup", pytest.param("supsup_weights_wide", marks=pytest.mark.slow)))
def test_supsup_s_weights_are_frozen_and_finished_supermasks_never_change(name):
    run = toy_run(name, "neurons")
    first, last = run.states[0].extra, run.states[-1].extra
    chex.assert_trees_all_equal(first["frozen"], last["frozen"])
    assert not any(np.any(masks) for masks in first["supermasks"])
    for task in range(3):
        for state in run.states[task + 1 :]:
            for masks, final in zip(state.extra["supermasks"], last["supermasks"], strict=True):
                np.testing.assert_array_equal(masks[:, :, task], final[:, :, task])
                assert np.any(masks[:, :, task])
        np.testing.assert_array_equal(run.installed[task].variant, [task] * len(SEEDS))
    assert all(np.any(a[:, :, 0] != a[:, :, 1]) for a in last["supermasks"])
