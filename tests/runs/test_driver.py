"""The driver from end to end at toy size: results, what a workdir keeps, and how a run stops."""

import csv
import functools
import io
import json
import logging
import pathlib
import shutil

import numpy as np
import pytest
import rich.console
import toys

import ftn_jax
from ftn_jax.core import metrics
from ftn_jax.core.errors import InputError, NonFiniteScore
from ftn_jax.models import pretrained
from ftn_jax.report.paper import METHOD_NAMES
from ftn_jax.runs import driver as experiment
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.testing import counted_compilations
from ftn_jax.training.evaluation import Row

TASKS = ("lower", "reverse_words", "pirate")
METHODS = ("lora_ftn", "lora_fixed", "lora_bank", "lora_naive")
SEEDS = (5, 2)


@pytest.fixture(scope="module")
def config_of(base):
    return functools.partial(toys.styles_config, base)


@pytest.fixture(scope="module")
def run(config_of, tmp_path_factory):
    """A finished workdir: two methods first, then all four."""
    workdir = tmp_path_factory.mktemp("run") / "all"
    train_and_evaluate(config_of(methods=("lora_naive", "lora_ftn")), workdir)
    first = (workdir / "results.json").read_text()
    out = io.StringIO()
    results = train_and_evaluate(config_of(), workdir, console=rich.console.Console(file=out, width=120))
    return workdir, results, first, out.getvalue()


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the finished workdir."""
    return pathlib.Path(shutil.copytree(run[0], tmp_path / "copy"))


def test_results_are_what_the_file_holds(run):
    workdir, results, _, _ = run
    assert json.loads((workdir / "results.json").read_text()) == results
    keys = "format experiment base_model config environment task_names metric seeds methods facts task_facts"
    assert set(results) == {*keys.split(), "contents", "parts", "spec"}
    assert (results["seeds"], results["task_names"]) == ([5, 2], list(TASKS))
    assert (results["metric"], results["facts"]) == ("cross_entropy", {})
    assert len(results["base_model"]["hash"]) == 16


@pytest.mark.parametrize("name", METHODS)
def test_the_entry_of_a_method(run, name):
    entry = run[1]["methods"][name]
    keys = "oracle size k grid untrained stored reconfig masks overlap recovered samples seconds cost"
    assert set(entry) == set(keys.split())
    size, k, grid = {"lora_bank": (4, 1, 2), "lora_naive": (16, 16, 4)}.get(name, (16, 4, 4))
    assert (entry["size"], entry["k"], entry["grid"]) == (size, k, grid)
    masks = np.asarray(entry["masks"])
    assert masks.shape == np.asarray(entry["recovered"]).shape == (2, 3, k) and masks.min() >= 0 and masks.max() < size
    assert (np.diff(masks) > 0).all()
    overlap = [[[len(set(a) & set(b)) / k for b in seed] for a in seed] for seed in entry["masks"]]
    np.testing.assert_allclose(entry["overlap"], overlap)
    for protocol, undefined in (("stored", 3), ("reconfig", 0)):
        block = entry[protocol]
        assert set(block) == {"matrix", "final", "fm", "fm_rise", "bwt", "fwt", "anytime", "exact_match"}
        matrix = np.asarray(block["matrix"], float)
        assert matrix.shape == (2, 3, 3)
        assert all(np.isnan(matrix[:, i, j]).all() == (undefined > 0 and j > i) for i in range(3) for j in range(3))
        # ln 600 = 6.4 is what a guess among the vocabulary costs.
        assert 0 < np.nanmin(matrix) and np.nanmax(matrix) < 40
        last = matrix[:, -1].mean(axis=1)
        assert block["final"] == pytest.approx({"mean": last.mean(), "std": last.std(ddof=1)})
        assert block["fm"] == block["fm_rise"] == metrics.mean_std([metrics.fm(m, "cross_entropy") for m in matrix])
        matches = np.asarray(block["exact_match"]["matrix"], float)
        assert matches.shape == (2, 3, 3) and 0 <= np.nanmin(matches) and np.nanmax(matches) <= 1
    assert [sample["task"] for sample in entry["samples"]] == list(TASKS)
    assert entry["samples"][0]["target"] == entry["samples"][0]["prompt"].lower().removesuffix("\n")
    assert all(seconds >= 0 for seconds in entry["seconds"].values())


def test_samples_are_what_the_loaded_model_writes_under_the_recovered_masks(run):
    """Which is held to a literal loop in test_model.py; under each other's masks it writes something else."""
    entry, model = run[1]["methods"]["lora_ftn"], ftn_jax.load(run[0])
    samples, masks = entry["samples"], entry["recovered"][0]
    prompts = [sample["prompt"] for sample in samples]
    written = [sample["output"] for sample in samples]
    assert written == model.generate(prompts, masks, tokens=32)  # as many as the longest target has, padded
    assert written != model.generate(prompts, masks[1:] + masks[:1], tokens=32)


