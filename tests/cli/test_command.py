"""How every command ends: one line and an exit code, whatever the fault, terminal or pipe."""

import os
import signal
import subprocess
import sys
import time

import pytest
from kills import ROOT

from ftn_jax.cli import command, ftn
from ftn_jax.core.errors import CheckpointError, InputError

COMMANDS = {
    "train": [f"--config={ROOT}/configs/lora.py"],
    "recover": ["--workdir=runs/x", "--support=y"],
    "generate": ["--workdir=runs/x", "--task=y", "--prompts=in.jsonl", "--output=out.jsonl"],
    "export": ["--workdir=runs/x", "--task=y", "--output=out"],
    "merge": ["--workdir=runs/x", "--task=y", "--output=out"],
    "forget": ["--workdir=runs/x", "--task=y"],
    "report": ["--workdir=runs/x"],
    "plan": [f"--config={ROOT}/configs/lora.py", "--devices=2"],
    "pretrain": [f"--config={ROOT}/configs/pretrain.py"],
}


def start(module, *arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_fault_of_the_command_line_is_one_line_and_exit_code_2(name, capsys):
    code, printed, said = ended(capsys, name, *COMMANDS[name], "--no_such_flag=1")
    assert code == 2 and said.startswith("ftn_jax: ") and said.count("\n") == 1
    assert "no_such_flag" in said and not printed


@pytest.mark.parametrize("name", ("recover", "generate", "export", "merge", "forget", "report"))
def test_what_is_not_there_is_one_line_and_exit_code_1(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed, said = ended(capsys, name, *COMMANDS[name])
    assert code == 1 and said.startswith("ftn_jax: ") and said.count("\n") == 1, said
    assert not printed and not list(tmp_path.iterdir())


def ended(capsys, name, *arguments):
    """How a command ends in this process: (exit code, what it printed, what it said on stderr)."""
    with pytest.raises(SystemExit) as raised:
        ftn.run(name, [name, *arguments])
    return raised.value.code, *capsys.readouterr()


def test_a_name_that_no_ascii_pipe_can_be_told(tmp_path):
    """From another folder, in a process of its own."""
    done = start("ftn_jax.forget", "--workdir=rüns/\n✗ y", "--task=y", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 1 and done.stderr.startswith("ftn_jax: ") and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("a\n b"), 1, "ftn_jax: a b\n"),
        (command.UsageError("flag"), 2, "ftn_jax: flag\n"),
        (CheckpointError("gone"), 1, "ftn_jax: gone\n"),
        (FloatingPointError("loss is nan"), 1, "ftn_jax: loss is nan\n"),
        (KeyboardInterrupt(), 130, "ftn_jax: stopped by SIGINT\n"),
        (OSError(28, "No space left on device"), 1, "ftn_jax: [Errno 28] No space left on device\n"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: 9 GB"),
            1,
            "ftn_jax: not enough memory: lower the sizes of config.pool, config.stream.batch, "
            "config.configurer.support or config.seeds (RESOURCE_EXHAUSTED: 9 GB)\n",
        ),
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
from ftn_jax.cli import command
def main(argv):
    for i in range(10**4):
        print("█ line", i)
    {}
command.run(main)
"""


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_fault():
    many = MANY_LINES.replace("print(", "command.Console().print(").format("")
    script = f"{sys.executable} -c '{many}' | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "█ line 0\n141\n" and not done.stderr


def test_bytes_that_are_no_text_are_refused_before_anything_is_loaded(tmp_path):
    support = tmp_path / "support.jsonl"
    support.write_text('{"text": "a"}\n' * 4)
    done = start("ftn_jax.recover", "--workdir=none", f"--support={support}", os.fsdecode(b"--prompt=caf\xe9"))
    assert (done.returncode, done.stderr) == (2, "ftn_jax: --prompt='caf\\udce9' is not UTF-8, expected UTF-8 text\n")


@pytest.mark.slow
def test_text_goes_through_a_pipe_of_any_encoding():
    done = subprocess.run(
        [sys.executable, "-c", MANY_LINES.format("")],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0 and done.stdout.startswith(b"\\u2588 line 0\n") and not done.stderr


SLOW = """
import sys, time
from ftn_jax.cli import command
def main(argv, stop=None):
    print("begun", flush=True)
    {}
command.run(main, {})
"""


def signalled(script, number, times=1, within=20):
    """How a command ends, in so many seconds, that gets a signal ``times`` times once it has begun."""
    pipes = {"stdout": -1, "stderr": -1, "text": True}
    with subprocess.Popen([sys.executable, "-c", script, "--a b", "--fresh"], cwd=ROOT, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "begun\n"
        for _ in range(times):
            time.sleep(0.2)
            process.send_signal(number)
        return process.wait(within), process.stderr.read()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_one_line(number, code):
    end = signalled(SLOW.format("time.sleep(60)", ""), number)
    assert end == (code, f"ftn_jax: stopped by {number.name}\n")


@pytest.mark.slow
def test_a_second_signal_ends_what_cleans_up_for_long():
    cleaning = "exec('try: time.sleep(60)\\nfinally: time.sleep(60)')"
    assert signalled(SLOW.format(cleaning, ""), signal.SIGINT, 2) == (-signal.SIGINT, "")


@pytest.mark.slow
def test_a_run_that_saves_is_asked_and_names_the_command_that_goes_on():
    """Without --fresh, which would set aside what was saved; once, though more signals come while it saves."""
    saving = "exec('while not stop(): time.sleep(0.01)\\ntime.sleep(1)')"
    code, told = signalled(SLOW.format(saving, "resume=('python', '-m', 'x')"), signal.SIGTERM, 3)
    assert code == 143
    assert told == "ftn_jax: stopped by SIGTERM; what was trained is saved, to continue: python -m x '--a b'\n"


@pytest.mark.slow
def test_a_run_that_saves_for_too_long_does_not_say_that_it_has_saved():
    late = SLOW.replace("import command", "import command, signals\nsignals._GRACE = 0.3")
    end = signalled(late.format("time.sleep(60)", "resume=('again',)"), signal.SIGINT)
    kept = "its last steps could not be saved in time, to continue from what was saved before: again '--a b'"
    assert end == (130, f"ftn_jax: stopped by SIGINT; {kept}\n")


INTERRUPTED_IMPORT = """
import gc, os, runpy, signal, sys
sys.argv = [{!r}]
class Finder:
    def find_spec(self, name, *_):
        if name == "jax":
            gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGINT))
            gc.collect()
