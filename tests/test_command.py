"""How every command ends: one line and an exit code, whatever the fault, terminal or pipe."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from kills import ROOT

from ftn_jax import command
from ftn_jax.errors import CheckpointError, InputError

COMMANDS = {
    "ftn_jax.main": ["--config=configs/lora.py"],
    "ftn_jax.recover": ["--workdir=runs/x", "--support=y"],
    "ftn_jax.forget": ["--workdir=runs/x", "--task=y"],
    "ftn_jax.report": ["--workdir=runs/x"],
    "ftn_jax.plan": ["--config=configs/lora.py"],
}


def start(module, *arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("module", COMMANDS)
def test_a_fault_of_the_command_line_is_one_line_and_exit_code_2(module):
    done = start(module, *COMMANDS[module], "--no_such_flag=1")
    assert done.returncode == 2 and done.stderr.startswith("ftn_jax: ") and done.stderr.count("\n") == 1
    assert "no_such_flag" in done.stderr and not done.stdout


@pytest.mark.parametrize("module", ("ftn_jax.recover", "ftn_jax.forget", "ftn_jax.report"))
def test_what_is_not_there_is_one_line_and_exit_code_1(module, tmp_path):
    """From another folder, with a name that no ASCII pipe can be told."""
    flags = [flag.replace("runs/x", "rüns/\n✗ y") for flag in COMMANDS[module]]
    done = start(module, *flags, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 1 and done.stderr.startswith("ftn_jax: ") and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("a\n b"), 1, "ftn_jax: a b\n"),
        (command.UsageError("flag"), 2, "ftn_jax: flag\n"),
        (CheckpointError("gone"), 1, "ftn_jax: gone\n"),
        (FloatingPointError("loss is nan"), 1, "ftn_jax: loss is nan\n"),
        (KeyboardInterrupt(), 130, "ftn_jax: interrupted\n"),
        (OSError(28, "No space left on device"), 1, "ftn_jax: [Errno 28] No space left on device\n"),
    ],
)
def test_how_errors_end_a_command(error, code, said, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as ended:
        command.run(main, ["x"])
    assert ended.value.code == code and capsys.readouterr().err == said


def test_a_fault_that_is_not_the_users_is_shown_whole():
    def main(argv):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        command.run(main, ["x"])


MANY_LINES = """
import sys, time
from ftn_jax import command
def main(argv):
    for i in range(10**5):
        print("█ line", i)
    {}
command.run(main)
"""


def test_a_reader_that_leaves_is_no_fault():
    script = f"{sys.executable} -c '{MANY_LINES.format('')}' | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "█ line 0\n141\n" and not done.stderr


def test_text_goes_through_a_pipe_of_any_encoding():
    done = subprocess.run(
        [sys.executable, "-c", MANY_LINES.format("")],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0 and done.stdout.startswith(b"\\u2588 line 0\n") and not done.stderr


def test_ctrl_c_is_one_line():
    script, pipes = MANY_LINES.format("print(flush=True); time.sleep(60)"), {"stdout": -1, "stderr": -1, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if re.fullmatch(r".* line 99999\n", line):
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130 and process.stderr.read() == "ftn_jax: interrupted\n"
