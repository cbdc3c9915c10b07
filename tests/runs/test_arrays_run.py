"""A stream of files of arrays from end to end: stopped and gone on, made longer, used, and taken a task from."""

import json
import logging
import pathlib

import jax
import numpy as np
import pytest
import toys

import ftn_jax
from ftn_jax.cli import command, ftn, recover
from ftn_jax.core.errors import InputError, Interrupted
from ftn_jax.core.rules import flatten
from ftn_jax.runs.build import make_problem
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.forget import forget
from ftn_jax.runs.plan import make_plan
from ftn_jax.streams import STREAMS, arrays_stream


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return toys.write_arrays(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """(workdir, results) of all three tasks, trained on at once."""
    workdir = tmp_path_factory.mktemp("arrays") / "run"
    return workdir, train_and_evaluate(toys.arrays_config(files), workdir)


def numbers(results):
    timed = ("seconds", "cost")
    return {name: {k: v for k, v in entry.items() if k not in timed} for name, entry in results["methods"].items()}


def test_what_a_run_on_files_tells(run, files):
    workdir, results = run
    assert results["task_names"] == ["task0", "task1", "task2"]
    assert (results["metric"], results["experiment"]) == ("accuracy", "arrays")
    assert results["spec"] == {"inputs": 3, "classes": 3, "tokens": False}
    assert list(results["contents"]) == results["task_names"]
    assert [sum(counts) for counts in zip(*results["task_facts"].values(), strict=True)] == [120] * 3
    entry = results["methods"]["ftn_reserve"]
    assert entry["stored"]["fm"]["mean"] == 0 and entry["reconfig"]["final"]["mean"] > 0.6
    assert "| task1 |" in (workdir / "report.md").read_text()


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(run, files, tmp_path):
    asked = iter(range(10**6))
    with pytest.raises(Interrupted):
        train_and_evaluate(toys.arrays_config(files), tmp_path, stop=lambda: next(asked) >= 6)
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints" / "ftn_reserve").glob("[0-9]*"))
    assert saved and 40 < saved[-1] < 120 and saved[-1] % 40  # inside a task
    assert numbers(train_and_evaluate(toys.arrays_config(files), tmp_path)) == numbers(run[1])


@pytest.mark.slow
def test_tasks_of_one_padded_size_share_the_program_that_trains_them(files, tmp_path, caplog):
    config = toys.arrays_config(files, **{"stream.batch": 9})  # which nothing is compiled for yet
    tasks = make_problem(config, None).stream.tasks
    padded = {(len(task.train.y), len(task.recovery.y)) for task in tasks}
    assert len(padded) < len({len(task.held_out.y) for task in tasks}) == 3
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        train_and_evaluate(config, tmp_path)
    compiled = [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    assert sum("train_chunk" in message for message in compiled) == len(padded)


def test_a_file_that_is_appended_is_trained_alone(run, files, tmp_path):
    train_and_evaluate(toys.arrays_config(files[:2]), tmp_path)
    longer = numbers(train_and_evaluate(toys.arrays_config(files), tmp_path))["ftn_reserve"]
    whole = numbers(run[1])["ftn_reserve"]
    assert longer["masks"] == whole["masks"]
    assert np.array_equal(*(np.array(entry["stored"]["matrix"])[:, -1] for entry in (longer, whole)))


@pytest.mark.slow
def test_a_method_that_keeps_something_for_each_task_takes_no_file_later(files, tmp_path):
    name = "hat"
    short = toys.arrays_config(files[:2], methods=(name,), **{"stream.steps": 4, "seeds": (5,)})
    train_and_evaluate(short, tmp_path)
    longer = toys.arrays_config(files, methods=(name,), **{"stream.steps": 4, "seeds": (5,)})
    with pytest.raises(InputError, match=f"{name} keeps state for each of the 2 tasks .* now there are 3"):
        train_and_evaluate(longer, tmp_path)


@pytest.mark.slow
def test_a_class_of_a_later_file(files, tmp_path):
    config = toys.arrays_config(files[:1])
    with np.load(files[0]) as held:
        np.savez(tmp_path / "later.npz", x=held["x"], y=held["y"] + 2)
    later = (*config.stream.files, str(tmp_path / "later.npz"))
    train_and_evaluate(config, tmp_path / "tight")
    held = (tmp_path / "tight" / "results.json").read_bytes()
    config.stream.files = later
    with pytest.raises(
        InputError,
        match=r"the data are points of 3 inputs and 5 classes, and the workdir's pool was made "
        r"for points of 3 inputs and 3 classes: name another --workdir.*\(config\.stream\.classes leaves",
    ):
        train_and_evaluate(config, tmp_path / "tight")
    assert (tmp_path / "tight" / "results.json").read_bytes() == held
    roomy = toys.arrays_config(later[:1], **{"stream.classes": 6})
    train_and_evaluate(roomy, tmp_path / "roomy")
    roomy.stream.files = later
    results = train_and_evaluate(roomy, tmp_path / "roomy")
    assert results["spec"]["classes"] == 6 and results["task_names"] == ["task0", "later"]


@pytest.mark.slow
def test_the_largest_class_is_forgotten(tmp_path):
    """The pool keeps the outputs that it has, though no file that is left needs them."""
    x = np.random.default_rng(1).standard_normal((120, 3))
    for name, top in (("few", 2), ("many", 6)):  # as many as above have programs
        np.savez(tmp_path / f"{name}.npz", x=x, y=(np.arange(120) + (x[:, 0] > 0)) % top)
    files = [str(tmp_path / f"{name}.npz") for name in ("few", "many")]
    train_and_evaluate(toys.arrays_config(files), tmp_path / "run")
    forget(tmp_path / "run", "many")
    results = train_and_evaluate(toys.arrays_config(files[:1]), tmp_path / "run")
    assert (results["task_names"], results["spec"]["classes"]) == (["few"], 6)
    assert ftn_jax.load(tmp_path / "run").pool.classes == 6


def test_a_trained_run_in_use(run, files):
    model, stream = ftn_jax.load(run[0]), make_problem(toys.arrays_config(files), None).stream
    last = np.array(run[1]["methods"]["ftn_reserve"]["stored"]["matrix"])[0, -1]
    for name, task, score in zip(stream.names, stream.tasks, last, strict=True):
        x, y = map(np.asarray, task.test())
        np.testing.assert_allclose((model.predict(x, name) == y).mean(), score, rtol=1e-6)
    support = stream.tasks[1].support(jax.random.key(0), 16)
    found = model.recover((np.asarray(support.x), np.asarray(support.y)))
    assert found.active.tolist() == model.stored["task1"].tolist() and found.fits


def test_the_command_recovers_from_a_file(run, files, tmp_path, capsys):
    with np.load(files[2]) as held:
        x, y = held["x"][:20], held["y"][:20]
        np.savez(tmp_path / "support.npz", x=x, y=y)
        np.savez(tmp_path / "few.npz", x=x[:3], y=y[:3])
        np.savez(tmp_path / "wide.npz", x=np.c_[x, x], y=y)
    recover.main(["recover", f"--workdir={run[0]}", f"--support={tmp_path / 'support.npz'}"])
    said = capsys.readouterr().out
    found = ftn_jax.load(run[0]).recover((x, y))
    assert said.startswith(
        f"loss of the 20 examples, cross-entropy in nats: {found.base_loss:.3f} under no component, {found.loss:.3f} "
        "under the recovered mask\n"
    )
    assert "  task2: 1.00" in said
    for flags, line in (
        ([f"--support={tmp_path / 'few.npz'}"], "few.npz has 3 examples, expected at least 4"),
        ([f"--support={tmp_path / 'wide.npz'}"], "wide.npz: inputs have shape (20, 6), expected (n, 3)"),
        ([f"--support={tmp_path / 'support.npz'}", "--export=out"], "--export is for language models, whose --support"),
    ):
        with pytest.raises(SystemExit):
            command.run(recover.main, ["recover", f"--workdir={run[0]}", *flags])
        assert line in capsys.readouterr().err


@pytest.mark.slow
def test_the_main_command_takes_the_config_by_its_name(files, tmp_path, capsys):
    toy = toys.arrays_config(files)
    names = ("pool.size", "pool.width", "configurer.k", "configurer.support", "stream.batch", "optimizer.learning_rate")
    names += ("stream.recovery", "stream.test", "stream.steps", "variants.ftn_reserve.lateral_steps", "seeds")
    flags = [f"--config.{name}={flatten(toy)[f'config.{name}']}" for name in names]
    listed = "('{}','{}')".format(*files[:2])
    ftn.run("train", ["ftn", "--config=arrays", f"--config.stream.files={listed}", *flags, f"--workdir={tmp_path}"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["task_names"] == ["task0", "task1"] and results["seeds"] == [0]
    assert "The arrays stream, 2 tasks" in capsys.readouterr().out


@pytest.mark.slow
def test_arrays_in_memory_through_a_stream_of_ones_own(files, tmp_path):
    data = {}
    for file in files[::2]:
        with np.load(file) as held:
            data[pathlib.Path(file).stem] = held["x"], held["y"]

    def mine(context, names):
        return arrays_stream({name: data[name] for name in names}, recovery=0.2, test=0.2)

    ftn_jax.register_stream("mine", mine, {})
    try:
        config = toys.arrays_config(files)
        stream = {key: config.stream[key] for key in ("steps", "batch", "boundaries", "evaluate")}
        config.stream = stream | {"name": "mine", "tasks": tuple(data)}
        found = train_and_evaluate(config, tmp_path / "memory")
    finally:
        del STREAMS["mine"]
    expected = train_and_evaluate(toys.arrays_config(files[::2]), tmp_path / "files")
    assert numbers(found) == numbers(expected)


@pytest.mark.slow
def test_boundaries_that_nobody_announces(files, tmp_path):
    config = toys.arrays_config(files, **{"stream.boundaries": "unknown", "stream.evaluate": "seen", "pool.grow": True})
    results = train_and_evaluate(config, tmp_path)
    assert len(results["methods"]["ftn_reserve"]["boundaries"]) == 1


def test_the_plan_of_a_run(files):
    plan = make_plan(toys.arrays_config(files, seeds=2))
    # A network of 3 inputs, 4 hidden units and 1 output with their biases, and 3 of the readout.
    assert plan.parameters["components"] == 16 * (3 * 4 + 4 + 4 + 1 + 3)
    assert plan.held["data"] > 0
