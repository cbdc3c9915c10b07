"""The whole way of a user's own tasks at toy size: train on files, stop and go on, add a task, recover, take away."""

import dataclasses
import gc
import itertools
import json
import pathlib
import shutil
import sys
import unittest.mock

import jax
import numpy as np
import pytest
import toys
from kills import numbers

import ftn_jax
from ftn_jax.cli import command, recover
from ftn_jax.cli import forget as forget_command
from ftn_jax.core.errors import InputError, Interrupted
from ftn_jax.methods import METHODS
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.forget import forget
from ftn_jax.runs.own_parts import import_part
from ftn_jax.training.loop import train_task


@pytest.fixture(scope="module")
def files(files_run):
    return files_run


def config_of(files, *names, **settings):
    paths = [str(files / f"{name}.jsonl") for name in names]
    own = {"checkpoint.every_steps": 10, "pool.modules": ("all-linear",)}
    return toys.jsonl_config(str(files / "base"), paths, **(own | settings))


@pytest.fixture(scope="module")
def two(files_run):
    return files_run / "run", json.loads((files_run / "run" / "results.json").read_text())


def test_the_report(files, two):
    workdir, results = two
    assert results["task_names"] == ["loud", "title"] and results["experiment"] == "jsonl"
    report = (workdir / "report.md").read_text()
    assert toys.table_cells(report, "The stream, task by task")[2:] == [
        ["loud", "48", "0", "0"],
        ["title", "48", "0", "0"],
    ]
    used = np.unique(results["methods"]["lora_ftn_reserve"]["masks"][0]).size
    pool = toys.table_cells(report, "The pool")[2]
    assert pool[:3] == ["LoRA-FTN-Reserve", "16", f"{used}.000"] and pool[4] == f"{16 - used}.000"


def test_a_run_on_files_that_is_stopped_ends_in_the_same_bits(files, two, tmp_path):
    stops = 0
    while True:
        asked = itertools.count()
        try:
            train_and_evaluate(config_of(files, "loud", "title"), tmp_path, stop=lambda asked=asked: next(asked) >= 2)
        except Interrupted:
            stops += 1
            continue
        break
    assert stops >= 2
    stopped, whole = numbers(tmp_path), numbers(two[0])
    for found in (stopped, whole):
        del found["config"]["checkpoint"]  # which may be made more often
    assert stopped == whole


@pytest.mark.slow
def test_one_more_file_trains_it_alone(files, two, tmp_path):
    workdir = shutil.copytree(two[0], tmp_path / "run")
    before = ftn_jax.load(workdir)
    shutil.copy(files / "title.jsonl", files / "again.jsonl")  # of a length that is compiled for
    with unittest.mock.patch("ftn_jax.runs.driver.train_task", side_effect=train_task) as spy:
        results = train_and_evaluate(config_of(files, "loud", "title", "again"), workdir)
    assert [call.args[5] for call in spy.call_args_list] == [2]
    assert results["task_names"] == ["loud", "title", "again"]
    after = ftn_jax.load(workdir)
    kept = np.setdiff1d(np.arange(16), after.stored["again"])
    for old, new in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(np.asarray(new)[kept], np.asarray(old)[kept])
        assert (np.asarray(new)[after.stored["again"]] != np.asarray(old)[after.stored["again"]]).any()


