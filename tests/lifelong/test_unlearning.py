"""A task that is taken out of a run: its components are fresh and free, and nobody else's bits change."""

import shutil
import unittest.mock

import jax
import numpy as np
import pytest
import toys

import ftn_jax
from ftn_jax.cli import command
from ftn_jax.cli import forget as forget_command
from ftn_jax.core.errors import InputError
from ftn_jax.lifelong.unlearning import check_forgettable, forget_task
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.forget import forget
from ftn_jax.runs.restore import read_saved
from ftn_jax.runs.workdir import read_results
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import init_state

NAME = "lora_ftn_reserve"
TASKS = ("lower", "reverse_words", "pirate")


def config_of(base, tasks=TASKS, methods=(NAME,)):
    return toys.styles_config(base, **{"stream.tasks": tasks, "methods": methods, "optimizer.reset": False})


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    return workdir, train_and_evaluate(config_of(base), workdir)


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "run")


def components(tree, rows):
    """The leaves' rows [E, rows, ...] of whatever lies by component."""
    return [np.asarray(leaf)[:, rows] for leaf in jax.tree.leaves(tree) if np.ndim(leaf) > 1 and leaf.shape[1] == 16]


@pytest.mark.parametrize("task", TASKS)
def test_components_are_fresh_and_free_and_no_other_changes(workdir, task):
    before = read_saved(workdir, read_results(workdir), NAME)
    forget(workdir, task, remove_older=True)
    after = read_saved(workdir, read_results(workdir), NAME)
    fresh = init_state(after.pool, np.array([5, 2], np.int32), method=after.method, training=after.training)
    at = TASKS.index(task)
    old, new = (saved.progress.state._replace(keys=()) for saved in (before, after))
    assert len(components(old, [0])) == 2 * 3  # a and b, with two moments each
    for e in range(2):
        gone = np.asarray(before.progress.selections[at].active[e])
        kept = np.setdiff1d(np.arange(16), gone)
        for left, then in zip(components(new, kept), components(old, kept), strict=True):
            np.testing.assert_array_equal(left[e], then[e])
        for left, first in zip(components(new, gone), components(fresh, gone), strict=True):
            np.testing.assert_array_equal(left[e], first[e])
        assert any(np.any(a[e] != b[e]) for a, b in zip(components(old, gone), components(new, gone), strict=True))
    count = jax.tree.leaves(old.opt_state)[0]
    assert count.ndim == 1 and (np.asarray(count) == 60).all()  # of steps: no component's
    np.testing.assert_array_equal(count, jax.tree.leaves(new.opt_state)[0])
    masks = [np.asarray(selection.active) for selection in after.progress.selections]
    others = [np.asarray(s.active) for i, s in enumerate(before.progress.selections) if i != at]
    np.testing.assert_array_equal(masks, others)


@pytest.mark.slow
def test_the_run_goes_on_without_the_task_and_takes_another(base, workdir, trained):
    forget(workdir, "reverse_words")
    left = ("lower", "pirate")
    with unittest.mock.patch("ftn_jax.runs.driver.train_task", side_effect=train_task) as spy:
        results = train_and_evaluate(config_of(base, left), workdir)
        assert not spy.called
        entry, earlier = results["methods"][NAME], trained[1]["methods"][NAME]
        assert results["task_names"] == list(left)
        for protocol in ("stored", "reconfig"):
            assert np.shape(entry[protocol]["matrix"]) == (2, 2, 2)
        # Of what is left nothing is scored otherwise.
        assert [row[-1] for row in entry["stored"]["matrix"]] == [
            [row[-1][0], row[-1][2]] for row in earlier["stored"]["matrix"]
        ]
        for file in ("report.md", "report.html", "metrics.csv"):
            assert "reverse_words" not in (workdir / file).read_text()
        more = train_and_evaluate(config_of(base, (*left, "title_case")), workdir)
        assert [call.args[5] for call in spy.call_args_list] == [2]
    for masks in more["methods"][NAME]["masks"]:
        assert len(np.unique(masks)) == 12
    with pytest.raises(InputError, match="belongs to another config"):
        train_and_evaluate(config_of(base), workdir)


@pytest.mark.slow
def test_a_model_forgets_in_memory_what_the_run_forgets_on_disk(base, workdir):
    model = ftn_jax.load(workdir, seed=2)
    without = model.forget("lower")
    assert list(without.stored) == ["reverse_words", "pirate"] and list(model.stored) == list(TASKS)
    forget(workdir, "lower")
    saved = ftn_jax.load(workdir, seed=2)
    jax.tree.map(
        np.testing.assert_array_equal, (without.params, without.extra, without.stored),
        (saved.params, saved.extra, saved.stored),
    )  # fmt: skip
    pairs = [("A quiet fox.\n", "a quiet fox.")] * 4
    assert set(model.recover(pairs).overlap) == set(TASKS) and set(without.recover(pairs).overlap) == set(TASKS[1:])


