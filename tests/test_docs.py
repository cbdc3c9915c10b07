"""The walks of the guides, every command as it is written."""

import ast
import gzip
import json
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
import toys
from programs import ROOT, environment

import ftn_jax
from ftn_jax.cli import ftn, train
from ftn_jax.cli.command import load_config
from ftn_jax.methods import METHODS
from ftn_jax.report.paper import METHOD_NAMES
from ftn_jax.runs.build import check, filled
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.workdir import open_results
from ftn_jax.streams import STREAMS, Context

START = (ROOT / "docs" / "start.md").read_text()


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def run_guide(name):
    code = "\n".join(blocks((ROOT / "docs" / name).read_text(), "python"))
    exec(compile(code, name, "exec"), {"__name__": name})


def test_the_guide_to_methods(tmp_path):
    run_guide("add_a_method.md")
    try:
        config = toys.points_config(methods=("last_block",))
        config.variants.last_block = {"shift": 2}
        results = train_and_evaluate(config, tmp_path)
    finally:
        del METHODS["last_block"]
    k, size = config.configurer.k, config.pool.size
    assert np.unique(results["methods"]["last_block"]["masks"]).tolist() == list(range(size - k - 2, size - 2))


def test_the_readme_repeats_what_is_walked_and_measured():
    """Its commands are those of the guides, which the tests below run, and its table is that of the results."""
    readme = (ROOT / "README.md").read_text()
    guide, beyond = ((ROOT / "docs" / name).read_text() for name in ("your_own_tasks.md", "beyond.md"))
    first, measured, own = blocks(readme, "bash")
    assert first in START and measured in beyond
    assert [command for command in re.split(r"(?<!\\)\n", own.strip()) if command not in guide] == []
    (python,) = blocks(readme, "python")
    assert python in guide
    with gzip.open(ROOT / "docs" / "figures" / "long" / "results.json.gz") as file:
        methods = json.load(file)["methods"]
    scores = {METHOD_NAMES[name]: entry["reconfig"] for name, entry in methods.items()}
    shown = "{mean:.3f} ± {std:.3f}"
    expected = {name: [shown.format(**score[key]) for key in ("final", "fm")] for name, score in scores.items()}
    rows = re.findall(r"^\| ([\w-]+(?:, gradient)?): .*? \| (.*?) \| (.*?) \|$", readme, re.MULTILINE)
    assert {name: values for name, *values in rows} == expected and len(rows) == 8


def test_stored_results_are_those_of_the_command_beside_them(tmp_path, monkeypatch):
    """Which therefore prints them and trains nothing."""
    monkeypatch.chdir(ROOT)
    pages = [(ROOT / "docs" / f"{name}.md").read_text() for name in ("reproduction", "beyond")]
    scripts = [script for page in pages for script in blocks(page, "bash") if "gunzip" in script]
    assert len(scripts) == 3
    for number, script in enumerate(scripts):
        unpack, command = re.split(r"(?<!\\)\n", script.strip())
        workdir = tmp_path / str(number)
        workdir.mkdir()
        (workdir / "results.json").write_bytes(gzip.decompress(pathlib.Path(unpack.split()[-3]).read_bytes()))
        config = train.parse(["main.py", *shlex.split(command.replace("\\\n", ""))[3:]]).config
        assert set(config.methods) == open_results(config, workdir)["methods"].keys()


