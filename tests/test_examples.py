"""The examples run as they stand, and do what they say."""

import functools
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import toys

import ftn_jax
from ftn_jax.methods import METHODS
from ftn_jax.models import FAMILIES
from ftn_jax.pools import POOLS
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.streams import STREAMS
from ftn_jax.streams.text.sentences import SPLITS
from ftn_jax.testing import check_base

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_own_parts(tmp_path):
    """A user's parts, checked and run by the driver; from another folder, as a program of its own."""
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
    assert done.stdout.startswith("All four parts keep their contracts.\n")
    found = {name: [float(value) for value in values] for name, *values in rows[2:5]}
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


NAMES = {  # Llama's name, or a part of it -> EXAONE's, as its checkpoints have them
    "model.embed_tokens": "transformer.wte",
    "model.norm": "transformer.ln_f",
    "model.layers": "transformer.h",
    "self_attn.o_proj": "attn.attention.out_proj",
    "self_attn": "attn.attention",
    "gate_proj": "c_fc_0",
    "up_proj": "c_fc_1",
    "down_proj": "c_proj",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "num_hidden_layers": "num_layers",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
    '"llama"': '"exaone"',
    '"attention_bias": false,': "",
    '"mlp_bias": false,': "",
}


def renamed(text):
    return functools.reduce(lambda text, name: text.replace(name, NAMES[name]), NAMES, text)


def test_the_family_of_own_parts(tmp_path):
    """EXAONE 3 is a Llama under other names: one that transformers has saved has its logits, once it is renamed."""
    llama = ROOT / "tests" / "fixtures" / "families" / "llama"
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    tensors = safetensors.numpy.load_file(llama / "model.safetensors")
    safetensors.numpy.save_file({renamed(name): t for name, t in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(renamed((llama / "config.json").read_text()))
    expected = np.load(llama / "expected.npz")
    told = expected["tokens"], expected["logits"], expected["valid"]
    with pytest.raises(ftn_jax.InputError, match=r"model_type is 'exaone', known: .*--import=MODULE"):
        check_base(tmp_path, *told)
    try:
        runpy.run_path(str(ROOT / "examples" / "own_parts.py"))
        check_base(tmp_path, *told)
    finally:
        STREAMS.pop("half_planes"), POOLS.pop("waves"), METHODS.pop("ftn_apart"), FAMILIES.pop("exaone")


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


@pytest.mark.slow
def test_digits(tmp_path, capsys):
    """Its tasks against NumPy's own turns, and its table against the run's results; two tasks and few steps."""
    program = runpy.run_path(str(ROOT / "examples" / "digits.py"))
    files = program["write_tasks"](tmp_path / "tasks")
    tasks = {Path(file).stem: dict(np.load(file)) for file in files}
    assert len(tasks) == 10
    images = tasks["rotated0"]["x"].reshape(-1, 8, 8)
    assert images.shape[0] == 1797 and images.min() == 0 and images.max() == 1
    for angle in (90, 180):
        turned = np.rot90(images, angle // 90, axes=(1, 2)).reshape(-1, 64)
        np.testing.assert_allclose(tasks[f"rotated{angle}"]["x"], turned, atol=1e-5)
    shuffled = [tasks[f"permuted{i}"]["x"] for i in range(5)]
    for i, x in enumerate(shuffled):
        np.testing.assert_array_equal(np.sort(x), np.sort(images.reshape(-1, 64)))
        assert all((x != other).any() for other in (images.reshape(-1, 64), *shuffled[:i]))
    assert all(
        (task["y"] == tasks["rotated0"]["y"]).all() and set(task["y"]) == set(range(10)) for task in tasks.values()
    )

    config = program["get_config"](files[:2])
    config.methods, config.seeds, config.stream.steps = ("ftn_reserve", "nomask"), 1, 20
    config.pool.size, config.configurer.k = 16, 4
    program["main"].__globals__["get_config"] = lambda files: config
    program["main"](str(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["spec"] == {"inputs": 64, "classes": 10, "tokens": False}
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {name: values for name, *values in rows if name in results["methods"]}
    assert list(found) == ["ftn_reserve", "nomask"]
    for name, values in found.items():
        blocks = [results["methods"][name][protocol] for protocol in ("stored", "reconfig")]
        assert values[:4] == [f"{block[key]['mean']:.3f}" for block in blocks for key in ("final", "fm")]