def test_the_command_says_what_goes_and_what_still_holds_the_task(workdir, capsys):
    def said_by(*arguments):
        command.run(forget_command.main, ["forget", f"--workdir={workdir}", *arguments])
        return capsys.readouterr().out.splitlines()

    def refusal_of(*arguments):
        with pytest.raises(SystemExit) as ended:
            command.run(forget_command.main, ["forget", *arguments])
        return ended.value.code, capsys.readouterr().err

    def times():
        files = [path for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: path.stat().st_mtime_ns for path in files}

    before, held = times(), sorted(path.name for path in (workdir / "checkpoints" / NAME).glob("[0-9]*"))
    assert len(held) == 2
    what = f"{NAME}: 4 components of each seed, their moments, the mask and the task's scores"
    files = [
        "report.md",
        "report.html",
        "figures",
        "tensorboard",
        "metrics.csv",
        *(f"checkpoints/{NAME}/{at}" for at in held),
    ]
    expected = [f"would go: {what}", *(f"holds the task: {workdir / file}" for file in files)]
    assert said_by("--task=pirate", "--dry_run") == expected
    assert times() == before

    files.remove(f"checkpoints/{NAME}/{held[0]}")  # the newest two are kept
    assert said_by("--task=pirate") == [f"gone: {what}", *(f"still holds the task: {workdir / file}" for file in files)]
    unknown = f"ftn_jax: workdir {workdir} has no task 'pirate', known: lower, reverse_words\n"
    assert refusal_of(f"--workdir={workdir}", "--task=pirate") == (1, unknown)

    curves = (workdir / "metrics.csv").read_bytes()
    for other in (NAME, "1", "step"):  # which stand in other columns of the curves
        said = refusal_of(f"--workdir={workdir}", f"--task={other}", "--remove_older")
        assert said == (1, unknown.replace("pirate", other)) and (workdir / "metrics.csv").read_bytes() == curves
    older = f"checkpoints/{NAME}/{held[1]}"
    assert said_by("--task=pirate", "--remove_older") == [f"gone: {workdir / file}" for file in [*files[:5], older]]
    assert not (workdir / older).exists() and "pirate" not in (workdir / "metrics.csv").read_text()
    assert refusal_of(f"--workdir={workdir}", "--task=pirate", "--remove_older") == (1, unknown)

    assert said_by("--task=lower", "--remove_older") == [f"gone: {what}"]
    assert len([*(workdir / "checkpoints" / NAME).glob("[0-9]*")]) == 1
    assert not any((workdir / file).exists() for file in files[:4])
    assert "lower" not in (workdir / "metrics.csv").read_text() + (workdir / "results.json").read_text()
    assert "only task" in refusal_of(f"--workdir={workdir}", "--task=reverse_words")[1]
    assert refusal_of("--task=lower") == (
        2,
        "ftn_jax: --workdir is missing (Folder of a run); see --help\n",
    )
    assert refusal_of("--tusk=lower")[0] == 2


MASKS = {"a": np.array([0, 1]), "b": np.array([2, 3]), "c": np.array([3, 4])}


def test_what_cannot_be_forgotten_without_a_trace_is_refused():
    reserve = toys.toy_method(NAME)
    check_forgettable(NAME, reserve, MASKS, MASKS, "a")
    with pytest.raises(InputError, match=r"task 'b' shares components with c, .* as lora_ftn_reserve"):
        check_forgettable("lora_ftn", toys.toy_method("lora_ftn"), MASKS, MASKS, "b")
    with pytest.raises(InputError, match="lora_fixed is told each task's number"):
        check_forgettable("lora_fixed", toys.toy_method("lora_fixed"), MASKS, MASKS, "a")
    with pytest.raises(InputError, match="ftn_slow moves masks while it trains"):
        check_forgettable("ftn_slow", toys.toy_method("ftn_slow"), MASKS, MASKS, "a")
    with pytest.raises(InputError, match="no task 'd' is trained, known: a, b, c"):
        check_forgettable(NAME, reserve, MASKS, MASKS, "d")
    apart = {"a": np.array([0, 1]), "b": np.array([2]), "c": np.array([3])}
    answering = apart | {"b": np.array([0, 1, 2]), "c": np.array([0, 1, 2, 3])}
    with pytest.raises(InputError, match="task 'a' is reused by b, c: add with_dependents to forget these, too"):
        check_forgettable("lora_ftn_compose", reserve, apart, answering, "a")
    check_forgettable("lora_ftn_compose", reserve, apart, answering, "c")


def test_a_task_whose_block_is_not_at_its_end_is_refused(base, workdir):
    results = read_results(workdir)
    saved = read_saved(workdir, results, NAME)
    saved.progress.task, saved.progress.step = 2, 10
    with pytest.raises(InputError, match="has not trained task 'pirate' to its end"):
        forget_task(saved.progress, saved.pool, saved.method, saved.training, names=TASKS, task="pirate", name=NAME)
