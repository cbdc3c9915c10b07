"""The command line: what it takes, and one line and an exit code for what it does not."""

import ast
import contextlib
import io
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import unittest.mock

import hypothesis
import kills
import pytest
import toys
from hypothesis import strategies as st
from ml_collections import ConfigDict

from ftn_jax.cli import command, ftn, train
from ftn_jax.core.rules import flatten
from ftn_jax.runs.build import check, filled

ROOT = pathlib.Path(__file__).parents[2]
FILE = str(ROOT / "configs" / "lora.py")
SYNTHETIC = str(ROOT / "configs" / "synthetic.py")
CONFIG = f"--config={FILE}:quick"


@pytest.fixture(autouse=True)
def quiet_logging():
    """`main` sets the level of the package's logger."""
    yield
    logging.getLogger("ftn_jax").setLevel(logging.NOTSET)


@pytest.fixture
def started(monkeypatch):
    """What would have been run: `train_and_evaluate` only checks the settings."""
    calls = []

    def train_and_evaluate(config, workdir, *, fresh, console, stop, on_event):
        check(config)
        calls.append((config, workdir, fresh))

    monkeypatch.setattr(train, "train_and_evaluate", train_and_evaluate)
    return calls


def stops(capsys, *flags):
    """(exit code, the one line on stderr) of a command line that does not run."""
    with pytest.raises(SystemExit) as caught:
        ftn.run("train", ["main.py", *flags])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ftn_jax: ") and err.endswith("\n") and err.count("\n") == 1
    return caught.value.code, err.removeprefix("ftn_jax: ").rstrip("\n")


def refused(capsys, *flags):
    return stops(capsys, CONFIG, *flags)


def test_overrides_workdir_and_fresh(started):
    ftn.run(
        "train",
        [
            "main.py",
            "--config.pool.size=144",  # an override may stand before the file
            CONFIG,
            "--config.configurer.k=18",
            "--config.variants.lora_ftn.kernel=5",
            "--config.methods=('lora_ftn','lora_fixed')",
            "--config.seeds=(3, 4)",
            "--config.stream.steps",
            "50",
            "--noconfig.optimizer.reset",
            "--config.optimizer.learning_rate=1e-3",
            "--workdir=some/where",
            "--fresh",
        ],
    )
    [(config, workdir, fresh)] = started
    assert (config.pool.size, config.configurer.k, config.variants.lora_ftn.kernel) == (144, 18, 5)
    assert (config.methods, config.seeds, config.stream.steps) == (("lora_ftn", "lora_fixed"), (3, 4), 50)
    assert (config.optimizer.reset, config.optimizer.learning_rate, config.base) == (False, 1e-3, "packaged")
    assert (workdir, fresh) == ("some/where", True)


def test_seeds_may_be_a_count_and_methods_one_name(started):
    ftn.run("train", ["main.py", f"--config={FILE}", "--config.seeds=2", "--config.methods=lora_ftn"])
    [(config, workdir, fresh)] = started
    assert (config.seeds, config.methods, workdir, fresh) == (2, ("lora_ftn",), "runs/lora", False)


def test_the_config_of_points(started):
    ftn.run("train", ["main.py", f"--config={SYNTHETIC}:regression,quick", "--config.variants.ftn_slow.every=task"])
    ftn.run("train", ["main.py", f"--config={SYNTHETIC}", "--config.pool.activation=relu"])
    (quick, workdir, _), (full, default, _) = started
    assert (quick.stream.target, quick.seeds, workdir) == ("regression", 2, "runs/synthetic-regression-quick")
    assert (quick.variants.ftn_slow.every, quick.variants.ftn_fast.every) == ("task", "batch")
    assert (full.stream.target, full.seeds, default) == ("classification", 8, "runs/synthetic")
    assert (full.pool.activation, quick.pool.activation) == ("relu", "gelu")
    assert quick.stream.steps < full.stream.steps