def test_a_pool_that_is_full(files, tmp_path):
    names = ("loud", "title", "twice")
    with pytest.raises(
        InputError, match=r"config\.pool\.size is 16, expected at least 18 since lora_ftn_reserve .*or another method"
    ):
        train_and_evaluate(config_of(files, *names, **{"configurer.k": 6}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_methods_that_train_on_several_files_at_once(files, tmp_path):
    """Stopped after the first file's block or not: Joint knows the second file then, Replay keeps the first one's."""
    methods = ("joint", "replay", "lora_naive")
    config = config_of(files, "loud", "title", methods=methods, **{"variants.replay.examples": 20, "stream.steps": 60})
    whole = train_and_evaluate(config, tmp_path / "whole")["methods"]
    asked = itertools.count()
    # Replay's own block that is stopped: contracts/test_methods.py.
    config.methods = ("joint",)
    with pytest.raises(Interrupted):
        train_and_evaluate(config, tmp_path / "half", stop=lambda: next(asked) >= 6)
    train_and_evaluate(config, tmp_path / "half")
    half, all_three = numbers(tmp_path / "half"), numbers(tmp_path / "whole")
    assert half["methods"]["joint"] == all_three["methods"]["joint"]
    assert half["curves"] == [line for line in all_three["curves"] if line.startswith(("joint", "method"))]
    ce = {name: np.asarray(whole[name]["reconfig"]["matrix"], float)[0] for name in methods}
    assert ce["joint"][0, 1] < ce["lora_naive"][0, 1] - 0.5  # of the second task, before its own block
    assert ce["replay"][1, 0] < ce["lora_naive"][1, 0] - 0.5  # of the first task, after the other one's block


def test_recovery_tells_whether_the_examples_are_of_a_trained_task(two):
    model = ftn_jax.load(two[0])
    assert set(model.own) == {"loud", "title"}
    for write, mine in ((str.upper, True), (str.title, True), (lambda text: text[::-1], False)):
        found = model.recover([(f"{text}\n", write(text)) for text in toys.SHORT[:8]])
        assert found.mine is mine
        said = "may be of a trained task" if mine else "match none of the trained tasks"
        assert f"these examples {said}" in recover.describe(found, 16, 8)
    assert model.forget("loud").recover([(f"{text}\n", text.upper()) for text in toys.SHORT[:8]]).mine is False
    adapted = dataclasses.replace(model, stored=model.stored | {"adapter": np.arange(4)})
    assert adapted.recover([("a\n", "b")] * 4).mine is None  # of an adapter's own losses nothing is known


def run_command(capsys, main, *arguments):
    with pytest.raises(SystemExit) as ended:
        command.run(main, ["command", *arguments])
        sys.exit(0)
    said = capsys.readouterr()
    return ended.value.code, said.err if ended.value.code else said.out


def run_recover(capsys, *arguments):
    return run_command(capsys, recover.main, *arguments)


def test_the_command_recovers_writes_and_exports(files, two, tmp_path, capsys):
    support = tmp_path / "support.jsonl"
    support.write_text("\n".join((files / "loud.jsonl").read_text().splitlines()[:6]))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a fox\\n"}\n{"prompt": "the cat\\n", "completion": "unused"}\n')
    arguments = [f"--workdir={two[0]}", f"--support={support}", f"--export={tmp_path / 'out'}"]
    code, said = run_recover(capsys, *arguments, "--prompt=one", f"--prompts={prompts}", "--tokens=4")
    assert not code
    model = ftn_jax.load(two[0])
    pairs = [(f"{text}\n", text.upper()) for text in toys.SHORT[:6]]
    found = model.recover(pairs)
    lines = said.splitlines()
    assert lines[: len(recover.describe(found, 16, 6))] == recover.describe(found, 16, 6)
    given = ["one", "a fox\n", "the cat\n"]
    for prompt, text in zip(given, model.generate(given, found, tokens=4), strict=True):
        assert f"\n{prompt}{text}\n" in said
    origin = json.loads((tmp_path / "out" / "ftn_mask.json").read_text())
    assert origin["active"] == found.active.tolist() and origin["method"] == "lora_ftn_reserve"
    code, said = run_recover(capsys, *arguments)
    assert code == 1 and "exists already" in said


def test_text_is_printed_as_it_is_and_sampling_has_a_seed_of_its_own(files, two, tmp_path, capsys):
    support = tmp_path / "support.jsonl"
    support.write_text("\n".join((files / "loud.jsonl").read_text().splitlines()[:6]))
    arguments = [f"--workdir={two[0]}", f"--support={support}"]
    prompt = "1:100:5\tx\r [bold]y[/bold] \\[" + "w " * 20
    _, said = run_recover(capsys, *arguments, f"--prompt={prompt}", "--tokens=2")
    assert f"\n{prompt}" in said
    sampled = []
    for seed in ([], [], ["--sampling_seed=7"], ["--sampling_seed=7"]):
        _, said = run_recover(capsys, *arguments, "--prompt=one", "--tokens=12", "--temperature=3", *seed)
        sampled.append(said.partition("sampled with --sampling_seed=")[2].partition("\n"))
    assert sampled[0][0] != sampled[1][0] and sampled[0][2] != sampled[1][2]
    assert sampled[2] == sampled[3] and sampled[2][0] == "7"


@pytest.mark.slow
def test_a_base_that_has_moved_is_named_and_held_to_its_hash(files, tmp_path, monkeypatch, capsys):
    """A run with a relative base is used from another folder, and after the base has moved, by every command."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(files / "base", home / "base")
    monkeypatch.chdir(home)
    config = config_of(files, "loud", "title", base="base", **{"stream.steps": 10})
    workdir = tmp_path / "run"
    first = train_and_evaluate(config, workdir)
    assert first["base_model"]["name"] == str(home / "base")
    monkeypatch.chdir(tmp_path)
    assert set(ftn_jax.load(workdir).stored) == {"loud", "title"}
    moved = (home / "base").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="can't be loaded: if it has moved, name its place with --base"):
        ftn_jax.load(workdir)
    assert set(ftn_jax.load(workdir, base=str(moved)).stored) == {"loud", "title"}
    with pytest.raises(InputError, match=r"was trained on base .*, and the weights of .packaged. differ"):
        ftn_jax.load(workdir, base="packaged")
    longer = config_of(files, "loud", "title", "twice", base=str(moved), **{"stream.steps": 10})
    assert train_and_evaluate(longer, workdir)["base_model"]["name"] == str(moved)
    with pytest.raises(InputError, match=r"belongs to another config \(config\.base"):
        train_and_evaluate(config_of(files, "loud", "title", base="packaged", **{"stream.steps": 10}), workdir)
    moved.rename(tmp_path / "again")
    with pytest.raises(InputError, match="can't be loaded"):
        forget(workdir, "twice")
    assert any("gone" in line for line in forget(workdir, "twice", base=str(tmp_path / "again")))
    support = tmp_path / "support.jsonl"
    support.write_text("\n".join((files / "loud.jsonl").read_text().splitlines()[:6]))
    code, said = run_recover(capsys, f"--workdir={workdir}", f"--support={support}", f"--base={tmp_path / 'again'}")
    assert not code and "under the recovered mask" in said


MINE = """
import ftn_jax
from ftn_jax.methods import masked
from ftn_jax.core.rules import one_of

def mine(configurer, *, kernel):
    return masked.reserve(configurer, kernel={"rbf": 3}[kernel], lateral_steps=2)

ftn_jax.register_method("mine", mine, {"kernel": one_of("rbf")})
"""


@pytest.mark.slow
def test_a_method_of_ones_own_is_known_to_the_other_commands(files, tmp_path, capsys, monkeypatch):
    file, workdir = tmp_path / "my methods.py", tmp_path / "run"
    file.write_text(MINE)
    import_part(str(file))
    config = config_of(files, "loud", "title", methods=("mine",), **{"variants.mine": {"kernel": "rbf"}})
    results = train_and_evaluate(config, workdir)
    assert results["parts"] == {"method mine": str(file)}
    with pytest.raises(InputError, match=r"config\.variants\.mine\.kernel is 3, expected one of rbf"):
        train_and_evaluate(config_of(files, "loud", methods=("mine",), **{"variants.mine": {"kernel": 3}}), workdir)
    support = tmp_path / "support.jsonl"
    support.write_text("\n".join((files / "loud.jsonl").read_text().splitlines()[:6]))
    for command_of, flags in ((recover, [f"--support={support}"]), (forget_command, ["--task=title"])):
        monkeypatch.delitem(METHODS, "mine")  # as in another process
        monkeypatch.delitem(sys.modules, file.stem)
        flags = [f"--workdir={workdir}", *flags]
        code, said = run_command(capsys, command_of.main, *flags)
        assert code == 1 and said == (
            f"ftn_jax: workdir {workdir} uses method 'mine', which is not part of this package; {file} registered it: "
            f"import that module first, on the command line with --import={file}\n"
        )
        code, said = run_command(capsys, command_of.main, *flags, f"--import={file}")
        assert not code, said
    code, said = run_command(capsys, recover.main, *flags[:1], f"--support={support}", "--import=no.such")
    assert code == 1 and said == "ftn_jax: --import=no.such: ModuleNotFoundError: No module named 'no'\n"


def test_a_run_of_a_later_version_is_refused(two, tmp_path):
    workdir = pathlib.Path(shutil.copytree(two[0], tmp_path / "run"))
    held = json.loads((workdir / "results.json").read_text())
    assert held["format"] == 2
    (workdir / "results.json").write_text(json.dumps(held | {"format": 3}))
    with pytest.raises(InputError, match="has format 3, expected at most 2: a later version of ftn_jax wrote it"):
        ftn_jax.load(workdir)


def test_a_file_that_grew_is_told(files, two, tmp_path, caplog):
    workdir = shutil.copytree(two[0], tmp_path / "run")
    config = config_of(files, "loud", "title")
    train_and_evaluate(config, workdir)
    assert "have changed" not in caplog.text
    before, file = (files / "title.jsonl").read_bytes(), files / "title.jsonl"
    try:
        file.write_bytes(before + b'\n{"prompt": "a", "completion": "b"}')
        results = train_and_evaluate(config, workdir)
        told = [line for line in caplog.messages if "have changed since" in line]
        assert len(told) == 1 and told[0].startswith("title: its data have changed") and "--fresh" in told[0]
        assert results["methods"] == two[1]["methods"]
    finally:
        file.write_bytes(before)


# Of several files that orbax can't read it raises one error and leaves the others to nobody.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_command_says_that_no_checkpoint_can_be_read(files, two, tmp_path, capsys):
    workdir = pathlib.Path(shutil.copytree(two[0], tmp_path / "run"))
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    support = tmp_path / "support.jsonl"
    support.write_text("\n".join((files / "loud.jsonl").read_text().splitlines()[:6]))
    code, said = run_recover(capsys, f"--workdir={workdir}", f"--support={support}")
    assert code == 1 and said.startswith("ftn_jax: no checkpoint in ") and said.count("\n") == 1
    gc.collect()


def test_an_adapter_of_ones_own_is_found_again(files, two, tmp_path):
    """Exported from one model, put into another that has never seen the task."""
    model = ftn_jax.load(two[0])
    model.export_peft(model.stored["title"], tmp_path / "titles")
    fresh = train_and_evaluate(config_of(files, "loud", **{"stream.steps": 10}), tmp_path / "run")
    assert fresh["task_names"] == ["loud"]
    other = ftn_jax.load(tmp_path / "run").with_adapter(tmp_path / "titles")
    pairs = [(f"{text}\n", text.title()) for text in toys.SHORT[:8]]
    np.testing.assert_allclose(
        other.example_losses(pairs, other.stored["titles"]),
        model.example_losses(pairs, model.stored["title"]),
        rtol=1e-4,
    )
    assert other.recover(pairs).overlap == {"loud": 0.0, "titles": 1.0}
    assert other.forget("loud").recover(pairs).overlap == {"titles": 1.0}
    with pytest.raises(InputError, match="a task is named 'titles' already"):
        other.with_adapter(tmp_path / "titles")
    assert pathlib.Path(tmp_path / "titles" / "adapter_config.json").exists()
