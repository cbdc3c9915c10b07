"""A run that is stopped anywhere goes on to the same bits; what is damaged is noticed; one run to a folder."""

import dataclasses
import gc
import itertools
import json
import logging
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import unittest.mock

import jax
import numpy as np
import pytest
import toys
from kills import ROOT, command, numbers
from orbax.checkpoint.handlers import JsonCheckpointHandler

from ftn_jax.core.errors import CheckpointError, InputError, Interrupted
from ftn_jax.runs.build import build, make_problem
from ftn_jax.runs.checkpoints import Checkpoints
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.workdir import lock
from ftn_jax.training.loop import train_task
from ftn_jax.training.step import enter, init_optimizer, scattered

SETTINGS = {"stream.steps": 30, "checkpoint.every_steps": 20}  # three chunks a task


def stopped_all_along(config, workdir, rng):
    """Runs a config that is stopped again and again, until it ends; how often it was."""
    for stops in itertools.count():
        left = int(rng.integers(2, 12))  # questions until it is stopped: of chunks, and of rows
        asked = itertools.count()
        try:
            train_and_evaluate(config, workdir, stop=lambda asked=asked, left=left: next(asked) >= left)
        except Interrupted:
            continue
        return stops


# Every method by itself: contracts/test_methods.py; the other streams: test_kills.py and tests/soak.
@pytest.mark.slow  # on every Python: runs/test_own_tasks.py and test_arrays_run.py
def test_a_run_that_is_stopped_anywhere_ends_in_the_same_bits(tmp_path):
    config = toys.points_config(methods=("ftn_slow_kept", "supsup"), **SETTINGS)
    train_and_evaluate(config, tmp_path / "whole")
    stops = stopped_all_along(config, tmp_path / "stopped", np.random.default_rng(0))
    assert stops >= len(config.methods)
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")


@pytest.mark.slow
def test_moments_that_are_kept_over_boundaries_are_restored_too(tmp_path):
    settings = {"methods": ("fixedmask",), "optimizer.reset": False, **SETTINGS}
    optimizer = {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1, "optimizer.mu_dtype": "bfloat16"}
    config = toys.points_config(**settings, **optimizer)
    train_and_evaluate(config, tmp_path / "whole")
    assert stopped_all_along(config, tmp_path / "stopped", np.random.default_rng(1)) >= 1
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")


@pytest.mark.slow
def test_an_older_checkpoint_that_timed_no_steps_is_gone_on_with(tmp_path):
    """All steps are taken, and the last row is missing: the speed is the saved one, or unknown."""
    config = toys.points_config(methods=("fixedmask",), **SETTINGS)
    asked = itertools.count()
    with pytest.raises(Interrupted):  # a block asks twice within, at its end, and after its row
        train_and_evaluate(config, tmp_path / "new", stop=lambda: next(asked) >= 10)
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    told = list((tmp_path / "old").glob("checkpoints/fixedmask/*/progress/metadata"))
    for file in told:
        saved = json.loads(file.read_text())
        del saved["pace"]
        file.write_text(json.dumps(saved))
    assert len(told) == 2
    new, old = (train_and_evaluate(config, tmp_path / name)["methods"]["fixedmask"] for name in ("new", "old"))
    assert new["cost"]["examples_per_second"] > 0 and old["cost"]["examples_per_second"] is None
    assert numbers(tmp_path / "new") == numbers(tmp_path / "old")
    assert new["reconfig"]["fwt"]["mean"] is not None
    cells = {name: toys.table_cells((tmp_path / name / "report.md").read_text(), "Cost")[2] for name in ("new", "old")}
    assert cells["new"][:4] == cells["old"][:4] and cells["old"][4] == "-" != cells["new"][4]