@pytest.mark.parametrize(
    ("config", "workdir"),
    [
        ("configs/lora.py:quick", "runs/lora-quick"),
        ("/a/b/mine.py", "runs/mine"),
        ("x.py:", "runs/x"),
        ("configs/synthetic.py:classification,quick", "runs/synthetic-classification-quick"),
        ("a,b/mine.py:c", "runs/mine-c"),
    ],
)
def test_default_workdir(config, workdir):
    assert train.default_workdir(config) == workdir


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        ftn.run("train", ["main.py", "--help"])
    assert caught.value.code is None
    out = capsys.readouterr().out
    assert all(flag in out for flag in ("--config", "--workdir", "fresh", "lora.py:quick"))
    assert "\npool:\n" in out and "  --config.pool.rank\n    rank r of each component\n" in out
    assert "    a whole number from 1 to 1048576; default 576 (lora); 1024 (neurons)\n" in out  # config.pool.size
    assert "    a whole number from 1 to 4096; default 4 (lora); 2 (jsonl)\n    only with pool lora\n" in out
    with pytest.raises(SystemExit):
        ftn.run("train", ["main.py", "--help", f"--config={FILE}:quick"])
    out = capsys.readouterr().out
    assert "  --config.pool.rank=4\n    rank r of each component\n    a whole number from 1 to 4096\n" in out
    assert "  --config.stream.evaluate=seen\n" in out and "    one of all, seen, ends; default all\n" in out
    assert "(neurons)" not in out and "only with" not in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.pool.sise=3"], ["config.pool.sise is not a setting of", "known: config.pool.size"]),
        (["--config.pol.size", "3"], ["config.pol.size", "known: config.pool.size"]),
        (["--config.pool.size.x=3"], ["config.pool.size.x is not a setting"]),
        (["--config.pool.size=abc"], ["config.pool.size=abc", "expected a whole number"]),
        (["--config.pool.size=1e3"], ["config.pool.size=1e3", "expected a whole number"]),
        (["--config.pool.size="], ["config.pool.size=", "expected a whole number"]),
        (["--config.optimizer.learning_rate=fast"], ["learning_rate=fast", "expected a number"]),
        (["--config.optimizer.reset=5"], ["config.optimizer.reset=5", "expected true or false"]),
        (["--config.pool=3"], ["config.pool=3", "not a dict"]),
        (["--config.pool.size"], ["Missing value for flag --config.pool.size"]),
        (["--wrokdir=x"], ["unknown flag --wrokdir, known: --workdir"]),
        (["--zzz"], ["unknown flag --zzz, known: --", "--config, ", "--workdir"]),
        (["word"], ["unexpected argument 'word'"]),
    ],
)
def test_faults_of_usage(capsys, flags, said):
    code, line = refused(capsys, *flags)
    assert code == 2
    assert all(part in line for part in said), line


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.methods=('lora_ftm',)", ["config.methods", "'lora_ftm'", "known: ewc, fixedmask"]),
        ("--config.configurer.k=577", ["config.configurer.k is 577", "at most config.pool.size = 576"]),
        ("--config.pool.size=575", ["config.pool.size is 575", "expected a square"]),
        ("--config.variants.lora_ftn.kernel=4", ["lora_ftn.kernel is 4", "odd"]),
        ("--config.seeds=abc", ["config.seeds is 'abc'", "expected a count"]),
        ("--config.pool={'size': 9}", ["config.pool.name is missing", "expected one of lora, neurons"]),
        (
            "--config.pool={'name': 'neurons', 'size': 9}",
            ["configurer.k is 128, expected at most config.pool.size = 9"],
        ),
        ("--config.pool={'name': 'neurons', 'rank': 9}", ["config.pool.rank is not a setting"]),
    ],
)
def test_settings_that_cannot_work(capsys, started, flag, said):
    code, line = refused(capsys, flag)
    assert code == 1 and not started
    assert all(part in line for part in said), line


def write(path, text):
    path.write_text(text)
    return f"--config={path}"


