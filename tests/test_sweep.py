"""Sweeps: their members, what they collect, what stops them."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import collected
import kills
import members
import numpy as np
import pytest
import sweep
import toys

from ftn_jax.cli import command, train
from ftn_jax.runs.workdir import lock

ROOT = Path(__file__).parents[1]
GRID = ["--grid.seeds=(5,),(2,)", "--grid.configurer.k=2,4"]  # those that share programs come one after the other


def toy_flags(*swept: str) -> list[str]:
    """The flags of a toy config, but for settings that are swept."""
    flags = kills.command(toys.points_config(methods=("fixedmask",)), Path("unused"))
    left_out = ("--workdir", *(f"--config.{name}=" for name in swept))
    return [flag for flag in flags if flag.startswith("--") and not flag.startswith(left_out)]


TOY = toy_flags("configurer.k", "seeds")


def start_sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / "sweep.py"), *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def sweep_rows(out: Path) -> dict[tuple[str, str], tuple[str, float]]:
    with (out / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["configurer.k"], row["protocol"]): (row["seeds"], float(row["final_mean"])) for row in rows}


@pytest.mark.slow
def test_sweep_collects_what_finished_and_runs_again_what_failed(tmp_path, capsys):
    out = tmp_path / "sweep"
    broken = out / "seeds=2,configurer.k=4"
    out.mkdir()
    broken.write_text("in the way")
    arguments = [*TOY, *GRID, f"--out={out}", "--at_once=2"]

    first = start_sweep(*arguments)
    assert first.returncode == 1
    (line,) = first.stderr.splitlines()
    match = re.fullmatch(r"failed: seeds=2,configurer\.k=4: (workdir .* can't be used .*) \(log: (.*)\)", line)
    assert match, first.stderr
    assert Path(match[2]).read_text() == f"ftn_jax: {match[1]}\n"
    assert match[1] in (out / "sweep.md").read_text() and (out / "sweep.png").read_bytes()[1:4] == b"PNG"
    finals = {}
    for k, seeds in {"2": (5, 2), "4": (5,)}.items():
        for protocol in ("stored", "reconfig"):
            results = [json.loads((out / f"seeds={s},configurer.k={k}" / "results.json").read_text()) for s in seeds]
            means = [held["methods"]["fixedmask"][protocol]["final"]["mean"] for held in results]
            finals[k, protocol] = (str(len(seeds)), pytest.approx(np.mean(means)))
    assert sweep_rows(out) == finals

    broken.unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/results.json")}
    second = start_sweep(*arguments)
    assert (second.returncode, second.stderr) == (0, "")
    said = " ".join(second.stdout.split())  # lines of a terminal are broken
    assert "4 members" in said and "3 finished already" in said
    assert len(before) == 3 and before == {path: path.stat().st_mtime_ns for path in before}
    assert {seeds for seeds, _ in sweep_rows(out).values()} == {"2"} and len(sweep_rows(out)) == 4
    assert "## Failed" not in (out / "sweep.md").read_text()

    # Of another config nothing is started, and nothing of what is there is taken for the answer.
    changed = [argument.replace("stream.steps=20", "stream.steps=13") for argument in arguments]
    assert sweep.main(["sweep", *changed]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all("config.stream.steps: 20 there, 13 now" in line and line.endswith("(not started)") for line in lines)
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sweep_that_is_stopped_has_its_members_save(tmp_path, number):
    flags = [flag for flag in TOY if not flag.startswith("--config.stream.steps")]
    flags += ["--config.stream.steps=1000000", "--grid.configurer.k=2,4", "--grid.seeds=(5,)", f"--out={tmp_path}"]
    command = [sys.executable, str(ROOT / "launch" / "sweep.py"), *flags]
    member = tmp_path / "configurer.k=2,seeds=5"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        while run.poll() is None and not (member / "metrics.csv").exists():
            time.sleep(0.1)
        time.sleep(0.5)
        # As a terminal's Ctrl-C to the whole group; SIGTERM to the program alone.
        (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)
        _, said = run.communicate(timeout=30)
    assert run.returncode == 128 + number
    assert said.startswith(f"sweep: stopped by {number.name}; what was trained is saved, to continue: python ")
    last = (tmp_path / "logs" / f"{member.name}.txt").read_text().splitlines()[-1]
    assert last.startswith(f"ftn_jax: stopped by {number.name}; what was trained is saved")
    assert any((member / "checkpoints" / "fixedmask").glob("[0-9]*"))
    with lock(member):  # nobody is in it any more
        assert not (tmp_path / "configurer.k=4,seeds=5").exists()


def test_sweep_does_not_start_what_cannot_work(tmp_path, capsys):
    out = tmp_path / "sweep"
    assert sweep.main(["sweep", *TOY, "--grid.configurer.k=17", f"--out={out}"]) == 1
    expected = "config.configurer.k is 17, expected at most config.pool.size = 16"
    assert capsys.readouterr().err == f"failed: configurer.k=17: {expected} (not started)\n"
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--grid.configurer.k=4"], "--config is missing .*"),
        ([TOY[0]], "--grid is missing, .*"),
        ([*TOY, "--gird.configurer.k=4"], "unexpected argument '--gird.configurer.k=4', expected --config, .*"),
        ([*TOY, "--grid.configurer.k"], "unexpected argument '--grid.configurer.k', .* each with =VALUE"),
        ([*TOY, *GRID, "--fresh"], "unexpected argument '--fresh', .*"),
        ([*TOY, "--grid.configurer.kk=4"], "config.configurer.kk is not a setting of .*"),
        ([*TOY, "--grid.configurer.k=4,many"], "config.configurer.k=many: .*; expected a whole number"),
        ([*TOY, "--grid.configurer.k=4,4"], "--grid: two members have the folder .*"),
        (
            [*TOY, "--grid.configurer.k=4", "--grid.seeds=1,2"],
            "--grid: configurer.k=4,seeds=1 and configurer.k=4,seeds=2 train fixedmask with seed 0 alike, .*",
        ),
        ([*TOY, "--grid.pool.size=16,25"], "pool.size is in --grid.pool.size and in --config.pool.size=16, .*"),
        (
            [*toy_flags("stream.target"), "--grid.stream.target=classification,regression"],
            "--grid: classification and regression can't be compared, .*",
        ),
        ([*TOY, *GRID, "--at_once=0"], "--at_once=0: .*"),
        ([*TOY, *GRID, "--executor=debug"], "--executor=debug: .*"),
        ([*TOY, *GRID, "--slurm.partition=gpu"], "--slurm.partition needs --executor=slurm, found --executor=local"),
        ([*TOY, *GRID, "--executor=slurm", "--slurm.time=1:00"], "--slurm.time=1:00, expected a whole number .*"),
        ([*TOY, *GRID, "--executor=slurm"], "--executor=slurm: Could not detect .srun.*"),
    ],
)
def test_faults_of_a_sweeps_command_line_get_one_line(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # where no SLURM is
    with pytest.raises(SystemExit) as stopped:
        command.run(sweep.main, ["sweep", *arguments], name="sweep")
    assert stopped.value.code == 2
    assert re.fullmatch(f"sweep: {expected}\n", capsys.readouterr().err)


def test_members_are_all_combinations_each_with_a_folder_of_its_own():
    grid = ["--grid.methods=('fixedmask','nomask'),ftn_slow", "--grid.optimizer.learning_rate=1e-2,0.1"]
    shared = toy_flags("methods", "optimizer.learning_rate")
    found = members.parse(["sweep", *shared, *grid, "--out=there"]).members
    assert [str(member.workdir) for member in found] == [
        "there/methods=fixedmask+nomask,optimizer.learning_rate=1e-2",
        "there/methods=fixedmask+nomask,optimizer.learning_rate=0.1",
        "there/methods=ftn_slow,optimizer.learning_rate=1e-2",
        "there/methods=ftn_slow,optimizer.learning_rate=0.1",
    ]
    asked = [train.parse(member.command[2:]) for member in found]
    assert [(each.config.methods, each.config.optimizer.learning_rate) for each in asked] == [
        (("fixedmask", "nomask"), 0.01),
        (("fixedmask", "nomask"), 0.1),
        (("ftn_slow",), 0.01),
        (("ftn_slow",), 0.1),
    ]
    assert [(each.config, each.workdir) for each in asked] == [(m.config, str(m.workdir)) for m in found]


def test_sweeps_figure_has_a_panel_a_method_and_a_gap_where_a_member_failed():
    def row(k, rate, method, mean):
        return collected.Row((k, rate), method, "reconfig", 2, {"final": {"mean": mean, "std": 0.1}})

    rows = [row("2", "0.1", "kwta", 0.5), row("8", "0.1", "kwta", 0.7), row("4", "0.2", "nomask", 0.6)]
    figure = collected.draw({"pool.k": ["2", "4", "8"], "optimizer.learning_rate": ["0.1", "0.2"]}, rows, "ACC")
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == ["KWTA", "NoMask"]
    nan = math.nan
    # Of stored there is nothing; the lines of both rates under reconfig.
    lines = [np.array([box.lines[0].get_ydata() for box in panel.containers], float) for panel in panels]
    np.testing.assert_array_equal(lines[0], [[nan] * 3, [0.5, nan, 0.7], [nan] * 3, [nan] * 3])
    np.testing.assert_array_equal(lines[1], [[nan] * 3, [nan] * 3, [nan] * 3, [nan, 0.6, nan]])
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["2", "4", "8"]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["learning_rate=0.1", "learning_rate=0.2", "stored", "reconfig"]
