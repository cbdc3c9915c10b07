"""The start scripts, run with stand-ins that write down what they are asked to do, and real sweeps of toy runs."""

import ast
import csv
import importlib.metadata
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import collected
import kills
import members
import numpy as np
import pytest
import sweep
import toys
import yaml

from ftn_jax import main
from ftn_jax.workdir import lock

ROOT = Path(__file__).parents[1]
SCRIPTS = [*ROOT.glob("launch/*.sh"), ROOT / "launch" / "slurm.sbatch", ROOT / ".ci" / "run"]

# Answers the version probe, copies itself into a new environment, and logs everything else.
FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
  "-c "*) printf '%s' "${FAKE_VERSION:-3.12}"; exit "${FAKE_VENV_STATUS:-0}" ;;
  "-V "*) echo "Python 3.12.0" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *) echo "$*" >> "$FAKE_LOG" ;;
esac
case "$*" in *"${FAKE_FAILS:-nothing at all}"*) echo "no such wheel"; exit 1 ;; esac
"""
INSTALLS = ["-m pip install -r requirements-cpu.txt", "-m pip install --no-deps -e ."]


def write_program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


class Checkout:
    """A copy of the files that the set-up reads, beside a stand-in Python and a PATH of its own."""

    def __init__(self, folder: Path):
        self.root, self.programs, self.log = folder / "checkout", folder / "programs", folder / "log"
        self.programs.mkdir()
        shutil.copytree(ROOT / "launch", self.root / "launch")
        for source in [*ROOT.glob("requirements*.txt"), ROOT / "pyproject.toml"]:
            shutil.copy(source, self.root)
        for name in "bash sh cat cksum cp dirname mkdir rm tail".split():
            (self.programs / name).symlink_to(str(shutil.which(name)))
        write_program(self.programs / "python3", FAKE_PYTHON)

    def start(self, *arguments: str, script: str = "local", **environment: str):
        """Starts a script from another folder; returns (exit code, its stderr, what Python was asked)."""
        self.log.write_text("")
        done = subprocess.run(
            [str(shutil.which("bash")), str(self.root / "launch" / f"{script}.sh"), *arguments],
            cwd=self.root.parent,
            env={"PATH": str(self.programs), "FAKE_LOG": str(self.log), **environment},
            capture_output=True,
            text=True,
        )
        asked = [line for line in self.log.read_text().splitlines() if line != "-m pip --version"]
        return done.returncode, done.stderr, asked


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({"FAKE_VERSION": "3.9"}, r"python3 is Python 3\.9, too old: install Python 3\.11 or later"),
        ({"FAKE_VENV_STATUS": "1"}, r"python3 is Python 3\.12 without venv: .*python3\.12-venv"),
        ({"PYTHON": "/no/such/python"}, r"no Python that runs was found: install Python 3\.11 or later"),
    ],
    ids=["too old", "no venv", "no Python"],
)
def test_unsuitable_python_gets_one_line(checkout, environment, expected):
    code, stderr, asked = checkout.start(**environment)
    assert code == 1
    assert re.match(expected, stderr) and stderr.count("\n") == 1
    assert asked == [] and not (checkout.root / ".venv").exists()


def test_newer_name_is_tried_when_python3_is_a_broken_shim(checkout):
    write_program(checkout.programs / "python3", "#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    write_program(checkout.programs / "python3.12", FAKE_PYTHON)
    assert checkout.start()[0] == 0


def test_sets_up_once_and_hands_over_arguments(checkout):
    code, stderr, asked = checkout.start("--config=configs/lora.py:quick", "--workdir=two words")
    command = "-m ftn_jax.main --config=configs/lora.py:quick --workdir=two words"
    assert (code, asked) == (0, [*INSTALLS, command])
    assert re.fullmatch(r"(\[ *\d+s\] .+\n){4}", stderr)
    assert checkout.start("--config=x") == (0, "", ["-m ftn_jax.main --config=x"])


def test_changed_requirements_are_installed(checkout):
    checkout.start()
    with (checkout.root / "requirements-cpu.txt").open("a") as file:
        file.write("# changed\n")
    assert checkout.start()[2][:2] == INSTALLS


def test_interrupted_setup_is_done_again(checkout):
    code, stderr, asked = checkout.start(FAKE_FAILS="--no-deps")
    assert (code, asked) == (1, INSTALLS)
    assert "no such wheel" in stderr and "setup.log" in stderr.splitlines()[-1]
    assert checkout.start()[2][:2] == INSTALLS


def test_gpu_wheels_only_where_nvidia_smi_works(checkout):
    write_program(checkout.programs / "nvidia-smi", "#!/bin/sh\nexit 9\n")
    assert checkout.start()[2][0] == INSTALLS[0]
    write_program(checkout.programs / "nvidia-smi", "#!/bin/sh\nexit 0\n")
    assert checkout.start(FTN_VENV=".venv-other")[2][0] == "-m pip install -r requirements.txt"


def test_test_script_stops_at_the_first_failing_step(checkout):
    assert checkout.start("-k", "masks", script="test")[2] == [
        *INSTALLS,
        "-m pip install -r requirements-test.txt",
        "-m ruff format --check .",
        "-m ruff check .",
        "-m pyright --pythonpath .venv/bin/python",
        "-m pytest -n auto --maxprocesses=4 --dist=loadfile -m not parity and not slow -k masks",
    ]
    code, _, asked = checkout.start(script="test", FAKE_FAILS="ruff check")
    assert (code, asked) == (1, ["-m ruff format --check .", "-m ruff check ."])


def requirement_lines(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_versions_are_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"] == {"dependencies": {"file": ["requirements-cpu.txt"]}}
    assert project["project"]["optional-dependencies"]["cuda12"] == ["jax[cuda12]"]
    assert requirement_lines("requirements.txt") == ["-r requirements-cpu.txt", "jax[cuda12]"]
    for line in requirement_lines("requirements-cpu.txt"):
        assert re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+", line), line


def test_every_import_of_the_package_is_required():
    modules = set()
    for source in (ROOT / "ftn_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module)
    tops = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"ftn_jax"}
    distributions = importlib.metadata.packages_distributions()
    required = {re.split(r"[><=]", line)[0] for line in requirement_lines("requirements-cpu.txt")}
    missing = {top for top in tops if not required & set(distributions.get(top, []))}
    assert tops and not missing


def test_shellcheck_passes_the_batch_script():
    subprocess.run([Path(sys.executable).with_name("shellcheck"), ROOT / "launch" / "slurm.sbatch"], check=True)


# Exit code of the run, state of its job after that, whether it is queued again.
@pytest.mark.parametrize(
    "code, state, again",
    [(0, "RUNNING", False), (1, "RUNNING", False), (143, "RUNNING", True), (143, "COMPLETING", False)],
)
def test_batch_script_queues_a_run_that_was_told_to_stop_again(tmp_path, code, state, again):
    logged = f'#!/bin/sh\necho "$(basename "$0") $*" >> {tmp_path / "log"}\n'
    write_program(tmp_path / "srun", f"{logged}exit {code}\n")
    write_program(tmp_path / "squeue", f"#!/bin/sh\necho {state}\n")
    write_program(tmp_path / "scontrol", logged)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
    script = ["bash", ROOT / "launch" / "slurm.sbatch", "--workdir=two words"]
    assert subprocess.run(script, env=environment).returncode == code
    started, *rest = (tmp_path / "log").read_text().splitlines()
    assert started.startswith("srun --cpus-per-task=8 ")
    assert started.endswith(" .venv/bin/python -m ftn_jax.main --distributed --workdir=two words")
    assert rest == (["scontrol requeue 7"] if again else [])


def batch_command() -> list[str]:
    """The command that launch/slurm.sbatch runs, started as its first comment says."""
    text = (ROOT / "launch" / "slurm.sbatch").read_text().replace("\\\n", " ")
    (run,) = re.findall(r"^srun .* (-m ftn_jax\.main .*) \|\|", text, re.MULTILINE)
    (flags,) = re.findall(r"^#   sbatch launch/slurm\.sbatch (.*)", text, re.MULTILINE)
    return shlex.split(run.replace('"$@"', flags))


def job_set() -> dict:
    """The job of launch/jobset.yaml."""
    return yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())["spec"]["replicatedJobs"][0]["template"][
        "spec"
    ]


def job_set_command() -> list[str]:
    """The command of its last pod, as Kubernetes fills it in."""
    job = job_set()
    (container,) = job["template"]["spec"]["containers"]
    values = {"COORDINATOR": "ftn-jax-workers-0-0.ftn-jax", "JOB_COMPLETION_INDEX": str(job["completions"] - 1)}
    command = [*container["command"], *container["args"]]
    return [re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], word) for word in command]


@pytest.mark.parametrize("command", [batch_command, job_set_command])
def test_commands_on_several_machines_are_ones_that_main_takes(monkeypatch, command):
    monkeypatch.chdir(ROOT)
    module, *flags = command()[command().index("-m") + 1 :]
    assert module == "ftn_jax.main" and "--distributed" in flags
    assert main.parse([module, *flags]).workdir == "runs/lora"


def test_job_set_is_of_one_mind():
    whole, job = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text()), job_set()
    (container,) = job["template"]["spec"]["containers"]
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"] > 1
    assert whole["spec"]["coordinator"]["replicatedJob"] == whole["spec"]["replicatedJobs"][0]["name"]
    assert [variable["name"] for variable in container["env"]] == ["COORDINATOR"]
    (port,) = container["ports"]
    flags = job_set_command()
    assert f"--coordinator=ftn-jax-workers-0-0.ftn-jax:{port['containerPort']}" in flags
    assert {f"--processes={job['completions']}", f"--process={job['completions'] - 1}"} < set(flags)
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


GRID = ["--grid.configurer.k=2,4,5", "--grid.seeds=(5,),(2,)"]


def toy_flags(*swept: str) -> list[str]:
    """The flags of a toy config, but for settings that are swept."""
    flags = kills.command(toys.points_config(methods=("fixedmask",)), Path("unused"))
    left_out = ("--workdir", *(f"--config.{name}=" for name in swept))
    return [flag for flag in flags if flag.startswith("--") and not flag.startswith(left_out)]


TOY = toy_flags("configurer.k", "seeds")


def start_sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / "sweep.py"), *arguments]
    return subprocess.run(command, env=kills.ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def sweep_rows(out: Path) -> dict[tuple[str, str], tuple[str, float]]:
    with (out / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["configurer.k"], row["protocol"]): (row["seeds"], float(row["final_mean"])) for row in rows}


@pytest.mark.slow
def test_sweep_collects_what_finished_and_runs_again_what_failed(tmp_path, capsys):
    out = tmp_path / "sweep"
    broken = out / "configurer.k=4,seeds=2"
    out.mkdir()
    broken.write_text("in the way")
    arguments = [*TOY, *GRID, f"--out={out}", "--at_once=2"]

    first = start_sweep(*arguments)
    assert first.returncode == 1
    (line,) = first.stderr.splitlines()
    match = re.fullmatch(r"failed: configurer\.k=4,seeds=2: (workdir .* can't be used .*) \(log: (.*)\)", line)
    assert match, first.stderr
    assert Path(match[2]).read_text() == f"ftn_jax: {match[1]}\n"
    assert match[1] in (out / "sweep.md").read_text() and (out / "sweep.png").read_bytes()[1:4] == b"PNG"
    finals = {}
    for k, seeds in {"2": (5, 2), "4": (5,), "5": (5, 2)}.items():
        for protocol in ("stored", "reconfig"):
            results = [json.loads((out / f"configurer.k={k},seeds={s}" / "results.json").read_text()) for s in seeds]
            means = [held["methods"]["fixedmask"][protocol]["final"]["mean"] for held in results]
            finals[k, protocol] = (str(len(seeds)), pytest.approx(np.mean(means)))
    assert sweep_rows(out) == finals

    broken.unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/results.json")}
    second = start_sweep(*arguments)
    assert (second.returncode, second.stderr) == (0, "")
    assert "6 members" in second.stdout and "5 finished already" in second.stdout
    assert len(before) == 5 and before == {path: path.stat().st_mtime_ns for path in before}
    assert {seeds for seeds, _ in sweep_rows(out).values()} == {"2"} and len(sweep_rows(out)) == 6
    assert "## Failed" not in (out / "sweep.md").read_text()

    # Of another config nothing is started, and nothing of what is there is taken for the answer.
    changed = [argument.replace("stream.steps=12", "stream.steps=13") for argument in arguments]
    assert sweep.main(["sweep", *changed]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert all("config.stream.steps: 12 there, 13 now" in line and line.endswith("(not started)") for line in lines)
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sweep_that_is_stopped_has_its_members_save(tmp_path, number):
    flags = [flag for flag in TOY if not flag.startswith("--config.stream.steps")]
    flags += ["--config.stream.steps=1000000", "--grid.configurer.k=2,4", "--grid.seeds=(5,)", f"--out={tmp_path}"]
    command = [sys.executable, str(ROOT / "launch" / "sweep.py"), *flags]
    member = tmp_path / "configurer.k=2,seeds=5"
    environment = kills.ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        while run.poll() is None and not (member / "metrics.csv").exists():
            time.sleep(0.1)
        time.sleep(3)
        # As a terminal's Ctrl-C to the whole group; SIGTERM to the program alone.
        (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)
        _, said = run.communicate(timeout=30)
    assert run.returncode == 128 + number
    assert said.startswith(f"sweep: stopped by {number.name}; what is saved is kept, to go on: python ")
    last = (tmp_path / "logs" / f"{member.name}.txt").read_text().splitlines()[-1]
    assert last.startswith(f"ftn_jax: stopped by {number.name}; what is saved is kept")
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
        (["--grid.configurer.k=4"], "--config is missing, .*"),
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
        ([*TOY, "--grid.experiment=classification,regression"], "--grid.experiment: .*"),
        ([*TOY, *GRID, "--at_once=0"], "flag --at_once=0: .*"),
        ([*TOY, *GRID, "--executor=debug"], "flag --executor=debug: .*"),
        ([*TOY, *GRID, "--slurm.partition=gpu"], "--slurm.partition needs --executor=slurm, found --executor=local"),
        ([*TOY, *GRID, "--executor=slurm", "--slurm.time=1:00"], "--slurm.time=1:00, expected a whole number .*"),
        ([*TOY, *GRID, "--executor=slurm"], "--executor=slurm: Could not detect .srun.*"),
    ],
)
def test_faults_of_a_sweeps_command_line_get_one_line(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # where no SLURM is
    with pytest.raises(SystemExit) as stopped:
        sweep.run(["sweep", *arguments])
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
    asked = [main.parse(member.command[2:]) for member in found]
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
