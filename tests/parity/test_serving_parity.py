"""docs/serving.md, its blocks of Python as they are written: every program writes what the run's own masks write."""

import re
import shlex

import pytest
from kills import ROOT

import ftn_jax
from ftn_jax.cli import ftn

# PEFT, transformers and PyTorch warn of their own plans.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]


def test_what_is_served_is_what_the_run_writes(files_run, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "serving.md").read_text()
    export, adapter, both, merged, ours = re.findall(r"^```(?:bash|python)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(files_run / "run")
    lines = (files_run / "loud.jsonl").read_text().splitlines()
    (tmp_path / "runs" / "support.jsonl").write_text("\n".join(lines[:8]))
    tasks = {"headline": "loud", "spoken": "title"}  # what the toy run calls them

    def named(text):
        for name, task in tasks.items():
            text = re.sub(rf"(--task=|\"){name}\b(?!-)", rf"\g<1>{task}", text)
        return text

    for line in named(export).splitlines():
        _, command, *flags = shlex.split(line)
        ftn.run(command, [command, *flags])
    model = ftn_jax.load("runs/mine")
    prompt = "A sailor sang on the hill.\n"
    loud, title = (model.generate([prompt], task, tokens=16)[0] for task in tasks.values())
    assert loud != title

    told = {}
    for block, expected in ((adapter, f"{loud}\n"), (both, f"{[loud, title]}\n"), (merged, f"{loud}\n")):
        capsys.readouterr()
        exec(compile(block, "serving.md", "exec"), told)
        assert capsys.readouterr().out == expected
    exec(compile(named(ours), "serving.md", "exec"), {})
    assert capsys.readouterr().out == f"{loud}\n{title}\n{model.generate([prompt], 'loud', tokens=16)[0]}\n"
