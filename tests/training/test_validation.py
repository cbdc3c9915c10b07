"""Validation: every seed ends with its best step's parameters, bit for bit, however it was stopped on the way."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ftn_jax.core.errors import InputError, Interrupted
from ftn_jax.runs.build import check
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.streams.files import Shares, split_of
from ftn_jax.streams.memory import make_stream
from ftn_jax.training.evaluation import active_rows
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import init_state

SEEDS = np.array([3, 7], np.int32)


@pytest.fixture(
    scope="module",
    params=[
        ("lora_fixed", "lora"),
        pytest.param(("lora_ftn_compose", "lora"), marks=pytest.mark.slow),
        pytest.param(("ewc", "neurons"), marks=pytest.mark.slow),
    ],
)
def setting(request):
    """(method, pool, data whose validation loss soon rises, its seed axis)."""
    name, pool_name = request.param
    method, pool = toys.toy_method(name), toys.POOLS[pool_name]()
    if pool_name == "lora":
        data = toys.toy_task(1).replace(validation=toys.toy_task(2).test())
    else:  # classes by chance, which can only be learned by heart
        points = make_stream({"chance": (np.random.default_rng(0).normal(size=(90, 2)), np.arange(90) % 2)}).tasks[0]
        pool, data = pool.replace(dropout=0.0), points.replace(validation=points.recovery)
    return method, method.adapt_pool(pool), data, None


def trained(setting, *, start=0, begun=None, state=None, until=None, **fields):
    """(the block's end, the validation losses by step, the snapshots by step)"""
    method, pool, data, axis = setting
    training = toys.toy_training("adam", 0.05, steps=50, chunk=5, **fields)
    state = init_state(pool, SEEDS, method=method, training=training) if state is None else state
    losses, snapshots = {}, {}

    def on_chunk(step, found, masks, snapshot):
        snapshots[step] = jax.tree.map(jnp.copy, snapshot())

    end = train_task(
        pool, method, training, state, data, 0, axis=axis, start=start, begun=begun, until=until, on_chunk=on_chunk,
        on_validation=losses.__setitem__,
    )  # fmt: skip
    return end, losses, snapshots


def test_each_seed_ends_with_its_best_step(setting):
    method, pool, data, axis = setting
    (state, _), losses, snapshots = trained(setting, eval_steps=10)
    assert list(losses) == [10, 20, 30, 40, 50]
    by_hand, loss_of = {}, jax.jit(type(pool).active_loss)
    for step in losses:
        rows = active_rows(*snapshots[step], method=method)
        by_hand[step] = [
            loss_of(
                pool,
                jax.tree.map(lambda leaf, e=e: leaf[e], rows),
                data.validation if axis is None else jax.tree.map(lambda leaf, e=e: leaf[e], data.validation),
            )
            for e in range(2)
        ]
    np.testing.assert_allclose(list(losses.values()), list(by_hand.values()), rtol=1e-5)
    best = [min(losses, key=lambda step, e=e: losses[step][e]) for e in range(2)]
    assert min(best) < 50
    (plain, _), _, earlier = trained(setting)  # no validation, and the same steps
    for e, step in enumerate(best):
        chosen = earlier[step][0].params
        chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf, e=e: leaf[e], t) for t in (state.params, chosen)))
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (state.params, plain.params)), strict=True))


def test_a_block_that_is_stopped_anywhere_ends_in_the_same_bits(setting):
    (state, _), losses, snapshots = trained(setting, eval_steps=10)
    for step in (5, 20, 45):
        half, begun = snapshots[step]
        (again, _), later, _ = trained(setting, eval_steps=10, start=step, begun=begun, state=half)
        chex.assert_trees_all_equal(again, state)
        assert list(later) == [at for at in losses if at > step]