sys.meta_path.insert(0, Finder())
{}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("-m", "import ftn_jax.recover"),  # as while runpy imports the package
        ("launch/sweep.py", "sys.path.insert(0, 'launch'); runpy.run_path('launch/sweep.py', run_name='__main__')"),
    ],
)
def test_ctrl_c_while_a_command_still_imports(name, start):
    """In a callback, which swallows exceptions."""
    script = INTERRUPTED_IMPORT.format(name, start)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "ftn_jax: stopped by SIGINT\n")


@pytest.mark.slow
def test_ctrl_c_that_a_callback_swallows():
    callback = "import gc, os; gc.callbacks.append(lambda *_: time.sleep(0.5)); gc.collect(); time.sleep(60)"
    end = signalled(SLOW.format(callback, ""), signal.SIGINT)
    assert end == (130, "ftn_jax: stopped by SIGINT\n")


COMPILES = """
import jax, jax.numpy as jnp
def slow(x):
    for _ in range(1500):
        x = jnp.sort(jnp.sin(x @ x), 0)
    return x
lowered = jax.jit(slow).lower(jnp.ones((50, 50)))
"""


@pytest.mark.slow
def test_ctrl_c_while_xla_compiles_does_not_wait_for_it():
    """It takes 7 s and goes on in a thread, which finds no device any more where Python takes itself down."""
    end = signalled(COMPILES + SLOW.format("lowered.compile()", ""), signal.SIGINT, within=4)
    assert end == (130, "ftn_jax: stopped by SIGINT\n")


def test_output_that_can_not_be_written_is_one_line(tmp_path):
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); {MANY_LINES.format('')}"
    with open(tmp_path / "out", "w") as full:
        done = subprocess.run([sys.executable, "-c", limited], cwd=ROOT, stdout=full, stderr=-1, text=True)
    assert done.returncode == 1 and done.stderr == "ftn_jax: [Errno 27] File too large\n"
