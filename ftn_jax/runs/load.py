"""Loads the model that a run's folder holds."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import Config
from ftn_jax.pools.lora import LoraPool
from ftn_jax.runs.build import build, seeds_of
from ftn_jax.runs.own_parts import check_registered
from ftn_jax.runs.restore import read_saved
from ftn_jax.runs.trained import Model
from ftn_jax.runs.trained_language import LanguageModel
from ftn_jax.runs.workdir import read_results


def load(
    workdir: str | os.PathLike, method: str | None = None, seed: int | None = None, *, base: str | None = None
) -> Model:
    """The model that a run has trained; if it is still running, the model in its last checkpoint.

    Args:
      workdir: the folder of a run.
      method: the name of a method; by default the config's first.
      seed: a seed of the run; by default the config's first.
      base: where the run's base is now, if it has moved; its weights must have the recorded hash.

    Raises:
      InputError: no such workdir, method or seed, no checkpoint yet, a method that trains nothing, or a base that is
        not the run's.
      CheckpointError: checkpoints that can't be read.
    """
    workdir = pathlib.Path(workdir)
    results = read_results(workdir)
    check_registered(results, workdir)
    config: Config = ConfigDict(results["config"])
    seeds = seeds_of(config)
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise InputError(f"workdir {workdir} has no seed {seed}, known: {', '.join(map(str, seeds))}")
    name = str(config.methods[0]) if method is None else method
    saved = read_saved(workdir, results, name, base)
    if not saved.method.trains:
        trained = [other for other in config.methods if build(config, other).trains]
        raise InputError(
            f"method {name!r} of workdir {workdir} trains nothing, so that there is no model to load: name another "
            f"method, known: {', '.join(trained) or '-'}"
        )
    at, state = seeds.index(seed), saved.progress.state
    params, extra = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[at]), (state.params, state.extra))
    names = results["task_names"]
    selections = dict(zip(names, saved.progress.selections, strict=False))
    masks = {task: np.asarray(selection.active[at]) for task, selection in selections.items()}
    claims = {task: mask[mask < saved.pool.size] for task, mask in masks.items()}
    stored = {task: selection.answering(at, saved.pool.size) for task, selection in selections.items()}
    numbers = [int(numbers[at]) for numbers in saved.progress.used]
    own = {}
    for memory in saved.progress.memories[at : at + 1]:
        known = {task: number for task, number in zip(names, numbers, strict=False) if number < len(memory.own)}
        own = {task: memory.settled(number) for task, number in known.items()}
    adapters = {adapter: np.asarray(mask.active[at]) for adapter, mask in saved.progress.imported.items()}
    claims, stored = claims | adapters, stored | adapters
    k = next((len(mask) for mask in (*masks.values(), *adapters.values())), config.configurer.k)
    made: dict[str, Any] = {
        "pool": saved.pool,
        "method": saved.method,
        "method_name": name,
        "params": params,
        "extra": extra,
        "stored": stored,
        "variants": {task: int(selection.variant[at]) for task, selection in selections.items()},
        "claims": claims if saved.method.reserves else {},
        "source": str(workdir),
        "k": k,
        "seed": seed,
        "own": own,
        "scores": _scores(results, name, at),
    }
    if isinstance(saved.pool, LoraPool):
        assert saved.base is not None
        return LanguageModel(**made, base=saved.base)
    return Model(**made)


def _scores(results: Mapping[str, Any], method: str, seed: int) -> dict[str, dict[str, float]]:
    """task -> protocol -> the last value of the run's metric on its test examples, for the seed with this index."""
    found: dict[str, dict[str, float]] = {}
    entry = results["methods"].get(method, {})
    for protocol in ("stored", "reconfig"):
        for row in entry[protocol]["matrix"][seed] if protocol in entry else ():
            for task, value in zip(results["task_names"], row, strict=False):
                if value is not None:
                    found.setdefault(task, {})[protocol] = value
    return found