def test_the_oracle_forgets_exactly_nothing(run):
    entry = run[1]["methods"]["lora_fixed"]
    assert entry["masks"] == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]] * 2
    for protocol in ("stored", "reconfig"):
        assert entry[protocol]["fm"] == {"mean": 0.0, "std": 0.0}
    stored, reconfig = (np.asarray(entry[p]["matrix"], float) for p in ("stored", "reconfig"))
    known = np.tril(np.ones((3, 3), bool))
    np.testing.assert_array_equal(stored[:, known], reconfig[:, known])


def test_before_its_training_an_oracle_s_task_is_answered_by_the_base(run):
    """Its own components' B is zero until then. So b are cells of its matrix, and forward transfer is exactly zero."""
    methods = run[1]["methods"]
    fixed = methods["lora_fixed"]
    matrix = np.asarray(fixed["reconfig"]["matrix"])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        np.testing.assert_array_equal(np.asarray(fixed["untrained"])[:, j], matrix[:, i, j])
    assert fixed["reconfig"]["fwt"] == {"mean": 0.0, "std": 0.0}
    assert fixed["stored"]["fwt"] == {"mean": None, "std": None}
    for name, method in methods.items():  # b is not of the method, but for rounding
        np.testing.assert_allclose(method["untrained"], fixed["untrained"], rtol=1e-4)
        b, matrices = np.asarray(method["untrained"]), np.asarray(method["reconfig"]["matrix"])
        gains = [(b[e, 1] - r[0, 1] + b[e, 2] - r[1, 2]) / 2 for e, r in enumerate(matrices)]
        assert method["reconfig"]["fwt"]["mean"] == pytest.approx(np.mean(gains)), name


# A component of the toy pool is A [2, 24] and B [2, 72] in one layer, 192 parameters.
@pytest.mark.parametrize("name, components", [("lora_ftn", 4), ("lora_fixed", 4), ("lora_bank", 4), ("lora_naive", 16)])
def test_what_a_task_costs(run, name, components):
    workdir, results, _, _ = run
    entry = results["methods"][name]
    cost = entry["cost"]
    size = components * 192
    assert (cost["parameters"], cost["bytes"], cost["trained"]) == (size, 4 * size, size)
    training = 2 * 3 * 20 * 4 / cost["examples_per_second"]  # seeds, tasks, steps, batch
    assert 0 < training < entry["seconds"]["run"]
    assert cost["memory"]["of"] == "process" and cost["memory"]["bytes"] > 50e6
    rows = toys.table_cells((workdir / "report.md").read_text(), "Cost")
    (row,) = (row for row in rows if row[0] == METHOD_NAMES[name])
    assert row[1:4] == [f"{size:,}", f"{4 * size:,}", f"{size:,}"]


def test_training_learns(run):
    entry = run[1]["methods"]["lora_fixed"]
    untrained = np.asarray(entry["reconfig"]["matrix"])[:, 0, 2]
    trained = np.asarray(entry["reconfig"]["matrix"])[:, 2, 2]
    assert (trained < untrained - 0.1).all()


def test_a_later_method_leaves_the_first_ones_bytes(run):
    workdir, results, first, _ = run
    assert list(json.loads(first)["methods"]) == ["lora_naive", "lora_ftn"]
    assert list(results["methods"]) == list(METHODS)
    for name in ("lora_naive", "lora_ftn"):
        entry = f'"{name}": {json.dumps(json.loads(first)["methods"][name])}'
        assert entry in first and entry in (workdir / "results.json").read_text()


def test_only_the_missing_methods_were_trained(run):
    lines = [line.split(":")[0] for line in run[3].splitlines() if " s, stored CE " in line]
    assert lines == ["lora_fixed", "lora_bank"]


def test_curves_without_double_rows(run):
    with (run[0] / "metrics.csv").open(newline="") as file:
        rows = [tuple(row.values())[:4] for row in csv.DictReader(file)]
    expected = {(m, str(s), t, step) for m in METHODS for s in SEEDS for t in TASKS for step in ("1", "10", "20")}
    assert len(rows) == len(expected) and set(rows) == expected
    assert {path.name for path in (run[0] / "tensorboard").iterdir()} == set(METHODS)
    assert all(len(list(path.iterdir())) == 1 for path in (run[0] / "tensorboard").iterdir())


