"""The wheel, installed without the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from kills import ROOT


@pytest.mark.slow
def test_what_is_installed_trains_by_the_name_of_a_config(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("ftn_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements-cpu.txt"):
        shutil.copy(ROOT / name, source)
    venv.create(tmp_path / "venv", symlinks=True)
    programs = tmp_path / "venv" / "bin"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--wheel-dir", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", wheel)
    # What the package needs is taken from here; a line of a path does not bring the editable package of this folder.
    site = run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    with open(os.path.join(site, "needed.pth"), "w") as file:
        file.write(sysconfig.get_path("purelib"))

    assert "ftn train" in run(programs / "ftn", "--help")
    settings = {
        "methods": "('lora_ftn_reserve',)",
        "stream.steps": 3,
        "stream.batch": 4,
        "stream.tasks": "('upper',)",
        "pool.size": 36,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    said = run(programs / "ftn", "train", "--config=lora:quick", *flags, "--config.configurer.k=6")
    assert "LoRA-FTN-Reserve" in said
    results = json.loads((tmp_path / "runs" / "lora-quick" / "results.json").read_text())
    assert results["methods"]["lora_ftn_reserve"]["k"] == 6
    page = (tmp_path / "runs" / "lora-quick" / "report.html").read_text()
    assert "prefers-color-scheme" in page and "aria-sort" in page  # its style and script were installed
    where = run(programs / "python", "-c", "import ftn_jax; print(ftn_jax.__file__)")
    assert where.startswith(str(tmp_path))
