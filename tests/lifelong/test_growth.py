"""A pool that grows: what was there keeps its bits and its neighbours, what is added is fresh."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import ftn_jax
from ftn_jax.core.errors import InputError, Interrupted
from ftn_jax.core.torus import widened
from ftn_jax.lifelong.growth import make_room
from ftn_jax.lifelong.progress import Progress
from ftn_jax.lifelong.touched import Touched
from ftn_jax.methods import Selection
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.training.evaluation import active_rows, score
from ftn_jax.training.state import init_state
from ftn_jax.training.step import init_optimizer

# Compose has all that Reserve has, and masks that reuse others.
RESERVES = [
    ("ftn_compose", "neurons"),
    pytest.param("ftn_reserve", "neurons", marks=pytest.mark.slow),
    pytest.param("lora_ftn_reserve", "lora", marks=pytest.mark.slow),
    pytest.param("lora_ftn_compose", "lora", marks=pytest.mark.slow),
]


def progress_of(run, touched):
    """Of a run at its end."""
    used = [np.full(2, task) for task in range(3)]
    return Progress(jax.tree.map(jnp.copy, run.states[3]), touched, 3, 0, list(run.installed), used)


@pytest.mark.parametrize(("name", "pool_name"), RESERVES)
def test_growing_changes_no_bit_of_what_was_there(name, pool_name):
    run = toys.toy_run(name, pool_name)
    training = dataclasses.replace(toys.training_of(run.method), reset=False)  # else there are no moments to move
    touched = Touched(2, 3, 16)
    touched.add(0, 1, np.array([[[0, 5]], [[3, 15]]]))
    progress = progress_of(run, touched)
    adam, *others = init_optimizer(run.states[3].params, training=training)
    moments = adam._replace(mu=run.states[3].params, nu=run.states[3].params), *others
    small = run.states[3]._replace(opt_state=moments)
    progress.state = jax.tree.map(jnp.copy, small)
    every = zip(*(np.asarray(selection.active) for selection in run.installed), strict=True)
    rest = [np.setdiff1d(np.arange(16), np.concatenate(masks)) for masks in every]
    rest = np.array([np.pad(own, (0, 16 - len(own)), constant_values=16) for own in rest], np.int32)
    frozen = jnp.full((2, run.method.reuses), 16) if run.method.reuses else None
    progress.masks.append(Selection(jnp.asarray(rest), jnp.zeros(2, jnp.int32), frozen))
    pool = make_room(run.pool, run.method, training, progress)
    assert pool.size == progress.size == 25
    places = widened(4, 5)
    fresh = init_state(pool, np.array(toys.SEEDS, np.int32), method=run.method, training=training)
    added = np.setdiff1d(np.arange(25), places)

    def by_component(state):
        return [x for x in jax.tree.leaves(state._replace(keys=())) if np.ndim(x) > 1 and x.shape[1] in (16, 25)]

    leaves = [by_component(state) for state in (small, progress.state, fresh)]
    assert len(leaves[0]) == len(leaves[1]) == len(leaves[2]) > 3
    for old, new, first in zip(*leaves, strict=True):
        np.testing.assert_array_equal(np.asarray(new)[:, places], old)
        np.testing.assert_array_equal(np.asarray(new)[:, added], np.asarray(first)[:, added])
    for task, (before, after) in enumerate(zip(run.installed, progress.selections, strict=True)):
        for then, now in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            moved = np.append(places, 25)[np.asarray(then)] if np.ndim(then) > 1 else then
            np.testing.assert_array_equal(now, moved)
        data, axis = run.stream.tasks[task], run.stream.axis
        scores = [
            score(pool, active_rows(state, selection, method=run.method), data, axis=axis)
            for state, selection in ((run.states[3], before), (progress.state, after))
        ]
        jax.tree.map(np.testing.assert_array_equal, *scores)
    np.testing.assert_array_equal(progress.touched.counts[..., places], touched.counts)
    assert progress.touched.counts.sum() == touched.counts.sum() == 4
    assert progress.touched.path[0] == [[0, 6]]


def test_a_pool_with_room_stays_as_it_is():
    run = toys.toy_run("ftn_compose", "neurons")
    progress = progress_of(run, Touched(2, 3, 16))
    state = progress.state
    assert make_room(run.pool, run.method, toys.training_of(run.method), progress) is run.pool
    assert progress.state is state


def config_of(base, **settings):
    own = {"methods": ("lora_ftn_reserve",), "configurer.k": 6, "pool.grow": True}
    return toys.styles_config(base, **(own | settings))


@pytest.mark.slow
def test_a_run_that_outgrows_its_pool(base, tmp_path):
    results = train_and_evaluate(config_of(base), tmp_path / "whole")
    entry = results["methods"]["lora_ftn_reserve"]
    assert (entry["size"], entry["grid"], entry["k"]) == (25, 5, 6)
    for seed, masks in enumerate(entry["masks"]):
        assert len(np.unique(masks)) == 18 and np.max(masks) < 25
        stored = np.array(entry["stored"]["matrix"][seed], float)
        np.testing.assert_array_equal(stored[-1, :2], [stored[0, 0], stored[1, 1]])  # nothing is forgotten
    model = ftn_jax.load(tmp_path / "whole")
    assert model.pool.size == 25
    np.testing.assert_array_equal(list(model.stored.values()), entry["masks"][0])

    for stops in itertools.count():  # one that is stopped at every second question
        asked = itertools.count()
        try:
            again = train_and_evaluate(config_of(base), tmp_path / "stopped", stop=lambda asked=asked: next(asked) >= 1)
        except Interrupted:
            assert stops < 20
            continue
        break
    assert stops > 3
    for key in ("stored", "reconfig", "masks", "recovered", "size"):
        assert again["methods"]["lora_ftn_reserve"][key] == entry[key]


def test_without_growth_a_full_pool_is_refused_and_an_oracle_does_not_grow(base, tmp_path):
    with pytest.raises(InputError, match=r"config\.pool\.size is 16, expected at least 18 .*config\.pool\.grow"):
        train_and_evaluate(config_of(base, **{"pool.grow": False}), tmp_path)
    with pytest.raises(InputError, match=r"expected at least 18 since lora_fixed"):
        train_and_evaluate(config_of(base, methods=("lora_fixed",)), tmp_path)
