"""Adapters that are imported and saved into a workdir: the same losses later, and no block trains them."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import toys

import ftn_jax
from ftn_jax.core.errors import InputError
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.forget import forget
from ftn_jax.runs.restore import read_saved
from ftn_jax.runs.workdir import read_results

PAIRS = [(f"{text}\n", text.title()) for text in toys.SHORT[:8]]
SEEDS = (5, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, three task files, and an adapter that was exported from a run of its own."""
    folder = tmp_path_factory.mktemp("imported")
    toys.save_toy_base(folder / "base", n_positions=64)
    toys.write_tasks(folder)
    shutil.copy(folder / "loud.jsonl", folder / "again.jsonl")  # of a length that is compiled for
    train_and_evaluate(config_of(folder, "title", methods=("lora_ftn_reserve", "lora_ftn")), folder / "other")
    ftn_jax.load(folder / "other").export_peft("title", folder / "titles")
    train_and_evaluate(config_of(folder, "loud"), folder / "loud")
    return folder


def config_of(folder, *names, **settings):
    paths = [str(folder / f"{name}.jsonl") for name in names]
    short = {"stream.steps": 10, "seeds": SEEDS, "methods": ("lora_ftn_reserve",)}
    return toys.jsonl_config(str(folder / "base"), paths, **(short | settings))


def rows_of(workdir, name):
    """The adapter's components [E, k], and their params [E, k, ...]."""
    saved = read_saved(workdir, read_results(workdir), "lora_ftn_reserve")
    active = np.asarray(saved.progress.imported[name].active)
    seeds = np.arange(len(active))[:, None]
    return active, jax.tree.map(lambda leaf: np.asarray(leaf)[seeds, active], saved.progress.state.params)


@pytest.mark.slow
def test_a_run_that_begins_with_an_adapter(folder, tmp_path):
    config = config_of(folder, "loud", **{"pool.adapters": (str(folder / "titles"),)})
    results = train_and_evaluate(config, tmp_path / "run")
    entry = results["methods"]["lora_ftn_reserve"]
    model = ftn_jax.load(tmp_path / "run")
    assert entry["imported"] == {"titles": [model.stored["titles"].tolist()] * 2}
    assert not np.isin(model.stored["loud"], model.stored["titles"]).any()
    base = ftn_jax.load(folder / "other").with_adapter(folder / "titles")
    np.testing.assert_allclose(model.example_losses(PAIRS, "titles"), base.example_losses(PAIRS, "titles"), rtol=1e-5)
    assert model.recover(PAIRS).overlap["titles"] == 1
    with pytest.raises(InputError, match=r"and lora_naive would train their components: expected a method that res"):
        train_and_evaluate(config_of(folder, "loud", methods=("lora_naive",), **{"pool.adapters": ("x",)}), tmp_path)


@pytest.mark.slow
def test_an_adapter_is_saved_and_a_longer_run_trains_beside_it(folder, tmp_path):
    workdir = shutil.copytree(folder / "loud", tmp_path / "run")
    before = read_results(workdir)
    model = ftn_jax.load(workdir, seed=2).with_adapter(folder / "titles")
    wanted = model.example_losses(PAIRS, "titles")
    assert model.save().imported == ()
    for seed in SEEDS:  # the others have the same rows, in free components of their own
        loaded = ftn_jax.load(workdir, seed=seed)
        assert list(loaded.stored) == ["loud", "titles"]
        assert not np.isin(loaded.stored["titles"], loaded.stored["loud"]).any()
        found = loaded.example_losses(PAIRS, "titles")
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        if seed == 2:
            np.testing.assert_array_equal(found, wanted)
            np.testing.assert_array_equal(loaded.stored["titles"], model.stored["titles"])
            assert loaded.recover(PAIRS).overlap == {"loud": 0.0, "titles": 1.0}
    active, rows = rows_of(workdir, "titles")
    results = json.loads((workdir / "results.json").read_text())
    entry = results["methods"]["lora_ftn_reserve"]
    assert entry.pop("imported") == {"titles": active.tolist()}
    assert entry == before["methods"]["lora_ftn_reserve"]  # the tasks' figures are as they were

    longer = train_and_evaluate(config_of(folder, "loud", "again"), workdir)
    later, same = rows_of(workdir, "titles")
    np.testing.assert_array_equal(later, active)
    jax.tree.map(np.testing.assert_array_equal, same, rows)
    entry = longer["methods"]["lora_ftn_reserve"]
    assert entry["imported"] == {"titles": active.tolist()} and longer["task_names"] == ["loud", "again"]
    for e, masks in enumerate(entry["masks"]):
        assert len(np.unique([*masks[0], *masks[1], *active[e]])) == 12
    told = toys.table_cells((workdir / "report.md").read_text(), "Imported adapters")
    assert told[2:] == [["LoRA-FTN-Reserve", "titles", "4"]]

    assert forget(workdir, "titles", dry_run=True)[0] == (
        "would go: lora_ftn_reserve: the components of adapter titles in each seed"
    )
    forget(workdir, "titles")
    assert list(ftn_jax.load(workdir).stored) == ["loud", "again"]
    assert "imported" not in read_results(workdir)["methods"] and "titles" not in (workdir / "results.json").read_text()
    fresh = read_saved(workdir, read_results(workdir), "lora_ftn_reserve").progress.state.params
    gone = jax.tree.map(lambda leaf: np.asarray(leaf)[np.arange(2)[:, None], active], fresh)
    assert not any(np.any(pair["b"]) for pair in gone.values())  # as before any training
    with pytest.raises(InputError, match="has no task 'titles', known: again, loud"):
        forget(workdir, "titles")