def test_patience_ends_a_block_when_no_seed_gets_better(setting):
    (state, _), losses, _ = trained(setting, eval_steps=10)
    curves = np.array(list(losses.values()))
    worse = np.array([[i - curves[: i + 1, e].argmin() for e in range(2)] for i in range(5)]).min(1)
    ended = 10 * (worse.tolist().index(1) + 1)
    (early, _), fewer, snapshots = trained(setting, eval_steps=10, patience=1)
    assert list(fewer) == list(range(10, ended + 1, 10)) and max(snapshots) == ended < 50
    best = [np.argmin(curves[:, e]) < ended // 10 for e in range(2)]  # seeds that would not have got better later
    for e in np.flatnonzero(best):
        chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf, e=e: leaf[e], s.params) for s in (early, state)))
    half, begun = snapshots[ended]  # saved when it was over
    (again, _), nothing, _ = trained(setting, eval_steps=10, patience=1, start=ended, begun=begun, state=half)
    chex.assert_trees_all_equal(again, early)
    assert not nothing


def test_without_examples_to_validate_on():
    method, pool, data = toys.toy_method("lora_fixed"), toys.toy_pool(), toys.toy_task(1)
    with pytest.raises(InputError, match="has no validation examples"):
        trained((method, pool, data, None), eval_steps=10)


def test_validation_takes_from_the_training_lines_only():
    lines = [f"line {i}".encode() for i in range(2000)]
    without, with_it = ([split_of(line, Shares(0.2, 0.1, v)) for line in lines] for v in (0.0, 0.25))
    assert set(without) == {"train", "recovery", "test"}
    moved = {(a, b) for a, b in zip(without, with_it, strict=True) if a != b}
    assert moved == {("train", "validation")} and abs(with_it.count("validation") / 2000 - 0.25) < 0.03


@pytest.mark.slow
def test_a_run_that_validates(base, tmp_path):
    files = toys.write_tasks(tmp_path)[:2]
    settings = {"stream.validation": 0.25, "stream.steps": 60, "optimizer.learning_rate": 0.05}
    settings |= {"optimizer.eval_steps": 10, "optimizer.early_stopping_patience": 2, "checkpoint.every_steps": 10}
    config = toys.jsonl_config(base, files, **{"stream.max_length": 64}, **settings)
    results = train_and_evaluate(config, tmp_path / "whole")
    stops = iter(range(100))
    while True:
        try:
            again = train_and_evaluate(config, tmp_path / "parts", stop=lambda: next(stops) % 5 == 4)
            break
        except Interrupted:
            continue
    (entry,), (other,) = (r["methods"].values() for r in (results, again))
    for key in ("validation", "stored", "reconfig", "masks"):
        assert json.dumps(entry[key]) == json.dumps(other[key]), key
    assert next(stops) > 8
    tasks = {task for task, *_ in entry["validation"]}
    assert tasks == {0, 1}
    report = toys.table_cells((tmp_path / "whole" / "report.md").read_text(), "Validation")[2:]
    for row, task in zip(report, (0, 1), strict=True):
        steps, losses = zip(*((step, loss[0]) for at, step, loss in entry["validation"] if at == task), strict=True)
        best = int(np.argmin(losses))
        assert row[2:] == [f"{steps[best]:.3f}", f"{losses[best]:.3f}", f"{losses[-1]:.3f}", str(steps[-1])]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer.eval_steps": 15}, "config.optimizer.eval_steps is 15, expected a multiple of 10"),
        ({"optimizer.early_stopping_patience": 3}, "expected 0 without validation examples"),
        ({"stream.validation": 0.7}, r"config.stream.recovery \+ config.stream.test \+ config.stream.validation is"),
        ({"stream.validation": 0.2, "stream.boundaries": "unknown"}, "config.stream.validation is 0.2, expected 0 if"),
        (
            {"stream.validation": 0.2, "methods": ("lora_ftn",), "variants.lora_ftn.every": "batch"},
            "since its mask moves",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings, said, base, tmp_path):
    config = toys.jsonl_config(base, toys.write_tasks(tmp_path)[:2], **settings)
    with pytest.raises(InputError, match=said):
        check(config)
        train_and_evaluate(config, tmp_path / "run")


def test_a_training_keeps_the_best_only_where_it_validates():
    plain = toys.toy_training()
    assert dataclasses.replace(plain, eval_steps=10) == dataclasses.replace(plain, eval_steps=10) != plain
    assert dataclasses.replace(plain, eval_steps=10).optimizer is not plain.optimizer