def test_the_configurer_by_itself_in_start(capsys):
    """The mask that the first steps print is the corner that they say is useful."""
    exec(compile(blocks(START, "python")[0], "start.md", "exec"), {})
    printed = [[int(cell) for cell in re.findall(r"\d", line)] for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_array_equal(printed, np.pad(np.ones((3, 3), int), ((5, 0), (5, 0))))


def test_a_run_from_python_in_start(monkeypatch):
    """It asks for the quick config but for what it changes, which makes a run."""
    calls = []
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(ftn_jax, "train_and_evaluate", lambda *call: calls.append(call))
    exec(compile(blocks(START, "python")[1], "start.md", "exec"), {})
    ((config, workdir),) = calls
    check(config)
    expected = filled(load_config("lora:quick"))
    expected.update(methods=("lora_ftn",), seeds=(0, 1), stream={"steps": 50})
    assert config.to_dict() == expected.to_dict() and workdir == "runs/mine"


@pytest.mark.slow
def test_a_method_of_ones_own_and_its_run_in_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *_, using, method = blocks(START, "python")
    exec(compile(method, "start.md", "exec"), {})
    told = {}
    try:
        config = toys.points_config(methods=("last_block",), seeds=1)
        results = train_and_evaluate(config, "runs/synthetic-classification-quick")
        exec(compile(using, "start.md", "exec"), told)
    finally:
        del METHODS["last_block"]
    k, size = config.configurer.k, config.pool.size
    last = list(range(size - k, size))
    assert np.unique(results["methods"]["last_block"]["masks"]).tolist() == last
    assert told["model"].recover((told["x"], told["y"])).active.tolist() == last


def test_the_guide_to_streams():
    run_guide("add_a_stream.md")
    kind = STREAMS.pop("half_planes")
    stream = kind.build(Context((0,)), ("east", "west"), angle=np.pi)
    batch, other = (task.test() for task in stream.tasks)
    assert batch.x.shape == (1000, 2) and ((batch.y == 1) == (other.y == 0)).all()
    drawn, support = (getattr(stream.tasks[0], part)(jax.random.key(1), 64).x for part in ("batch", "support"))
    assert not np.isin(drawn, support).any()


@pytest.mark.slow
def test_the_config_in_settings(tmp_path, base, capsys):
    """A user's own config of a dozen lines, at toy size: what it leaves out are the defaults, which flags replace."""
    (written,) = blocks((ROOT / "docs" / "settings.md").read_text(), "python")
    (tmp_path / "mine.py").write_text(written)
    settings = {
        "base": base,
        "seeds": "(3,5)",  # the file has none, and 1 is the default
        "stream.files": tuple(toys.write_tasks(tmp_path)[:2]),
        "stream.steps": 3,
        "stream.max_length": 64,
        "pool.size": 16,
        "configurer.k": 4,
        "variants.lora_ftn_reserve.lateral_steps": 2,
        "mesh.seed": 1,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    ftn.run("train", ["main.py", f"--config={tmp_path / 'mine.py'}", *flags, f"--workdir={tmp_path / 'run'}"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["experiment"], results["seeds"], list(results["methods"])) == (
        "jsonl",
        [3, 5],
        ["lora_ftn_reserve"],
    )
    config = results["config"]
    assert "experiment" not in config and config["mesh"] == {"seed": 1, "data": 0, "pool": 1}
    assert (config["stream"]["boundaries"], config["stream"]["evaluate"]) == ("given", "all")
    assert (config["pool"]["grow"], config["pool"]["rank"], config["pool"]["size"]) == (False, 2, 16)
    assert np.shape(results["methods"]["lora_ftn_reserve"]["reconfig"]["matrix"]) == (2, 2, 2)


@pytest.mark.slow
def test_the_library_without_a_config(capsys):
    """The losses fall, nothing is forgotten under the stored masks, and masks are found again."""
    text = (ROOT / "docs" / "api.md").read_text()
    language, networks, own = blocks(text, "python")
    told = {}
    exec(compile(language, "api.md", "exec"), told)
    pairs = {name: told["stream"].pairs[i] for i, name in enumerate(told["stream"].names)}
    stored, found = told["row"].stored["cross_entropy"], told["row"].reconfig["cross_entropy"]
    assert stored.shape == found.shape == (1, 2) and set(pairs) == {"loud", "twice"}
    untrained = [float(told["pool"].loss(told["pool"].init(jax.random.key(0)), np.zeros(0, np.int32), task.test()))
                 for task in told["stream"].tasks]  # fmt: skip
    assert (stored[0] < 0.7 * np.array(untrained)).all() and (found[0] < 0.8 * np.array(untrained)).all()
    told = {}
    exec(compile(networks, "api.md", "exec"), told)
    assert told["row"].stored["accuracy"].shape == (2, 2)
    assert told["row"].stored["accuracy"].min() > 0.95 and told["row"].reconfig["accuracy"].min() > 0.95
    exec(compile(own, "api.md", "exec"), told)
    hits, count = told["pool"].metrics(told["rows"], told["stream"].tasks[0].test())["accuracy"]
    assert hits / count > 0.9
    before, after = (jax.tree.leaves(params) for params in (told["pool"].init(jax.random.key(0)), told["params"]))
    moved = [np.reshape(a != b, (64, -1)).any(1) for a, b in zip(before, after, strict=True)]
    np.testing.assert_array_equal(np.flatnonzero(np.any(moved, axis=0)), told["active"])


@pytest.fixture
def run(tmp_path):
    """Runs a command in a folder with configs and examples, as a user would; gives what it prints."""
    for folder in ("configs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)

    def run(*command):
        ran = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


@pytest.mark.slow
def test_the_walk_through_your_own_tasks(tmp_path, run):
    text = (ROOT / "docs" / "your_own_tasks.md").read_text()
    scripts = blocks(text, "bash")
    assert len(scripts) >= 4
    said = [run("bash", "-euc", script) for script in scripts]
    assert any("under the recovered mask" in output for output in said)
    assert any("gone: lora_ftn_reserve: 8 components" in output for output in said)
    python = blocks(text, "python")
    assert len(python) >= 3
    *_, overlap = run(sys.executable, "-c", "\n".join(python)).splitlines()
    assert "headline-adapter" in overlap
    results = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    assert results["task_names"] == ["spoken", "headline"]  # after the third was added, and forgotten
    assert (tmp_path / "runs" / "headline-from-python" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_the_walk_through_arrays(run):
    text = (ROOT / "docs" / "arrays.md").read_text()
    scripts = [script for script in blocks(text, "bash") if "examples/digits.py" not in script]  # see test_examples
    assert len(scripts) == 2
    for script in scripts:
        said = run("bash", "-euc", script)
    assert "cross-entropy in nats" in said and re.search(r"^  smallest: 1\.00$", said, re.MULTILINE)
    predicted, regressed = run(sys.executable, "-c", "\n".join(blocks(text, "python"))).splitlines()
    right, _, overlap = predicted.partition(" ")
    assert float(right) > 0.8 and ast.literal_eval(overlap) == {"largest": 0.0, "smallest": 1.0}
    assert 0 < ast.literal_eval(regressed)["mean"] < 1
