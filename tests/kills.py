"""The real command, killed at random moments and started again until it ends."""

import itertools
import json
import os
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
from programs import ROOT

from ftn_jax.core.rules import flatten


class Run(NamedTuple):
    """What is killed: an experiment's config at toy size."""

    experiment: str
    settings: dict[str, Any]
    one_device: bool = False  # all seeds on it, as on an accelerator; else a device for each, as on a CPU


RUNS = {
    "classification": Run("classification", {"methods": ("ftn_slow_kept", "supsup", "ewc")}, one_device=True),
    "jsonl": Run("jsonl", {"methods": ("lora_ftn_reserve",), "seeds": 2, "pool.grow": True, "pool.size": 4}, True),
    "lora": Run("lora", {"methods": ("lora_ftn",)}, one_device=True),
    "unannounced": Run(
        "lora",
        {
            "methods": ("lora_ftn_reserve",),
            "stream.boundaries": "unknown",
            "stream.tasks": ("lower", "pirate", "lower#2", "reverse_words"),
            "optimizer.learning_rate": 0.05,
            "pool.grow": True,
            "pool.size": 4,
        },
    ),
}
_OURS = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")  # variables that conftest.py sets and a user does not


class Outcome(NamedTuple):
    """Of one workdir that was killed until it was finished."""

    name: str
    kills: int
    midway: int  # of these, with something saved and not everything
    moments: list[float]  # seconds after its start at which a command was killed
    differences: list[str]


def command(config: ConfigDict, workdir: pathlib.Path) -> list[str]:
    """The command line that runs a toy config."""
    file = {"styles": "lora.py"}.get(config.stream.name, f"{config.stream.name}.py")
    kinds = ("config.stream.name", "config.pool.name")  # which are the file's
    flags = [f"--{name}={value}" for name, value in flatten(config).items() if name not in kinds]
    return [sys.executable, "-m", "ftn_jax.main", f"--config={toys.CONFIGS / file}", *flags, f"--workdir={workdir}"]


def numbers(workdir: pathlib.Path) -> dict[str, Any]:
    """Everything that must not depend on kills: `results.json` without times and memory, and the curves."""
    results = json.loads((workdir / "results.json").read_text())
    for entry in results["methods"].values():
        del entry["seconds"], entry["cost"]
    return results | {"curves": sorted((workdir / "metrics.csv").read_text().splitlines())}


def environment(run: Run, quick: bool) -> dict[str, str]:
    """A user's, who has none of the flags with which the tests compile; ``quick`` keeps those of XLA."""
    own = {name: value for name, value in os.environ.items() if name not in _OURS[quick:]}
    return own | ({"JAX_NUM_CPU_DEVICES": "1"} if run.one_device else {})


def kill_until_done(
    arguments: list[str], env: dict[str, str], killed: pathlib.Path, rng: np.random.Generator, longest: float, most: int
) -> tuple[list[float], int]:
    """Starts a command until it ends by itself, ``most`` times killed.

    In turn up to ``longest`` seconds after its start, and soon after it has saved some times in the workdir ``killed``,
    where a single kill is the latter.

    Returns:
      The moments, and how many of them came when something was saved and a method was missing.
    """
    moments, midway = [], 0
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    while True:
        last, start = saved_in(killed), time.monotonic()
        blindly = most > 1 and len(moments) % 2 == 0
        delay, saves = rng.uniform(0, longest if blindly else 0.2), rng.integers(1, 10)
        with subprocess.Popen(arguments, cwd=ROOT, env=env, **pipes) as run:
            while len(moments) < most and not blindly and run.poll() is None and saves:
                time.sleep(0.02)
                last, saves = (now := saved_in(killed)), saves - (now != last)
            try:
                _, said = run.communicate(timeout=delay if len(moments) < most else None)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
                moments.append(time.monotonic() - start)
                midway += bool(saved_in(killed)) and not finished(killed)
                continue
        if run.returncode:
            raise RuntimeError(f"after {len(moments)} kills the command ended with {run.returncode}: {said[-2000:]}")
        return moments, midway


def saved_in(workdir: pathlib.Path) -> set[pathlib.Path]:
    """The folders of its checkpoints that are complete."""
    return set((workdir / "checkpoints").glob("*/[0-9]*[0-9]"))


def finished(workdir: pathlib.Path) -> bool:
    """Whether it has all methods of its config."""
    results = json.loads((workdir / "results.json").read_text())
    return len(results["methods"]) == len(results["config"]["methods"])


def torture(name: str, seed: int, folder: pathlib.Path, most: int, quick: bool = False) -> Outcome:
    """One of `RUNS` trained twice: undisturbed, and killed all along, up to ``most`` times.

    Compiled as a user's, or as the other tests' if that has to be ``quick``.
    """
    run = RUNS[name]
    settings = {"stream.steps": 60, "checkpoint.every_steps": 10} | run.settings
    if run.experiment in ("lora", "jsonl"):
        toys.save_toy_base(folder / "base", n_positions=64)
    if run.experiment == "lora":
        config = toys.styles_config(str(folder / "base"), **settings)
    elif run.experiment == "jsonl":
        config = toys.jsonl_config(str(folder / "base"), toys.write_tasks(folder)[:2], **settings)
    else:
        config = toys.points_config(run.experiment, **settings)
    whole, killed, env = folder / "whole", folder / "killed", environment(run, quick)
    for _ in range(min(most, 2)):
        start = time.monotonic()
        subprocess.run(command(config, whole), cwd=ROOT, env=env, check=True, capture_output=True)
    # The second only printed its tables: a start. As much again is some of the work. A single kill needs no such limit.
    longest = 2 * (time.monotonic() - start)

    rng = np.random.default_rng(seed)
    moments, midway = kill_until_done(command(config, killed), env, killed, rng, longest, most)
    left, right = numbers(whole), numbers(killed)
    return Outcome(name, len(moments), midway, moments, [key for key in left if left[key] != right.get(key)])


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