@pytest.mark.slow
def test_an_older_checkpoint_with_the_moments_of_all_components_is_gone_on_with(tmp_path):
    config = toys.points_config(methods=("fixedmask",), **SETTINGS)
    train_and_evaluate(config, tmp_path / "whole")
    asked = itertools.count()
    with pytest.raises(Interrupted):
        train_and_evaluate(config, tmp_path / "old", stop=lambda: next(asked) >= 5)
    newest = tmp_path / "old" / "checkpoints" / "fixedmask" / "50"  # in the second block
    problem = make_problem(config, None)
    method, training = problem.methods["fixedmask"], problem.training
    with Checkpoints(newest.parent) as saved:
        progress = saved.restore(problem.pool, method, training, 3, problem.seeds)
        state, active = progress.state, progress.selections[-1].active
        every = init_optimizer(state.params, training=training)
        kept = dataclasses.replace(training, reset=False)
        rows, _, _ = enter(state.params, every, state.extra, active, training=kept)
        _, every = scattered(state.params, every, active, rows, state.opt_state, training=kept)
        progress.state = state._replace(opt_state=every)
        saved.save(progress, 51)
    file = newest.with_name("51") / "progress" / "metadata"
    told = json.loads(file.read_text())
    assert told.pop("moments") and {leaf.shape[1] for leaf in jax.tree.leaves(every)[1:]} == {progress.size}
    file.write_text(json.dumps(told))
    train_and_evaluate(config, tmp_path / "old")
    assert numbers(tmp_path / "old") == numbers(tmp_path / "whole")


@pytest.mark.slow
def test_a_longer_stream_trains_only_what_is_missing(base, tmp_path):
    tasks = ("lower", "reverse_words", "pirate")
    name = "lora_ftn"

    def config_of(count):
        return toys.styles_config(base, methods=(name,), **{"stream.tasks": tasks[:count]})

    short = train_and_evaluate(config_of(2), tmp_path / "grown")["methods"][name]
    with unittest.mock.patch("ftn_jax.runs.driver.train_task", side_effect=train_task) as spy:
        grown = train_and_evaluate(config_of(3), tmp_path / "grown")
        trained = [call.args[5] for call in spy.call_args_list]
    assert trained == [2]
    assert grown["task_names"] == list(tasks)
    whole = train_and_evaluate(config_of(3), tmp_path / "whole")["methods"][name]
    entry = grown["methods"][name]
    assert [seed[:2] for seed in entry["masks"]] == short["masks"]
    assert entry["masks"] == whole["masks"]
    for protocol in ("stored", "reconfig"):
        before, after, fresh = (np.array(e[protocol]["matrix"], float) for e in (short, entry, whole))
        np.testing.assert_array_equal(after[:, :2, :2], before)
        # Before the second task nobody measured the third; padding may differ, and so rounding.
        assert np.isnan(after[:, 0, 2]).all()
        np.testing.assert_allclose(after[:, 1:], fresh[:, 1:], rtol=1e-3)
    with pytest.raises(InputError, match=r"config\.stream\.tasks"):
        train_and_evaluate(config_of(2), tmp_path / "grown")


@pytest.mark.slow
def test_a_stream_whose_tasks_depend_on_each_other_does_not_grow(half):
    config, stopped, _ = half
    tasks = {"stream.tasks": (*config.stream.tasks, "fourth")}
    with pytest.raises(InputError, match=r"config\.stream\.tasks: \['first', .*'fourth'\] now"):
        train_and_evaluate(toys.points_config(methods=("ftn_slow",), **(SETTINGS | tasks)), stopped)


# --- damage ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A config, a workdir stopped in the middle of the second task, and the numbers of the whole run."""
    config = toys.points_config(methods=("ftn_slow",), **SETTINGS)
    folder = tmp_path_factory.mktemp("half")
    train_and_evaluate(config, folder / "whole")
    asked = itertools.count()
    with pytest.raises(Interrupted):
        train_and_evaluate(config, folder / "stopped", stop=lambda: next(asked) >= 5)
    assert sorted(int(path.name) for path in checkpoints(folder / "stopped")) == [30, 50]
    return config, folder / "stopped", numbers(folder / "whole")


