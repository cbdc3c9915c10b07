"""In-context learning: the examples that a row recovers from are in the prompt, and nothing is trained."""

import itertools
import json
import re
import shutil
import unittest.mock

import jax
import numpy as np
import pytest
import toys
from kills import numbers

import ftn_jax
from ftn_jax.core.errors import InputError, Interrupted
from ftn_jax.models.generate import generate
from ftn_jax.models.tokens import encode
from ftn_jax.pools.lora import LoraPool
from ftn_jax.runs.build import make_problem
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.forget import forget
from ftn_jax.training.evaluation import evaluate_row
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import RECOVER, fold, init_state

metrics_in_context = jax.jit(LoraPool.metrics_in_context)


def test_each_cell_has_the_support_that_other_methods_recover_from():
    run = toys.toy_run("icl")
    other = toys.toy_pool(model=run.pool.model, size=1)
    zero = jax.tree.map(lambda leaf: np.zeros_like(leaf), toys.toy_params(other))
    seen = set()
    for (e, seed), i, j in itertools.product(enumerate(toys.SEEDS), range(3), range(3)):
        data = run.stream.tasks[j]
        support = data.support(fold(jax.random.key(seed), RECOVER, i, j, 0), 8)
        for metric, (total, count) in metrics_in_context(other, zero, data.test(), support).items():
            cell = run.rows[i].reconfig[metric][e, j]
            np.testing.assert_allclose(cell, total / count, rtol=1e-5)
            if metric == "cross_entropy":
                seen.add(float(cell))
            stored = run.rows[i].stored[metric][e, j]
            assert stored == cell if j <= i else np.isnan(stored)
    assert len(seen) == 18  # each cell has examples of its own


def test_it_is_the_base_alone_whatever_components_start_as():
    run, data = toys.toy_run("icl"), toys.toy_stream().tasks
    pool = run.method.adapt_pool(toys.toy_pool(model=run.pool.model, b_std=1.0))
    state = init_state(pool, np.array(toys.SEEDS), method=run.method, training=run.training)
    assert pool.size == 1 and not any(map(np.any, jax.tree.leaves(state.params)))
    again = evaluate_row(pool, run.method, state, data, 0, run.installed[:1], support=8)
    np.testing.assert_array_equal(again.reconfig["cross_entropy"], run.rows[0].reconfig["cross_entropy"])


def test_a_base_without_room_is_refused_at_evaluation():
    run = toys.toy_run("icl")
    pool = run.method.adapt_pool(toys.toy_pool())
    state = init_state(pool, np.array(toys.SEEDS), method=run.method, training=run.training)
    with pytest.raises(InputError, match=r"^8 examples of 56 tokens together and one of 7 after them exceed the 24 "):
        evaluate_row(pool, run.method, state, run.stream.tasks, 0, run.installed[:1], support=8)


# --- a run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    toys.save_toy_base(folder / "base", n_positions=320)
    toys.write_tasks(folder)
    return folder


def config_of(files, **settings):
    paths = [str(files / f"{name}.jsonl") for name in ("loud", "title")]
    own = {"methods": ("icl", "lora_ftn_reserve"), "configurer.support": 6, "stream.steps": 10}
    return toys.jsonl_config(str(files / "base"), paths, **(own | settings))


