"""More of the same: a task is trained further on its own components, from a file that may have grown."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
import toys
from kills import numbers

import ftn_jax
from ftn_jax.core.errors import InputError, Interrupted
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.forget import forget
from ftn_jax.streams.files import earlier_of, paths_of, task_names

pytestmark = pytest.mark.slow  # one Python is enough: it compiles many programs

NAME = "lora_ftn_reserve"


def test_an_entry_with_a_number_continues_the_file_before_it():
    files = ["a/loud.jsonl", "title.jsonl", "a/loud.jsonl#2", "a/loud.jsonl#3"]
    assert earlier_of(files) == [None, None, 0, 0]
    assert paths_of(files) == ["a/loud.jsonl", "title.jsonl", "a/loud.jsonl", "a/loud.jsonl"]
    assert task_names(files) == ("loud", "title", "loud#2", "loud#3")
    # Without such a file before it, it is a file of that name.
    assert earlier_of(["a#2", "b.jsonl#2", "b.jsonl", "b.jsonl#1"]) == [None] * 4
    with pytest.raises(InputError, match="two are named 'loud#2'"):
        task_names(["loud.jsonl", "loud.jsonl#2", "loud.jsonl#2"])


@pytest.fixture(scope="module")
def files(files_run):
    return files_run, [str(files_run / f"{name}.jsonl") for name in ("loud", "title")]


def config_of(folder, paths, **settings):
    return toys.jsonl_config(str(folder / "base"), paths, **({"pool.modules": ("all-linear",)} | settings))


@pytest.fixture(scope="module")
def further(files, tmp_path_factory):
    """A run of two tasks, and a copy of it that went on with the first."""
    folder, paths = files
    before = folder / "run"
    after = shutil.copytree(before, tmp_path_factory.mktemp("runs") / "after")
    results = train_and_evaluate(config_of(folder, [*paths, f"{paths[0]}#2"]), after)
    return before, after, results


def test_it_has_its_own_components_and_no_other_changes(further):
    before, after, results = further
    entry = results["methods"][NAME]
    assert results["task_names"] == ["loud", "title", "loud#2"]
    for masks in entry["masks"]:
        assert masks[2] == masks[0] and not set(masks[0]) & set(masks[1])
    old, new = ftn_jax.load(before), ftn_jax.load(after)
    moved = [
        (np.asarray(a) != np.asarray(b)).reshape(16, -1).any(1)
        for a, b in zip(jax.tree.leaves(old.params), jax.tree.leaves(new.params), strict=True)
    ]
    np.testing.assert_array_equal(np.flatnonzero(np.any(moved, axis=0)), old.stored["loud"])
    stored = np.array(entry["stored"]["matrix"], float)
    np.testing.assert_array_equal(stored[:, 2, 1], stored[:, 1, 1])  # of the other task, bit for bit
    assert (stored[:, 2, 0] < stored[:, 1, 0]).all()
    np.testing.assert_array_equal(stored[:, 2, 2], stored[:, 2, 0])
    curves = {"a": [], "b": []}
    for row in (after / "metrics.csv").read_text().splitlines():
        curves["b" if ",loud#2," in row else "a"].append(row)
    assert curves["b"]
    # What the mask's losses are is measured anew, and once.
    assert len(new.own) == 3 and new.own["loud"] == new.own["loud#2"] and new.own["loud"] != old.own["loud"]
    assert new.own["title"] == old.own["title"]


@pytest.mark.slow
def test_a_run_that_is_stopped_on_the_way_ends_in_the_same_bits(files, further, tmp_path):
    folder, paths = files
    shutil.copytree(further[0], tmp_path / "run")
    config = config_of(folder, [*paths, f"{paths[0]}#2"], **{"checkpoint.every_steps": 10})
    asked = itertools.count()
    with pytest.raises(Interrupted):
        train_and_evaluate(config, tmp_path / "run", stop=lambda: next(asked) >= 1)
    train_and_evaluate(config, tmp_path / "run")
    left, right = (numbers(run) for run in (tmp_path / "run", further[1]))
    for found in (left, right):
        del found["config"]["checkpoint"]
    assert left == right


def test_it_is_forgotten_as_one_task(further, tmp_path):
    shutil.copytree(further[1], tmp_path / "run")
    said = forget(tmp_path / "run", "loud")
    assert sum("gone: " in line for line in said) == 2
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["task_names"] == ["title"] and len(results["config"]["stream"]["files"]) == 1
    fresh, left = ftn_jax.load(further[1]).forget("loud"), ftn_jax.load(tmp_path / "run")
    assert list(fresh.stored) == list(left.stored) == ["title"]
    jax.tree.map(np.testing.assert_array_equal, fresh.params, left.params)
    with pytest.raises(InputError, match="is the only task"):
        forget(tmp_path / "run", "title")


@pytest.mark.slow
def test_from_python_with_more_examples(files, tmp_path):
    folder, paths = files
    loud = ftn_jax.streams.text.jsonl.load_texts(paths[0])
    config = config_of(folder, paths)
    # As above, so that programs are shared.
    settings = {f"stream.{name}": config.stream[name] for name in ("steps", "batch", "max_length", "recovery", "test")}
    settings |= {"pool.size": 16, "pool.rank": 2, "configurer.k": 4, "configurer.support": config.configurer.support}
    settings |= {"seeds": config.seeds, "optimizer.learning_rate": config.optimizer.learning_rate}
    settings |= {"variants.lora_ftn_reserve.kernel": 3, "variants.lora_ftn_reserve.lateral_steps": 2}
    given = {"base": str(folder / "base"), "settings": settings, "progress": False}
    first, second = loud[:32], loud[32:]
    model = ftn_jax.fit({"loud": first}, workdir=tmp_path / "run", **given)
    for _ in range(2):  # the same call again finds all there
        more = model.add({"loud#2": second}, progress=False)
        assert (tmp_path / "run" / "tasks" / "loud.jsonl").read_bytes().count(b"\n") == len(loud)
    assert more.example_losses(loud, "loud").mean() < model.example_losses(loud, "loud").mean()
    again = more.add({"loud#3": None}, progress=False)
    assert list(again.stored) == ["loud", "loud#2", "loud#3"]
    for tasks, message in (
        ({"quiet#2": None}, "expected the name of an earlier task and #2, #3, ...; earlier: loud, loud#2, loud#3"),
        ({"loud#2": [("a", "b")]}, "'loud#2' was trained with other examples"),
        ({"loud": [("a", "b")]}, "task 'loud' has other examples"),
    ):
        with pytest.raises(InputError, match=message):
            again.add(tasks, progress=False)