def checkpoints(workdir):
    return [path for path in (workdir / "checkpoints" / "ftn_slow").iterdir() if path.name.isdigit()]


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
# Of several files that orbax can't read it raises one error and leaves the others to nobody.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [truncate, pathlib.Path.unlink])
def test_each_file_of_the_newest_checkpoint_may_be_damaged(half, damage, tmp_path, caplog):
    """Either it is not needed, or the checkpoint before is used and said to be."""
    config, stopped, _ = half
    problem, method = make_problem(config, None), build(config, "ftn_slow")

    def restored(folder):
        with Checkpoints(folder) as saved:
            progress = saved.restore(problem.pool, method, problem.training, len(problem.stream.names), config.seeds)
        assert progress is not None
        return jax.tree.map(np.asarray, progress.state._replace(keys=jax.random.key_data(progress.state.keys)))

    source = stopped / "checkpoints" / "ftn_slow"
    newest = restored(shutil.copytree(source, tmp_path / "whole"))
    shutil.rmtree(shutil.copytree(source, tmp_path / "older") / "50")
    before = restored(tmp_path / "older")
    used = 0
    for i in range(len(files(source / "50"))):
        folder = pathlib.Path(shutil.copytree(source, tmp_path / str(i)))
        damage(files(folder / "50")[i])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = restored(folder)
        said = [record.getMessage() for record in caplog.records if record.name == "ftn_jax"]
        if said:
            assert len(said) == 1
            assert said[0].startswith(f"checkpoint {folder}/50 can't be read (")
            assert said[0].endswith("): the one of step 30 is used")
            used += 1
        jax.tree.map(np.testing.assert_array_equal, found, before if said else newest)
    assert used >= 2
    gc.collect()


@pytest.mark.slow
def test_after_damage_the_run_ends_in_the_same_bits(half, tmp_path):
    config, stopped, whole = half
    workdir = pathlib.Path(shutil.copytree(stopped, tmp_path / "run"))
    for path in files(workdir / "checkpoints" / "ftn_slow" / "50"):
        truncate(path)
    train_and_evaluate(config, workdir)
    assert numbers(workdir) == whole


def test_where_no_checkpoint_is_good_nothing_is_deleted(half, tmp_path):
    config, stopped, _ = half
    workdir = pathlib.Path(shutil.copytree(stopped, tmp_path / "run"))
    for path in files(workdir / "checkpoints"):
        path.write_bytes(b"")
    before = files(workdir / "checkpoints")
    said = r"no checkpoint in .*ftn_slow can be read \(step 50: .*\); nothing was deleted"
    with pytest.raises(CheckpointError, match=said):
        train_and_evaluate(config, workdir)
    assert files(workdir / "checkpoints") == before


def test_another_config_is_refused_from_the_first_checkpoint_on(half):
    _, stopped, _ = half
    other = toys.points_config(methods=("ftn_slow",), **(SETTINGS | {"optimizer.learning_rate": 0.02}))
    with pytest.raises(InputError, match=r"learning_rate: 0\.01 there, 0\.02 now.*--fresh"):
        train_and_evaluate(other, stopped)


def test_checkpoints_may_be_made_more_often(half, tmp_path):
    _, stopped, whole = half
    workdir = shutil.copytree(stopped, tmp_path / "run")
    config = toys.points_config(methods=("ftn_slow",), **(SETTINGS | {"checkpoint.every_steps": 10}))
    train_and_evaluate(config, workdir)
    found = numbers(workdir)
    assert found["config"]["checkpoint"] == {"every_steps": 10}
    assert (found["methods"], found["curves"]) == (whole["methods"], whole["curves"])


