"""Four tasks of one's own on the packaged base: from eight examples the right components are found, for every task."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from kills import ROOT

import ftn_jax
from ftn_jax.streams.files import split_of
from ftn_jax.streams.text.jsonl import load_pairs

WRITE = {
    "spoken": lambda text: f'"{text[:-1]}," she said.',
    "headline": lambda text: text[:-1].upper() + "!",
    "doubled": lambda text: " ".join(f"{word} {word}" for word in text.split()),
    "starred": lambda text: "".join("*" if letter in "aeiou" else letter for letter in text),
}
SHARES = {"recovery": 0.2, "test": 0.15}


@pytest.mark.slow
def test_four_tasks_of_ones_own(tmp_path):
    prompts = [prompt for prompt, _ in load_pairs(ROOT / "examples" / "spoken.jsonl")]
    splits = {}
    for name, write in WRITE.items():
        splits[name] = {"train": [], "recovery": [], "test": []}
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for prompt in prompts:
                line = json.dumps({"prompt": prompt, "completion": write(prompt.strip())})
                file.write(f"{line}\n")
                splits[name][split_of(line.encode(), **SHARES)].append((prompt, write(prompt.strip())))
    files = tuple(str(tmp_path / f"{name}.jsonl") for name in WRITE)
    settings = {"base": "packaged", "stream.steps": 40, "stream.evaluate": "seen", "stream.files": files}
    settings |= {f"stream.{name}": share for name, share in SHARES.items()}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [
        sys.executable,
        "-m",
        "ftn_jax.main",
        "--config=configs/jsonl.py",
        f"--workdir={tmp_path / 'run'}",
        *flags,
    ]
    # Compiled as for a user: at this size it pays.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    model = ftn_jax.load(tmp_path / "run")

    for name, parts in splits.items():
        found = model.recover(parts["recovery"][:8])
        stored, recovered = (model.example_losses(parts["test"], m).mean() for m in (model.stored[name], found))
        assert abs(recovered - stored) < 0.1, name
        assert found.fits and max(found.overlap, key=found.overlap.__getitem__) == name

    # Rows of all tasks, each under its own mask.
    pairs, masks = [parts["test"][0] for parts in splits.values()], list(model.stored.values())
    alone = [model.example_losses([pair], mask)[0] for pair, mask in zip(pairs, masks, strict=True)]
    np.testing.assert_allclose(model.example_losses(pairs, masks), alone, rtol=1e-4)
    crossed = model.example_losses(pairs, masks[1:] + masks[:1])
    assert (crossed > np.array(alone) + 0.5).all()  # and no other's will do