def test_the_report(run):
    workdir, _, _, out = run
    report = (workdir / "report.md").read_text()
    assert out.index("lora_fixed: ") < out.index("Table 3.")
    assert "Table 3." in report and "LoRA-Fixed" in report
    assert {"matrices.png", "masks.png", "learning.png"} <= {path.name for path in (workdir / "figures").iterdir()}


def test_the_same_seed_gives_the_same_numbers(run, config_of, tmp_path):
    """And compiles nothing that this process has compiled before."""
    with counted_compilations() as count:
        again = train_and_evaluate(config_of(methods=("lora_ftn",)), tmp_path)["methods"]["lora_ftn"]
    assert count() == 0
    before = run[1]["methods"]["lora_ftn"]
    timed = ("seconds", "cost")
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in before.items() if k not in timed}


def fails(*args, **kwargs):
    raise AssertionError("this should not have been called")


def test_only_what_has_been_trained_is_evaluated(run, config_of, tmp_path):
    seen = train_and_evaluate(config_of(methods=("lora_ftn",), **{"stream.evaluate": "seen"}), tmp_path)
    entry, everything = (json.loads(json.dumps(results["methods"]["lora_ftn"])) for results in (seen, run[1]))
    everything["untrained"], everything["reconfig"]["fwt"] = None, {"mean": None, "std": None}
    for scores in (everything["reconfig"], everything["reconfig"]["exact_match"]):
        for matrix in scores["matrix"]:
            matrix[0][1:], matrix[1][2:] = [None, None], [None]
    assert entry | {"seconds": 0, "cost": 0} == everything | {"seconds": 0, "cost": 0}
    assert "No FWT for LoRA-FTN: tasks are scored only once they are trained" in (tmp_path / "report.md").read_text()
    assert len(list((tmp_path / "figures").glob("matrices.*"))) > 0


@pytest.mark.slow
def test_a_long_stream_is_scored_at_the_ends_of_blocks(run, config_of, tmp_path):
    """The same scores where there are any; what needs others is undefined or of those that there are."""
    results = train_and_evaluate(config_of(methods=("lora_ftn",), **{"stream.evaluate": "ends"}), tmp_path)
    entry, everything = results["methods"]["lora_ftn"], run[1]["methods"]["lora_ftn"]
    scored = np.eye(3, dtype=bool)
    scored[-1] = True
    for protocol in ("stored", "reconfig"):
        found, whole = (np.asarray(e[protocol]["matrix"], float) for e in (entry, everything))
        np.testing.assert_array_equal(found, np.where(scored, whole, np.nan))
        own, last = np.diagonal(found, axis1=1, axis2=2), found[:, -1]
        rise = (last - np.minimum(own, last))[:, :-1].mean(1)
        assert entry[protocol]["fm"] == pytest.approx({"mean": rise.mean(), "std": rise.std(ddof=1)})
        for key in ("final", "bwt"):
            assert entry[protocol][key] == everything[protocol][key]
        assert entry[protocol]["anytime"] == {"mean": None, "std": None}
    for key in ("masks", "recovered", "samples"):
        assert entry[key] == everything[key]
    assert "| LoRA-FTN | reconfig |" in (tmp_path / "report.md").read_text()


def test_a_finished_run_prints_its_tables_without_the_base(copy, config_of, monkeypatch):
    before = (copy / "results.json").read_text()
    monkeypatch.setattr(pretrained, "load", fails)
    out = io.StringIO()
    train_and_evaluate(config_of(), copy, console=rich.console.Console(file=out, width=120))
    assert "Table 3." in out.getvalue() and " s, stored" not in out.getvalue()
    assert (copy / "results.json").read_text() == before


def test_fewer_methods_than_are_finished_keep_the_others(copy, config_of):
    results = train_and_evaluate(config_of(methods=("lora_bank",)), copy)
    assert list(results["methods"]) == ["lora_bank", "lora_ftn", "lora_fixed", "lora_naive"]


def test_another_config_is_refused(copy, config_of):
    before = (copy / "results.json").read_text()
    with pytest.raises(InputError, match=r"config\.configurer\.k: 4 there, 2 now"):
        train_and_evaluate(config_of(**{"configurer.k": 2}), copy)
    assert (copy / "results.json").read_text() == before


