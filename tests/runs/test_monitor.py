"""What a run shows and records: curves without double rows, a progress line, a line for each finished method."""

import csv
import io
import re
import struct
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from tensorboardX.proto.event_pb2 import Event

from ftn_jax.lifelong.progress import Progress
from ftn_jax.lifelong.touched import Touched
from ftn_jax.runs.monitor import CompileClock, Monitor
from ftn_jax.training.evaluation import Row

NAMES = ("upper", "starred_vowels")
ENTRY = {
    "seconds": {"compile": 1.25, "run": 61.0},
    "stored": {"final": {"mean": 1.5, "std": 0.25}, "fm": {"mean": 0.0, "std": 0.0}},
    "reconfig": {"final": {"mean": 1.75, "std": 0.25}, "fm": {"mean": 0.0625, "std": None}},
}


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def events(workdir, method):
    """(tag, step, value) of every scalar, read by the format's definition: length, crc, data, crc."""
    found = []
    for path in sorted((workdir / "tensorboard" / method).iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += 16 + length
    return found


def silent():
    return rich.console.Console(file=io.StringIO())


def at(task=0, step=0, rows=()):
    """A method that has come so far; its state does not matter here."""
    return Progress(None, Touched(1, 2, 1), task=task, step=step, rows=list(rows))  # pyright: ignore[reportArgumentType]


# Means over both seeds and the tasks trained so far: 0.5 and 2.
ROWS = [
    Row({"cross_entropy": np.array([[0.25, np.nan], [0.75, np.nan]])}, {}, []),
    Row({"cross_entropy": np.array([[1.0, 2.0], [2.0, 3.0]])}, {}, []),
]


def test_curves(tmp_path):
    with Monitor(tmp_path, silent()) as monitor:
        monitor.start_method("lora_ftn", (3, 8), NAMES, 12, at())
        losses = np.arange(24).reshape(2, 12) / 8
        monitor.chunk(0, 5, losses[:, :5])
        monitor.chunk(0, 12, losses[:, 5:])
        monitor.evaluating(0)
        monitor.row(0, ROWS[0])
        monitor.chunk(1, 12, losses + 1)
        monitor.row(1, ROWS[1])
        monitor.finish_method(ENTRY, "cross_entropy")
    # Steps 1 and 10 of each task, both seeds; loss of seed row e at step s is (12 e + s - 1) / 8.
    assert rows(tmp_path) == [
        ["method", "seed", "task", "step", "loss"],
        ["lora_ftn", "3", "upper", "1", "0"],
        ["lora_ftn", "8", "upper", "1", "1.5"],
        ["lora_ftn", "3", "upper", "10", "1.125"],
        ["lora_ftn", "8", "upper", "10", "2.625"],
        ["lora_ftn", "3", "starred_vowels", "1", "1"],
        ["lora_ftn", "8", "starred_vowels", "1", "2.5"],
        ["lora_ftn", "3", "starred_vowels", "10", "2.125"],
        ["lora_ftn", "8", "starred_vowels", "10", "3.625"],
    ]
    assert events(tmp_path, "lora_ftn") == [
        ("loss", 1, 0.75),
        ("loss", 10, 1.875),
        ("stored/cross_entropy", 12, 0.5),
        ("stored/anytime_cross_entropy", 12, 0.5),
        ("loss", 13, 1.75),
        ("loss", 22, 2.875),
        ("stored/cross_entropy", 24, 2.0),
        ("stored/anytime_cross_entropy", 24, 1.25),  # of 0.5 and 2
    ]


def test_a_method_goes_on_without_double_rows(tmp_path):
    """Killed in step 9 of the second task with step 6 saved, another method's curves beside it."""
    losses = np.arange(12.0)[None]

    def train(method, first, *chunks):
        with Monitor(tmp_path, silent()) as monitor:
            monitor.start_method(method, (5,), NAMES, 12, first)
            for task, start, end in chunks:
                monitor.chunk(task, end, losses[:, start:end] + 100 * task)
                if end == 12:
                    monitor.row(task, ROWS[task])
            monitor.finish_method(ENTRY, "cross_entropy")

    train("whole", at(), (0, 0, 12), (1, 0, 12))
    train("killed", at(), (0, 0, 12), (1, 0, 6), (1, 6, 10))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("killed,5,sta")
    train("killed", at(1, 6, ROWS[:1]), (1, 6, 12))
    wanted = [row for row in rows(tmp_path) if row[0] == "whole"]
    assert [row[1:] for row in wanted] == [row[1:] for row in rows(tmp_path) if row[0] == "killed"]
    assert len(rows(tmp_path)) == 1 + 2 * len(wanted)
    assert sorted(events(tmp_path, "killed")) == sorted(events(tmp_path, "whole"))
    train("killed", at(), (0, 0, 12))  # its checkpoints were deleted
    assert [row[2] for row in rows(tmp_path) if row[0] == "killed"] == ["upper", "upper"]
    assert len(events(tmp_path, "killed")) == 4 and len(events(tmp_path, "whole")) == 8


def show(tmp_path, console):
    with Monitor(tmp_path, console) as monitor:
        monitor.start_method("lora_naive", tuple(range(7)), NAMES, 200, at())
        for step in (50, 100, 150):
            time.sleep(0.12)  # the display is drawn ten times a second
            monitor.chunk(1, step, np.full((7, 50), 1.23456))
        time.sleep(0.12)
        monitor.evaluating(1)
        time.sleep(0.12)
        monitor.finish_method(ENTRY, "cross_entropy")


def test_on_a_terminal(tmp_path):
    file = io.StringIO()
    show(tmp_path, rich.console.Console(file=file, force_terminal=True, width=80, color_system=None))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert "lora_naive, 7 seeds, upper 1/2, step 0/200, compiling --:-- left" in shown
    assert re.search(r"lora_naive, 7 seeds, starred_vowels 2/2, step 150/200, loss 1\.235 \d\d:\d\d left", shown)
    assert re.search(r"lora_naive, 7 seeds, starred_vowels 2/2, step 200/200, evaluating \d\d:\d\d left", shown)
    assert "lora_naive: 62 s, stored CE 1.500 ± 0.250 FM 0.000 ± 0.000, reconfig CE 1.750 ± 0.250 FM 0.062\n" in shown


def test_in_a_notebook(tmp_path, monkeypatch):
    """One output of its cell, which is replaced as the run goes on, at most twice a second, and is empty at its end."""
    shown = []

    def display(what, *, display_id, raw=False, update=False):
        text = what["text/plain"] if raw else what._repr_mimebundle_([], [])["text/plain"]
        shown.append((display_id, update, " ".join(text.split())))

    monkeypatch.setattr("IPython.core.display_functions.display", display)
    show(tmp_path, rich.console.Console(force_jupyter=True))
    (_, *places), updates, lines = zip(*shown, strict=True)
    assert set(places) == {shown[0][0]} and updates == (False, *[True] * len(places))
    assert [line[line.find("lora_naive") :].rsplit(" ", 2)[0] for line in lines] == [
        "",
        "lora_naive, 7 seeds, upper 1/2, step 0/200, compiling",
        "lora_naive, 7 seeds, starred_vowels 2/2, step 200/200, evaluating",
        "",
    ]


def test_a_quiet_notebook_shows_nothing(tmp_path, capsys):
    show(tmp_path, rich.console.Console(force_jupyter=True, quiet=True))
    assert capsys.readouterr().out == ""


def test_elsewhere_one_line_for_a_finished_method(tmp_path):
    file = io.StringIO()
    show(tmp_path, rich.console.Console(file=file, width=40))
    line = "lora_naive: 62 s, stored CE 1.500 ± 0.250 FM 0.000 ± 0.000, reconfig CE 1.750 ± 0.250 FM 0.062\n"
    assert file.getvalue() == line


def test_one_seed_is_singular(tmp_path):
    file = io.StringIO()
    with Monitor(tmp_path, rich.console.Console(file=file, force_terminal=True, width=80)) as monitor:
        monitor.start_method("lora_ftn", (4,), NAMES, 2, at())
        time.sleep(0.12)
    assert "lora_ftn, 1 seed, upper" in file.getvalue()


def test_a_run_that_stops_keeps_its_curves(tmp_path):
    with pytest.raises(FloatingPointError), Monitor(tmp_path, silent()) as monitor:
        monitor.start_method("lora_ftn", (0,), NAMES, 2, at())
        monitor.chunk(0, 2, np.ones((1, 2)))
        raise FloatingPointError
    assert len(rows(tmp_path)) == 2 and len(events(tmp_path, "lora_ftn")) == 1


def test_compile_time_is_within_the_time_that_passed():
    clock = CompileClock()
    clock.listen("/jax/other", 100.0)
    deep = jax.jit(lambda x: jnp.sin(x) + 1)
    for _ in range(30):
        deep = jax.jit(lambda x, f=deep: f(x) * 2)
    jax.monitoring.register_event_duration_secs_listener(clock.listen)
    start = time.perf_counter()
    jax.jit(deep)(1.0).block_until_ready()
    passed = time.perf_counter() - start
    assert 0 < clock.total <= passed


def test_the_time_left_is_of_all_methods(tmp_path):
    """The second of three methods, half of whose first task is trained: 2.5 of 6 tasks."""
    file = io.StringIO()
    console = rich.console.Console(file=file, force_terminal=True, width=100, color_system=None)
    with Monitor(tmp_path, console, methods=3) as monitor:
        for name in ("lora_ftn", "lora_fixed"):
            monitor.start_method(name, (4,), NAMES, 100, at())
            monitor.chunk(0, 50, np.full((1, 50), 1.5))
            if name == "lora_ftn":
                monitor.finish_method(ENTRY, "cross_entropy")
        (bar,) = monitor._progress.tasks
        time.sleep(0.12)
    assert (bar.completed, bar.total) == (250, 600)
    assert "lora_fixed (2 of 3), 1 seed, upper 1/2, step 50/100, loss 1.500" in file.getvalue()