@pytest.fixture(scope="module")
def two(files, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    return workdir, train_and_evaluate(config_of(files), workdir)


@pytest.mark.slow
def test_it_is_a_row_of_the_tables(two):
    workdir, results = two
    entry = results["methods"]["icl"]
    assert (entry["size"], entry["k"], entry["oracle"]) == (1, 1, False)
    assert entry["stored"]["final"] == entry["reconfig"]["final"]
    assert entry["cost"]["parameters"] == entry["cost"]["trained"] == 0
    assert entry["reconfig"]["exact_match"]["final"]["mean"] is not None
    report = (workdir / "report.md").read_text()
    rows = [row[:2] for row in toys.table_cells(report, "The jsonl stream, 2 tasks")[2:]]
    assert rows[:2] == [["In-context learning", "stored"], ["In-context learning", "reconfig"]] and len(rows) == 4
    assert [row[0] for row in toys.table_cells(report, "The pool")[2:]] == ["LoRA-FTN-Reserve"]
    assert "icl" not in {line.split(",")[0] for line in (workdir / "metrics.csv").read_text().splitlines()}


@pytest.mark.slow
def test_samples_are_written_after_the_same_examples(files, tmp_path):
    """The prompts that `generate` gets are sequences built by hand, and leave room for what is written."""
    with unittest.mock.patch("ftn_jax.runs.samples.generate", side_effect=generate) as spy:
        results = train_and_evaluate(config_of(files, methods=("icl",)), tmp_path)
    ((_, _, tokens, valid),) = [call.args for call in spy.call_args_list]
    assert tokens.shape[1] + spy.call_args.kwargs["steps"] <= 320
    problem = make_problem(config_of(files), str(files / "base"))
    assert problem.base is not None
    for j, sample in enumerate(results["methods"]["icl"]["samples"]):
        support = problem.stream.tasks[j].support(fold(jax.random.key(0), RECOVER, 1, j, 0), 6)
        read = []
        for row in range(6):
            count = int(support.weights[row].sum())
            read += support.tokens[row, : support.columns[row, count - 1] + 1].tolist()
            read.append(int(support.labels[row, count - 1]))
        (example,) = encode([(sample["prompt"], sample["target"])], problem.base.tokens)
        assert tokens[j][valid[j]].tolist() == [*read, *example.prompt]


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_in_the_same_bits(files, two, tmp_path):
    stops = 0
    while True:
        asked = itertools.count()
        try:
            train_and_evaluate(config_of(files), tmp_path, stop=lambda asked=asked: next(asked) >= 1)
        except Interrupted:
            stops += 1
            continue
        break
    assert stops >= 4
    assert numbers(tmp_path) == numbers(two[0])


@pytest.mark.slow
def test_there_is_no_model_to_load(two):
    said = rf"^method 'icl' of workdir {re.escape(str(two[0]))} trains nothing, .*, known: lora_ftn_reserve$"
    for method in (None, "icl"):
        with pytest.raises(InputError, match=said):
            ftn_jax.load(two[0], method)
    assert set(ftn_jax.load(two[0], "lora_ftn_reserve").stored) == {"loud", "title"}


def test_examples_that_do_not_fit_are_refused_before_anything_is_trained(files, tmp_path):
    config = config_of(files, **{"configurer.support": 8, "stream.recovery": 0.4})
    config.base = str(files / "short")
    toys.save_toy_base(files / "short", n_positions=64)
    with pytest.raises(InputError) as caught:
        train_and_evaluate(config, tmp_path)
    said = str(caught.value)
    assert (
        said.startswith("config.methods: icl, task 'loud': 8 examples of ") and "the 64 positions of the base" in said
    )
    assert said.endswith("lower config.configurer.support or config.stream.max_length") and "\n" not in said
    assert not json.loads((tmp_path / "results.json").read_text())["methods"]


@pytest.mark.slow
def test_a_task_is_forgotten_in_its_workdir_too(files, two, tmp_path):
    workdir = shutil.copytree(two[0], tmp_path / "run")
    lines = forget(workdir, "loud", remove_older=True)
    assert any(line.startswith("gone: icl") for line in lines)
    results = train_and_evaluate(
        toys.jsonl_config(
            str(files / "base"),
            [str(files / "title.jsonl")],
            **{"methods": ("icl", "lora_ftn_reserve"), "configurer.support": 6, "stream.steps": 10},
        ),
        workdir,
    )
    assert results["task_names"] == ["title"] and set(results["methods"]) == {"icl", "lora_ftn_reserve"}


def test_its_blocks_have_no_steps():
    run = toys.toy_run("icl")
    done: list[int] = []
    state = init_state(run.pool, np.array(toys.SEEDS), method=run.method, training=run.training)
    train_task(
        run.pool,
        run.method,
        run.training,
        state,
        run.stream.tasks[0],
        0,
        on_chunk=lambda step, *_: done.append(step),
    )
    assert not done
