"""The examples run as they stand, and do what they say."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toys

import ftn_jax
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.streams.text.sentences import SPLITS

ROOT = Path(__file__).parents[1]


def test_own_parts(tmp_path):
    """A user's method, pool and stream through the driver; from another folder, as a program of its own."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_parts.py", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    found = {name: [float(value) for value in values] for name, *values in rows[1:4]}
    assert list(found) == ["ftn_apart", "ftn_slow", "nomask"]
    # Its own method keeps clear of what is trained, which FTN does not, and finds its masks again.
    stored, reconfig, forgotten = found["ftn_apart"]
    assert stored > 0.97 and reconfig > 0.9 and forgotten == 0 < found["ftn_slow"][2]
    assert found["nomask"][2] > 0.5  # its stream's tasks do conflict

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["task_names"] == ["east", "north-west", "south-west"] and results["metric"] == "accuracy"
    apart, slow = (np.array(results["methods"][name]["overlap"]) for name in ("ftn_apart", "ftn_slow"))
    np.testing.assert_array_equal(apart, [np.eye(3)] * 2)
    assert slow.max(where=~np.eye(3, dtype=bool)[None], initial=0) > 0
    assert {(m["size"], m["k"]) for m in results["methods"].values()} == {(81, 24), (81, 81)}
    assert "| ftn\\_apart | stored |" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_compositions(tmp_path, capsys):
    """What the table of a composition says of each mask, against the run's own losses."""
    toys.save_toy_base(tmp_path / "base")
    tasks = ("lower", "pirate", "reverse_words", "pirate+lower")
    config = toys.styles_config(str(tmp_path / "base"), methods=("lora_ftn_reserve",), seeds=(5,))
    config.stream.tasks = tasks
    train_and_evaluate(config, tmp_path / "run")
    program = runpy.run_path(str(ROOT / "examples" / "compositions.py"))
    model = ftn_jax.load(tmp_path / "run")
    scores, overlap = program["losses"](model, "pirate+lower", ["pirate+lower"])
    assert list(scores) == [
        "the base alone", "lower", "pirate", "reverse_words", "both parts' masks", "recovered", "newly trained"
    ]  # fmt: skip
    pairs = [(f"{text}\n", " ".join(["arr!", *text.lower().split(), "matey!"])) for text in SPLITS["test"]]
    expected = {
        "lower": model.stored["lower"],
        "newly trained": model.stored["pirate+lower"],
        "both parts' masks": np.concatenate([model.stored["pirate"], model.stored["lower"]]),
    }
    for name, mask in expected.items():
        np.testing.assert_allclose(scores[name], model.example_losses(pairs, mask).mean(), rtol=1e-5)
    np.testing.assert_allclose(scores["the base alone"], model.example_losses(pairs, None).mean(), rtol=1e-5)
    # The recovered mask knows nothing of the composition's own components.
    assert list(overlap) == list(tasks[:3]) and sum(overlap.values()) == 1
    program["main"](str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "pirate+lower, 1 seeds" in said
    for name, loss in scores.items():
        assert any(name in line and f"{loss:.3f} ± 0.000" in line for line in said.splitlines()), name
