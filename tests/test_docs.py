"""The walk of docs/your_own_tasks.md, every command as it is written."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from kills import ROOT


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


@pytest.mark.slow
def test_the_walk_through_your_own_tasks(tmp_path):
    text = (ROOT / "docs" / "your_own_tasks.md").read_text()
    for folder in ("configs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    # Compiled as for a user: at this size it pays.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }

    def run(*command, **options):
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, **options)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    scripts = blocks(text, "bash")
    assert len(scripts) >= 4
    said = [run("bash", "-euc", script) for script in scripts]
    assert any("under the recovered mask" in output for output in said)
    assert any("gone: lora_ftn_reserve: 72 components" in output for output in said)
    python = blocks(text, "python")
    assert len(python) >= 3
    *_, overlap = run(sys.executable, "-c", "\n".join(python)).splitlines()
    assert "headline-adapter" in overlap
    results = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    assert results["task_names"] == ["spoken", "headline"]  # after the third was added, and forgotten
    assert (tmp_path / "runs" / "headline-from-python" / "adapter_model.safetensors").exists()