@pytest.mark.slow
def test_what_can_t_be_saved_is_one_line(folder):
    model = ftn_jax.load(folder / "other")
    with pytest.raises(InputError, match="no adapter was imported"):
        model.save()
    with pytest.raises(InputError, match=r"'title' is forgotten in this model alone: .*ftn_jax.forget --workdir=.*"):
        model.with_adapter(folder / "titles").forget("title").save()
    with pytest.raises(InputError, match="no adapter was imported"):  # one that was taken out again
        model.with_adapter(folder / "titles").forget("titles").save()
    with pytest.raises(InputError, match="lora_ftn reserves no components"):
        ftn_jax.load(folder / "other", "lora_ftn").with_adapter(folder / "titles").save()
    assert list(ftn_jax.load(folder / "other").stored) == ["title"]


@pytest.mark.slow
def test_a_workdir_in_use_is_one_line(folder):
    model = ftn_jax.load(folder / "loud").with_adapter(folder / "titles")
    code = "import pathlib, sys\nfrom ftn_jax.runs.workdir import lock\nwith lock(pathlib.Path(sys.argv[1])):\n"
    code += "    print('held', flush=True)\n    sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "loud")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"is in use by process {other.pid}") as error:
            model.save()
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_workdir_that_has_trained_since_is_refused(folder, tmp_path):
    shutil.copytree(folder / "loud", tmp_path, dirs_exist_ok=True)
    model = ftn_jax.load(tmp_path).with_adapter(folder / "titles")
    model.save()
    with pytest.raises(InputError, match="has a task or adapter named 'titles' already"):
        model.save()
    forget(tmp_path, "titles")
    train_and_evaluate(config_of(folder, "loud", "again", "title"), tmp_path)  # takes what was free
    with pytest.raises(InputError, match="has trained since this model was loaded, and has given the components"):
        model.save()
    with pytest.raises(InputError, match="a task is named 'title', and so is an adapter"):
        (folder / "titles").rename(folder / "title")
        try:
            shutil.copytree(folder / "loud", tmp_path / "named")
            ftn_jax.load(tmp_path / "named").with_adapter(folder / "title").save()
        finally:
            (folder / "title").rename(folder / "titles")
        train_and_evaluate(config_of(folder, "loud", "title"), tmp_path / "named")


@pytest.mark.slow
def test_tasks_for_which_an_adapter_leaves_no_room_are_refused(folder, tmp_path):
    """Sixteen components are room for four tasks of four, or for three and an adapter of as many."""
    shutil.copytree(folder / "loud", tmp_path, dirs_exist_ok=True)
    ftn_jax.load(tmp_path).with_adapter(folder / "titles").save()
    with pytest.raises(InputError, match=r"adapters \(titles\) leave fewer than config.configurer.k = 4 components"):
        train_and_evaluate(config_of(folder, "loud", "again", "title", "twice"), tmp_path)
