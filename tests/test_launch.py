"""The start scripts, run with a stand-in for Python that writes down what it is asked to do."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*ROOT.glob("launch/*.sh"), ROOT / ".ci" / "run"]

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
        "-m pytest -n auto --maxprocesses=4 --dist=loadfile -m not parity and not kills -k masks",
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
