"""The driver from end to end at toy size, on the pool of networks: no base, masks that move."""

import io
import json

import numpy as np
import pytest
import rich.console
from toys import points_config

from ftn_jax.core import metrics
from ftn_jax.core.errors import InputError
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.forget import forget

SEEDS = (5, 2)
POINTS = ("ftn_slow", "fixedmask", "supsup")


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A finished workdir: one method first, then all."""
    workdir = tmp_path_factory.mktemp("points") / "run"
    first = train_and_evaluate(points_config(methods=("fixedmask",)), workdir)
    out = io.StringIO()
    results = train_and_evaluate(points_config(), workdir, console=rich.console.Console(file=out, width=120))
    return workdir, first, results, out.getvalue()


def test_a_run_without_a_base(points):
    workdir, first, results, _ = points
    assert json.loads((workdir / "results.json").read_text()) == results
    assert (results["base_model"], results["metric"]) == (None, "accuracy")
    assert list(results["methods"]) == list(POINTS)
    assert results["methods"]["fixedmask"] == first["methods"]["fixedmask"]
    names = ["first", "second", "third"]
    agreed = [f"agree, {a} / {b}" for a, b in (names[:2], names[::2], names[1:])]
    assert list(results["facts"]) == [f"positive, {name}" for name in names] + agreed
    for name, values in results["facts"].items():
        assert len(values) == 2 and values == pytest.approx([0.5] * 2, abs=0.005 if name.startswith("pos") else 0.02)
    assert first["facts"] == results["facts"]


@pytest.mark.parametrize("name", POINTS)
def test_the_entry_of_a_method_without_a_base(points, name):
    entry = points[2]["methods"][name]
    keys = {"size", "k", "grid", "untrained", "stored", "reconfig", "masks", "overlap", "recovered", "seconds", "cost"}
    assert set(entry) == keys | {"oracle"} | ({"wandering"} if name == "ftn_slow" else set())
    k = 16 if name == "supsup" else 4
    assert (entry["size"], entry["k"], entry["grid"]) == (16, k, 4)
    assert np.shape(entry["masks"]) == np.shape(entry["recovered"]) == (2, 3, k)
    for protocol, undefined in (("stored", 3), ("reconfig", 0)):
        assert set(entry[protocol]) == {"matrix", "final", "fm", "fm_rise", "bwt", "fwt", "anytime"}
        matrix = np.asarray(entry[protocol]["matrix"], float)
        assert matrix.shape == (2, 3, 3) and np.isnan(matrix).sum() == 2 * undefined
        assert 0 <= np.nanmin(matrix) and np.nanmax(matrix) <= 1
        np.testing.assert_allclose(np.nan_to_num(matrix) * 32, np.round(np.nan_to_num(matrix) * 32), atol=1e-5)
        assert entry[protocol]["fm"] == metrics.mean_std([metrics.fm(m, "accuracy") for m in matrix])


@pytest.mark.parametrize(
    "name, parameters, trained", [("ftn_slow", 76, 76), ("fixedmask", 76, 76), ("supsup", 304, 16)]
)
def test_what_a_task_of_points_costs(points, name, parameters, trained):
    """A network is W [2, 4] and [4, 1], b [4] and [1], and its row of the readout [2]: 19; k is 4, or all 16.

    SupSup trains a score for each component instead.
    """
    cost = points[2]["methods"][name]["cost"]
    assert (cost["parameters"], cost["bytes"], cost["trained"]) == (parameters, 4 * parameters, trained)


def test_a_moving_mask_s_wandering_is_kept(points):
    entry = points[2]["methods"]["ftn_slow"]
    wandering = entry["wandering"]
    assert wandering["steps"] == [1, 2, 5, 10, 20]
    path = np.asarray(wandering["path"])
    assert path.shape == (3, 5, 4) and path.min() >= 0 and path.max() < 16
    touched = np.asarray(wandering["touched"])
    assert touched.shape == (2, 3, 3)
    assert (touched[..., 0] >= 4).all() and not touched[..., 1:].any()  # no more than 20 steps
    for seed, masks in zip(wandering["earlier"], entry["masks"], strict=True):
        assert seed[0] is None and len(masks) == len(seed)
        assert all(0 <= share <= 1 for shares in seed[1:] for share in shares)


def test_the_report_of_points(points):
    workdir, _, _, out = points
    report = (workdir / "report.md").read_text()
    for text in ("Table 1.", "Table 4.", "FTN-Slow", "SupSup", "What a block touched", "The stream, seed by seed"):
        assert text in report
    assert " s, stored ACC " in out and "Table 1." in out
    assert {"matrices.png", "masks.png", "learning.png", "wandering.png"} <= {
        path.name for path in (workdir / "figures").iterdir()
    }


@pytest.mark.slow
def test_regression_is_measured_by_squared_error(tmp_path):
    results = train_and_evaluate(points_config("regression", methods=("fixedmask",)), tmp_path)
    assert (results["experiment"], results["metric"]) == ("regression", "mse")
    entry = results["methods"]["fixedmask"]
    untrained, trained = (np.asarray(entry["reconfig"]["matrix"])[:, row, 2] for row in (0, 2))
    assert (trained < untrained).all()
    assert entry["stored"]["fm_rise"] == {"mean": 0.0, "std": 0.0}
    assert "Table 2." in (tmp_path / "report.md").read_text()


def test_the_same_seeds_give_the_same_points_and_masks(points, tmp_path):
    again = train_and_evaluate(points_config(methods=("ftn_slow",)), tmp_path)["methods"]["ftn_slow"]
    before = points[2]["methods"]["ftn_slow"]
    for key in ("masks", "wandering", "stored", "reconfig"):
        assert again[key] == before[key]


def test_a_seed_s_points_do_not_depend_on_the_other_seeds(points, tmp_path):
    """Under a given mask: a search turns on signs of gradients near zero, which are a matter of rounding."""
    alone = train_and_evaluate(points_config(methods=("fixedmask",), seeds=(2,)), tmp_path)
    assert alone["facts"] == {name: values[1:] for name, values in points[2]["facts"].items()}
    for protocol in ("stored", "reconfig"):
        found, before = (
            np.asarray(results["methods"]["fixedmask"][protocol]["matrix"], float)[-1] for results in (alone, points[2])
        )
        np.testing.assert_allclose(found, before, atol=1.01 / 32)  # one of 32 test examples


def test_tasks_that_are_drawn_together_stay_together(points):
    with pytest.raises(InputError, match="the tasks of stream 'synthetic' are drawn together"):
        forget(points[0], "first")