def test_a_base_that_changed_under_its_name_is_refused(copy, base, config_of, monkeypatch):
    held = json.loads((copy / "results.json").read_text())
    del held["methods"]["lora_ftn"]
    held["base_model"]["hash"] = "0" * 16
    (copy / "results.json").write_text(json.dumps(held))
    with pytest.raises(InputError, match="was begun with base"):
        train_and_evaluate(config_of(), copy)


def test_auto_is_pinned_to_what_it_was(copy, base, config_of, monkeypatch):
    """The rest of a run that began as ``auto`` takes the base it began with, whatever auto would be now."""
    held = json.loads((copy / "results.json").read_text())
    del held["methods"]["lora_ftn"]
    held["config"]["base"] = "auto"
    (copy / "results.json").write_text(json.dumps(held))
    asked = []
    monkeypatch.setattr(experiment, "make_problem", lambda config, name, begun: asked.append(name) or fails())
    with pytest.raises(AssertionError):
        train_and_evaluate(config_of(base="auto"), copy)
    assert asked == [base]


def test_a_report_that_fails_costs_no_results(config_of, copy, monkeypatch):
    held = json.loads((copy / "results.json").read_text())
    (copy / "report.md").unlink()
    monkeypatch.setattr(experiment, "write_report", fails)
    with pytest.raises(AssertionError):
        train_and_evaluate(config_of(), copy)
    assert json.loads((copy / "results.json").read_text()) == held


def test_a_method_that_fails_costs_the_finished_ones_nothing(config_of, copy, monkeypatch):
    held = json.loads((copy / "results.json").read_text())
    for name in ("lora_bank", "lora_naive"):
        del held["methods"][name]
    (copy / "results.json").write_text(json.dumps(held))

    def run_method(problem, name, *_):
        if name == "lora_naive":
            raise KeyboardInterrupt
        return {"stub": name}

    monkeypatch.setattr(experiment, "run_method", run_method)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config_of(), copy)
    found = json.loads((copy / "results.json").read_text())["methods"]
    assert found == {"lora_ftn": held["methods"]["lora_ftn"], "lora_fixed": held["methods"]["lora_fixed"]} | {
        "lora_bank": {"stub": "lora_bank"}
    }


def test_a_metric_that_is_not_finite_stops_the_run(config_of, tmp_path, monkeypatch):
    def evaluate_row(*args, **kwargs):
        return Row(
            {"cross_entropy": np.array([[1.0, np.nan, np.nan]] * 2)}, {"cross_entropy": np.full((2, 3), np.inf)}, []
        )

    monkeypatch.setattr(experiment, "evaluate_row", evaluate_row)
    with pytest.raises(FloatingPointError) as caught:
        train_and_evaluate(config_of(methods=("lora_fixed",)), tmp_path)
    assert str(caught.value).startswith(
        "lora_fixed: reconfig cross_entropy is inf for seed 5, task 'lower' after training through task 'lower'; "
    )


@pytest.mark.slow  # on every Python: test_diagnosis.py
def test_a_loss_that_is_not_finite_stops_the_run(config_of, tmp_path):
    with pytest.raises(FloatingPointError) as caught:
        train_and_evaluate(config_of(methods=("lora_fixed",), **{"optimizer.learning_rate": 1e9}), tmp_path)
    message = str(caught.value)
    assert message.startswith("lora_fixed: loss is nan for seed 5, task 'lower', step ")
    assert "config.optimizer.learning_rate" in message
    # Nothing was saved, so the workdir belongs to nobody yet: a lower learning rate may use it.
    assert json.loads((tmp_path / "results.json").read_text())["methods"] == {}


def test_a_metric_that_is_not_finite_is_told_apart():
    stored = np.array([[1.0, np.nan], [2.0, np.nan]])  # of the second task there is none yet
    reconfig = np.array([[1.0, 4.0], [2.0, np.inf]])
    row = Row({"cross_entropy": stored}, {"cross_entropy": reconfig}, [])
    with pytest.raises(NonFiniteScore) as caught:
        experiment._check_finite(row, 0, [0, 1])
    error = caught.value
    assert (error.score, error.seed, error.row, error.column) == ("reconfig cross_entropy is inf", 1, 0, 1)
    experiment._check_finite(row, 0, [0])
    reconfig[1, 1] = 3.0
    experiment._check_finite(row, 0, [0, 1])


def test_without_a_console_nothing_is_printed(copy, config_of, capsys, caplog):
    with caplog.at_level(logging.INFO):
        train_and_evaluate(config_of(), copy)
    assert capsys.readouterr() == ("", "") and not caplog.records
