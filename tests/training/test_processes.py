"""Two processes on loopback: the numbers of one, and what happens when one of them is killed."""

import os
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
import toys
from kills import ROOT, command, numbers

from ftn_jax.cli.train import parse
from ftn_jax.core.errors import CheckpointError
from ftn_jax.runs.checkpoints import Checkpoints
from ftn_jax.training.processes import is_of_another_process

SETTINGS = {"stream.steps": 30, "checkpoint.every_steps": 10, "methods": ("ftn_slow", "fixedmask")}
ONE_DEVICE = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}


def start(config, workdir, count):
    """So many processes of one run, with a device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = [f"--coordinator=127.0.0.1:{port}", f"--processes={count}"]
    return [
        subprocess.Popen(
            [*command(config, workdir), *place, f"--process={i}"],
            cwd=ROOT, env=ONE_DEVICE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(count)
    ]  # fmt: skip


def finish(processes):
    """What each process printed, and how it ended."""
    said = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def run(config, workdir, count):
    """Trains with so many processes; `numbers` of the workdir without what says where it was run."""
    if count == 1:
        subprocess.run(command(config, workdir), cwd=ROOT, env=ONE_DEVICE, check=True, capture_output=True)
    else:
        ended = finish(start(config, workdir, count))
        assert [code for code, *_ in ended] == [0] * count, ended
        assert "Table 1" in ended[0][1]
        for _, printed, _ in ended[1:]:
            assert all(line.startswith("[Gloo]") for line in printed.splitlines())
    found = numbers(workdir)
    del found["environment"]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    config = toys.points_config(**SETTINGS)
    return config, run(config, tmp_path_factory.mktemp("alone"), 1)


def start_until_saved(config, workdir, method):
    """Two processes, once they have saved something of a method."""
    processes = start(config, workdir, 2)
    while not any((workdir / "checkpoints" / method).glob("[0-9]*")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    return processes


@pytest.mark.slow
def test_two_processes_with_a_seed_each_stop_together_and_give_what_one_gives(alone, tmp_path):
    """Stopped in the first method, which they go on with; killed in the second, which one process goes on with."""
    config, expected = alone
    workdir = tmp_path / "run"
    processes = start_until_saved(config, workdir, "ftn_slow")
    processes[1].terminate()
    for code, _, said in finish(processes):
        assert code == 143 and "stopped by SIGTERM" in said

    processes = start_until_saved(config, workdir, "fixedmask")
    processes[0].kill()  # the coordinator
    killed_at = time.monotonic()
    ended = finish(processes)
    assert time.monotonic() - killed_at < 60
    code, _, said = ended[1]
    assert code not in (None, 0)
    assert "another process has ended" in said or "another task died" in said, said
    by_two = numbers(workdir)["methods"]
    assert by_two == {"ftn_slow": expected["methods"]["ftn_slow"]}
    assert run(config, workdir, 1) == expected


@pytest.mark.slow
def test_two_processes_with_half_of_each_batch(alone, tmp_path):
    # A mask that is searched at every step would make another run of a rounding error.
    name, one = "fixedmask", alone[1]
    two = run(toys.points_config(**SETTINGS | {"mesh.seed": 1, "mesh.data": 2, "methods": (name,)}), tmp_path, 2)
    left, right = one["methods"][name], two["methods"][name]
    assert left["masks"] == right["masks"]
    for protocol in ("stored", "reconfig"):
        # One of the 64 test points may lie on the other side of the border.
        a, b = (np.array(entry[protocol]["matrix"], float) for entry in (left, right))
        np.testing.assert_allclose(a, b, atol=1.01 / 64)
    curves = [[line.rsplit(",", 1) for line in found["curves"] if line.startswith(name)] for found in (one, two)]
    assert curves[0] and [place for place, _ in curves[0]] == [place for place, _ in curves[1]]
    np.testing.assert_allclose(*[[float(loss) for _, loss in curve] for curve in curves], rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "cluster"),
    [
        ([], None),
        (["--distributed"], {"coordinator": None, "processes": None, "process": None}),
        (
            ["--coordinator=host:1", "--processes=4", "--process=3"],
            {"coordinator": "host:1", "processes": 4, "process": 3},
        ),
    ],
)
def test_what_is_told_of_the_cluster(flags, cluster):
    arguments = parse(["main", f"--config={toys.CONFIGS / 'lora.py'}", *flags])
    assert arguments.cluster == cluster


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: the task has ended"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
        (OSError(28, "No space left on device"), False),
        (ValueError("NOT_FOUND: Error opening zarr array"), False),
    ],
)
def test_whose_fault_it_is_that_a_checkpoint_is_not_written(cause, expected, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise cause

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager", fail)
    with pytest.raises(type(cause) if isinstance(cause, RuntimeError) else CheckpointError) as raised:
        Checkpoints(tmp_path).__enter__()
    assert not is_of_another_process(raised.value)  # a run of one process has no other
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    assert is_of_another_process(raised.value) is expected


def test_without_a_cluster_there_are_no_others(tmp_path):
    config = toys.points_config(**SETTINGS)
    done = subprocess.run(
        [*command(config, tmp_path / "run"), "--distributed"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ftn_jax: --distributed: ") and done.stderr.count("\n") == 1
    assert "--coordinator=HOST:PORT" in done.stderr
    assert not (tmp_path / "run").exists()