def test_the_newest_two_are_kept(half, tmp_path):
    config, stopped, _ = half
    workdir = pathlib.Path(shutil.copytree(stopped, tmp_path / "run"))
    train_and_evaluate(config, workdir)
    assert sorted(int(path.name) for path in checkpoints(workdir)) == [80, 90]
    with Checkpoints(workdir / "checkpoints" / "ftn_slow") as saved:
        assert saved._manager.latest_step() == 90


@pytest.mark.slow
def test_a_checkpoint_that_is_written_late_is_of_its_own_moment(half, tmp_path, monkeypatch):
    """Orbax writes in the background, while the run goes on and adds to what it has."""
    _, _, whole = half
    write = JsonCheckpointHandler._save_fn

    async def write_late(*arguments):
        time.sleep(1)
        await write(*arguments)

    config = toys.points_config(methods=("ftn_slow",), **(SETTINGS | {"checkpoint.every_steps": 10}))
    asked = itertools.count()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(JsonCheckpointHandler, "_save_fn", write_late)
        train_and_evaluate(config, tmp_path, stop=lambda: next(asked) >= 1)
    early, late = sorted(checkpoints(tmp_path), key=lambda path: int(path.name))
    assert (early.name, late.name) == ("10", "20")
    shutil.rmtree(late)
    train_and_evaluate(config, tmp_path)
    found = numbers(tmp_path)
    assert (found["methods"], found["curves"]) == (whole["methods"], whole["curves"])


# --- one run to a folder ---------------------------------------------------------------------------------------


def test_a_second_run_is_refused(half):
    config, stopped, _ = half
    with lock(stopped), pytest.raises(InputError, match=rf"in use by process {os.getpid()} on "):
        train_and_evaluate(config, stopped)


def test_a_dead_owner_holds_nothing(tmp_path):
    code = (
        f"import pathlib, time; from ftn_jax.runs.workdir import lock\n"
        f"with lock(pathlib.Path({str(tmp_path / 'run')!r})): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {owner.pid} on "), lock(tmp_path / "run"):
            pass
        owner.kill()
        owner.wait()
        with lock(tmp_path / "run"):
            pass


# --- the real command ------------------------------------------------------------------------------------------


# SIGTERM: training/test_processes.py; both to the members of a sweep: test_sweep.py.
@pytest.mark.slow
def test_ctrl_c_saves_and_names_the_command_that_goes_on(tmp_path):
    settings: dict = SETTINGS | {"stream.steps": 20000, "checkpoint.every_steps": 10**6}
    config = toys.points_config(methods=("ftn_slow",), **settings)
    arguments = command(config, tmp_path / "run")
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        while (
            not (tmp_path / "run" / "metrics.csv").exists() or (tmp_path / "run" / "metrics.csv").stat().st_size < 999
        ):
            assert run.poll() is None
            time.sleep(0.05)
        start = time.monotonic()
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert run.returncode == 130
    assert said.splitlines()[-1].startswith("ftn_jax: stopped by SIGINT; ")
    assert f"python -m ftn_jax.main {shlex.join(arguments[3:])}" in said
    saved = [int(path.name) for path in checkpoints(tmp_path / "run")]
    assert len(saved) == 1 and 0 < saved[0] < 20000


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(half, tmp_path):
    """A limit on the size of files stands for it."""
    config, stopped, whole = half
    workdir = pathlib.Path(shutil.copytree(stopped, tmp_path / "run"))
    arguments = command(config, workdir)

    # Nothing else of size is written: no compiled programs, which may be read.
    env = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000"}
    limited = ["bash", "-c", f"ulimit -f 4; exec {shlex.join(arguments)}"]
    done = subprocess.run(limited, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    # Threads of libraries may have the last word.
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ftn_jax: ")]
    assert line.startswith("ftn_jax: checkpoints in ") and "can't be written" in line, done.stderr
    # That of a block's end has no moments, and fits.
    assert {"50", "60"} <= {path.name for path in checkpoints(workdir)}
    train_and_evaluate(config, workdir)
    assert numbers(workdir) == whole