def test_flags_that_replace_a_kind_bring_its_defaults(started, tmp_path):
    """What the file says stays, and so does what other flags say."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    stream = {'name': 'styles', 'tasks': ('upper',), 'batch': 4}\n"
        "    return ConfigDict({'methods': ('nomask',), 'stream': stream, 'pool': {'name': 'lora'}, 'seeds': 3})\n"
    )
    flags = ["--config.pool.name=neurons", "--config.configurer.steps=3", "--config.seeds=(4,6)"]
    ftn.run("train", ["main.py", f"--config={file}", *flags])
    [(config, _, _)] = started
    assert (config.pool.size, config.pool.layers, config.configurer.k) == (1024, 8, 128)
    assert (config.configurer.steps, config.seeds, config.stream.batch, config.stream.steps) == (3, (4, 6), 4, 200)
    assert "rank" not in config.pool and config.base == "auto"


def test_flags_may_set_what_a_method_has_whatever_the_file_says(started, capsys):
    """Methods that are not asked for, in the file or by a flag, leave nothing in the config."""
    flags = ["--config.methods=('hat','kwta')", "--config.variants.hat.strength=2", "--config.variants.kwta.every=task"]
    ftn.run("train", ["main.py", f"--config={SYNTHETIC}:regression", *flags])
    [(config, _, _)] = started
    assert config.variants.hat.to_dict() == {"strength": 2.0, "sharpness": 400.0}
    assert config.variants.kwta.to_dict() == {"kernel": 1, "lateral_steps": 0, "every": "task"}
    assert not {"nomask", "ewc", "supsup"} & set(config.variants)
    for flag, said in (
        ("--config.variants.hat.slope=2", "config.variants.hat.slope is not a setting"),
        ("--config.variants.nobody.slope=2", "config.variants.nobody.slope is not a setting"),
        ("--config.variants.hat.strength=x", "could not convert string to float"),
    ):
        with pytest.raises(SystemExit) as ended:
            ftn.run("train", ["main.py", f"--config={SYNTHETIC}:regression", flag])
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_faults_of_the_config_file(capsys, tmp_path):
    for flag, said in (
        (None, "--config is missing (A config file, such as configs/lora.py:quick, or"),
        ("--config=", "--config=: '' is not a Python file that exists"),
        (
            "--config=nope.py",
            "not a Python file that exists, expected one, or arrays, jsonl, lora, pretrain, synthetic",
        ),
        (f"--config={tmp_path}", "is not a Python file"),
        (f"--config={FILE}:slow", "unknown argument 'slow', known: quick"),
        (
            f"--config={SYNTHETIC}:quick",
            "unknown argument 'quick', known: classification, regression, each with ,quick",
        ),
        (f"--config={SYNTHETIC}:regression,slow", "unknown argument 'regression,slow', known: classification, regre"),
        (write(tmp_path / "a.py", "x = 1"), "has no attribute 'get_config'"),
        (write(tmp_path / "b.py", "def get_config(): return {}"), "get_config returned a dict, expected a ConfigDict"),
        (write(tmp_path / "c.py", "def get_config(): return {}") + ":quick", "takes 0 positional arguments"),
        (write(tmp_path / "d.py", "\n\n1 / 0"), "line 3: ZeroDivisionError"),
        (write(tmp_path / "e.py", "def f(:"), "SyntaxError"),
    ):
        code, line = stops(capsys, *([flag] if flag else []))
        assert code == 2 and said in line, line


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(train, "train_and_evaluate", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        ftn.run("train", ["main.py", CONFIG])


QUICK = flatten(filled(command.load_config(f"{FILE}:quick")))
LEAVES = {name.removeprefix("config."): value for name, value in QUICK.items()}
NAMES = st.sampled_from(sorted(LEAVES))
VALUES = (
    st.sampled_from(
        ["", "0", "-1", "3", "1e3", "nan", "inf", "true", "None", "()", "('lower',)", "(1,", "[1]", "{}", "auto"]
    )
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
)
SETTINGS = st.tuples(NAMES | st.text("a.b_c-=", max_size=6), VALUES).map(lambda both: f"--config.{both[0]}={both[1]}")
KEPT = st.tuples(NAMES, st.integers(1, 9)).map(
    lambda both: f"--config.{both[0]}={both[1] if type(LEAVES[both[0]]) in (int, float) else LEAVES[both[0]]}"
)
FLAGS = (
    SETTINGS | VALUES | st.sampled_from(["--fresh", "--nofresh", "--process", "--processes=0", "--config=x.py", "--"])
)


def literal(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.lists(KEPT, min_size=1, max_size=4) | st.lists(KEPT | FLAGS, min_size=1, max_size=3))
@hypothesis.example(["--config.stream.tasks=('lower',)", "--config.pool.size=81", "--config.configurer.k=9"])
def test_any_command_line_is_run_as_it_says_or_ends_in_one_line(flags):
    """What is run has exactly the settings of the file and of the flags, as Python reads them."""
    hypothesis.assume(not {"-h", "--h", "-help", "--help"} & set(flags))
    calls, said = [], io.StringIO()
    with unittest.mock.patch.object(train, "train_and_evaluate", lambda config, *_, **__: calls.append(config)):
        with contextlib.redirect_stderr(said):
            try:
                ftn.run("train", ["main.py", CONFIG, *flags])
            except SystemExit as ended:
                assert ended.code in (1, 2)
    lines = said.getvalue().splitlines()
    if not calls:
        assert len(lines) == 1 and lines[0].startswith("ftn_jax: "), said.getvalue()
        return
    asked = {}
    for flag in flags:
        name, _, value = flag.partition("=")
        if name.startswith("--config."):
            asked[name.removeprefix("--")] = value
    before, now = QUICK, flatten(calls[0])
    assert {name: value for name, value in now.items() if name not in asked} == {
        name: value for name, value in before.items() if name not in asked
    }
    for name, value in asked.items():
        read = now[name]
        if isinstance(read, str):
            assert read == value
        elif isinstance(read, bool):
            assert {"true": True, "1": True, "false": False, "0": False}[value.lower()] is read
        elif isinstance(read, int | float):
            assert float(value) == read
        else:
            assert read in (literal(value), (literal(value),), (value,), tuple(value.split(",")))


def test_load_config_gives_the_files_config():
    config = command.load_config(f"{FILE}:quick")
    assert isinstance(config, ConfigDict) and config.seeds == 1


def test_the_command_from_end_to_end(tmp_path):
    toys.save_toy_base(tmp_path / "base")
    command = [sys.executable, "-m", "ftn_jax.main", CONFIG, f"--workdir={tmp_path / 'run'}"]
    command += [
        f"--config.base={tmp_path / 'base'}",
        "--config.pool.size=144",
        "--config.configurer.k=18",
        "--config.variants.lora_ftn.kernel=5",
        "--config.methods=('lora_ftn','lora_fixed')",
        "--config.seeds=2",
        "--config.stream.steps=3",
        "--config.stream.tasks=('lower','pirate')",
        "--config.stream.max_length=64",
    ]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | {"COLUMNS": "120"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    # Not a terminal: a line for each method, then the tables; our own log lines bare, and nobody else's.
    first, second, *rest = ran.stdout.splitlines()
    assert first.startswith("lora_ftn: ") and second.startswith("lora_fixed: ")
    assert " s, stored CE " in first and " FM 0.000 ± 0.000, reconfig CE " in second
    assert any(line.startswith("Table 3.") for line in rest) and "\x1b" not in ran.stdout
    adapted, *placed = ran.stderr.splitlines()
    assert adapted == "adapted: h.0-0.attn.c_attn (by 'qkv')"
    for method, line in zip(("lora_ftn", "lora_fixed"), placed, strict=True):
        assert re.fullmatch(rf"{method}: seed \d x data \d x pool 1 on \d of \d devices, on each base .* MB", line)

    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["methods"]) == ["lora_ftn", "lora_fixed"]
    assert results["config"]["variants"]["lora_ftn"]["kernel"] == 5
    for entry in results["methods"].values():
        assert (entry["size"], entry["k"], entry["grid"]) == (144, 18, 12)
        assert len(entry["stored"]["matrix"]) == 2
    assert (tmp_path / "run" / "report.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("to", ("json", "file"))
def test_events_are_lines_of_json(to, base, tmp_path, capsys):
    """What they say is what results.json and metrics.csv hold; one that goes on tells what is new."""
    config = toys.styles_config(base, methods=("lora_fixed",), seeds=(3, 5), **{"stream.validation": 0.25})
    log = "json" if to == "json" else str(tmp_path / "events.jsonl")
    flags = [*kills.command(config, tmp_path / "run")[3:], f"--log={log}"]
    ftn.run("train", ["main.py", *flags])
    out = capsys.readouterr().out
    assert to == "json" or "Table 3." in out
    events = [json.loads(line) for line in (out if to == "json" else pathlib.Path(log).read_text()).splitlines()]
    entry = json.loads((tmp_path / "run" / "results.json").read_text())["methods"]["lora_fixed"]
    kinds = [event["event"] for event in events]
    names, steps = config.stream.tasks, config.stream.steps
    assert kinds[0] == "method" and kinds[-2:] == ["finished", "report"]
    assert events[0]["done"] == {"task": 0, "step": 0} and events[0]["tasks"] == list(names)
    rows = [event for event in events if event["event"] == "scores"]
    assert [row["task"] for row in rows] == list(names)
    for protocol in ("stored", "reconfig"):
        told = [[row[protocol]["cross_entropy"][e] for row in rows] for e in range(2)]
        assert told == entry[protocol]["matrix"]
    validated = [[names.index(e["task"]), e["step"], e["losses"]] for e in events if e["event"] == "validation"]
    assert validated == entry["validation"]
    assert [e["step"] for e in events if e["event"] == "steps"] == [*range(10, steps, 10), steps] * len(names)
    assert events[-2]["seconds"] == entry["seconds"]
    ftn.run("train", ["main.py", *flags])
    again = capsys.readouterr().out if to == "json" else pathlib.Path(log).read_text()
    assert [json.loads(line)["event"] for line in again.splitlines()][-1] == "report"
    assert len(again.splitlines()) == (1 if to == "json" else len(events) + 1)


def test_a_log_that_cannot_be_written(capsys, tmp_path):
    assert refused(capsys, "--log=") == (2, "--log= is empty, expected json or the name of a file")
    code, said = refused(capsys, f"--log={tmp_path / 'no' / 'events.jsonl'}", f"--workdir={tmp_path / 'run'}")
    assert code == 1 and said.startswith(f"{tmp_path / 'no' / 'events.jsonl'} can't be written (No such file")
    assert not (tmp_path / "run").exists()
