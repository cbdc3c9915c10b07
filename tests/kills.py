"""The real command, killed at random moments and started again until it ends."""

import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import toys
from ml_collections import ConfigDict

from ftn_jax.settings import flatten

ROOT = pathlib.Path(__file__).parents[1]
# What is killed: an experiment's config at toy size, and what is set in it.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "classification": ("classification", {"methods": ("ftn_slow", "supsup")}),
    "lora": ("lora", {"methods": ("lora_ftn", "lora_bank", "lora_naive")}),
    "regression": ("regression", {"methods": ("fixedmask", "ewc")}),
    "unannounced": (
        "lora",
        {
            "methods": ("lora_ftn_reserve",),
            "stream.boundaries": "unknown",
            "stream.tasks": ("lower", "pirate", "lower#2", "reverse_words"),
            "optimizer.learning_rate": 0.05,
        },
    ),
}


class Outcome(NamedTuple):
    """Of one workdir that was killed until it was finished."""

    name: str
    kills: int
    moments: list[float]  # seconds after its start at which a command was killed
    differences: list[str]


def command(config: ConfigDict, workdir: pathlib.Path) -> list[str]:
    """The command line that runs a toy config."""
    file = {"lora": "lora.py", "jsonl": "jsonl.py"}.get(config.experiment, f"synthetic.py:{config.experiment}")
    flags = [f"--{name}={value}" for name, value in flatten(config).items() if name != "config.experiment"]
    chosen = f"--config={toys.CONFIGS / file}"
    return [sys.executable, "-m", "ftn_jax.main", chosen, *flags, f"--workdir={workdir}"]


def numbers(workdir: pathlib.Path) -> dict[str, Any]:
    """Everything that must not depend on kills: `results.json` without wall times, and the curves."""
    results = json.loads((workdir / "results.json").read_text())
    for entry in results["methods"].values():
        del entry["seconds"]
    return results | {"curves": sorted((workdir / "metrics.csv").read_text().splitlines())}


def kill_until_done(arguments: list[str], rng: np.random.Generator, longest: float, most: int) -> list[float]:
    """Starts a command until it ends by itself, ``most`` times killed after up to ``longest`` seconds; the moments."""
    moments = []
    while True:
        delay = rng.uniform(0, longest) if len(moments) < most else None
        start = time.monotonic()
        with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            try:
                _, said = run.communicate(timeout=delay)
            except subprocess.TimeoutExpired:
                run.kill()
                moments.append(time.monotonic() - start)
                continue
        if run.returncode:
            raise RuntimeError(f"after {len(moments)} kills the command ended with {run.returncode}: {said[-2000:]}")
        return moments


def torture(name: str, seed: int, folder: pathlib.Path, most: int) -> Outcome:
    """One of `RUNS` trained twice: undisturbed, and killed all along, up to ``most`` times."""
    experiment, own = RUNS[name]
    settings = {"stream.steps": 60, "checkpoint.every_steps": 10} | own
    if experiment == "lora":
        toys.save_toy_base(folder / "base")
        config = toys.styles_config(str(folder / "base"), **settings)
    else:
        config = toys.points_config(experiment, **settings)
    whole, killed = folder / "whole", folder / "killed"
    for _ in range(2):
        start = time.monotonic()
        subprocess.run(command(config, whole), cwd=ROOT, check=True, capture_output=True)
    # The second only printed its tables: a start. As much again is some of the work.
    longest = 2 * (time.monotonic() - start)
    moments = kill_until_done(command(config, killed), np.random.default_rng(seed), longest, most)
    left, right = numbers(whole), numbers(killed)
    return Outcome(name, len(moments), moments, [key for key in left if left[key] != right.get(key)])


def torture_until(kills: int, names: Sequence[str], seed: int) -> Iterator[Outcome]:
    """`torture` of `RUNS` in turn until there were so many kills; each outcome as it comes."""
    done = 0
    for number, name in enumerate(itertools.cycle(names), seed):
        if done >= kills:
            break
        with tempfile.TemporaryDirectory() as folder:
            outcome = torture(name, number, pathlib.Path(folder), kills - done)
        done += outcome.kills
        yield outcome
