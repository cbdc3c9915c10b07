"""Saves imported adapters in a workdir. Their components count as taken, so no later block trains them."""

import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ftn_jax.core.errors import InputError
from ftn_jax.core.mesh import to_host
from ftn_jax.core.rules import Config
from ftn_jax.lifelong.growth import free_components
from ftn_jax.lifelong.progress import Progress, place
from ftn_jax.methods import Method, Selection
from ftn_jax.pools.adapter import Adapter, free_block
from ftn_jax.pools.adapter import place as fitted
from ftn_jax.pools.base import Params, Pool, component_count
from ftn_jax.pools.lora import LoraPool
from ftn_jax.runs.build import seeds_of
from ftn_jax.runs.checkpoints import Checkpoints
from ftn_jax.runs.restore import Saved, read_saved
from ftn_jax.runs.workdir import lock, read_results, save_results


def save_adapters(
    workdir: pathlib.Path,
    method: str,
    adapters: Mapping[str, tuple[np.ndarray, Params]],
    *,
    seed: int,
    base: str | None = None,
) -> None:
    """Saves a checkpoint of a method with adapters added, for each seed in components that none of its masks uses.

    Args:
      workdir: the folder of a run.
      method: its name in the config.
      adapters: name -> (its components int32[k] for ``seed``, its params [k, ...]).
      seed: the seed of the run whose components are given; other seeds get free ones.
      base: where the run's base is now, if it has moved.

    Raises:
      InputError: no adapter, a name that is taken, a method that does not reserve components, a workdir that is in use,
        or components that are not free or too few.
      CheckpointError: checkpoints that can't be read or written.
    """
    if not adapters:
        raise InputError(f"no adapter was imported, expected with_adapter before save into workdir {workdir}")
    read_results(workdir)  # refuses a folder that is no workdir, which the lock would create
    with lock(workdir):
        results = read_results(workdir)
        config: Config = ConfigDict(results["config"])
        saved = read_saved(workdir, results, method, base)
        if not saved.method.reserves:
            raise InputError(
                f"{method} reserves no components, so later tasks would change those of an adapter: expected a run of "
                "a method that reserves them, such as lora_ftn_reserve"
            )
        for name, (active, rows) in adapters.items():
            if name in saved.progress.imported or name in results["task_names"]:
                raise InputError(f"workdir {workdir} has a task or adapter named {name!r} already: rename the folder")
            _add(saved, name, active, rows, seeds_of(config).index(seed), workdir)
        progress = saved.progress
        with Checkpoints(workdir / "checkpoints" / method) as checkpoints:
            checkpoints.save(progress, progress.task * config.stream.steps + progress.step)
            checkpoints.wait()
        if method in results["methods"]:
            results["methods"][method]["imported"] = masks_of(progress)
            save_results(results, config, workdir)


def begin_with(progress: Progress, pool: Pool, method: Method, adapters: Sequence[Adapter]) -> None:
    """Puts adapters into a pool that has not been trained yet, for each seed in the same components.

    Raises:
      InputError: two of a name, one that does not fit the components, or too few components.
    """
    k = method.reserves
    for adapter in adapters:
        if adapter.name in progress.imported:
            raise InputError(f"config.pool.adapters: two are named {adapter.name!r}, expected different names")
        taken = np.zeros(pool.size, bool)
        taken[[h for mask in masks_of(progress).values() for h in mask[0]]] = True
        active = free_block(pool.size, k, taken)
        none = jax.tree.map(lambda leaf: jnp.zeros((k, *leaf.shape[2:])), progress.state.params)
        assert isinstance(pool, LoraPool)  # the only one with this setting
        _put(
            progress,
            adapter.name,
            fitted(pool, none, adapter, jnp.arange(k)),
            [active] * len(progress.state.keys),
        )


def masks_of(progress: Progress) -> dict[str, list[list[int]]]:
    """The components [E, k] of each imported adapter, as in `results.json`."""
    return {name: to_host(mask.active).tolist() for name, mask in progress.imported.items()}


def _add(saved: Saved, name: str, active: np.ndarray, rows: Params, at: int, workdir: pathlib.Path) -> None:
    """Adds one adapter to the progress; ``at`` is the index of the seed whose components are ``active``."""
    progress, size, k = saved.progress, saved.progress.size, component_count(rows)
    masks = to_host([mask.active for mask in progress.held])
    least = min(free_components(saved.pool, saved.method, progress))
    if least < k:
        raise InputError(
            f"{least} of the pool's {size} components are free for one of the seeds of workdir {workdir}, expected at "
            f"least {k} for adapter {name!r}"
        )
    chosen = []
    for seed in range(len(progress.state.keys)):
        taken = np.zeros(size + 1, bool)
        taken[np.concatenate([mask[seed] for mask in masks])] = True
        if seed == at and (active.max() >= size or taken[active].any()):
            raise InputError(
                f"workdir {workdir} has trained since this model was loaded, and has given the components of adapter "
                f"{name!r} to a task: load the workdir again, then import the adapter again"
            )
        chosen.append(active if seed == at else free_block(size, k, taken[:size]))
    _put(progress, name, rows, chosen)


def _put(progress: Progress, name: str, rows: Params, chosen: Sequence[np.ndarray]) -> None:
    """Writes an adapter's rows [k, ...] to the ``chosen`` components of each seed."""
    every = np.stack(chosen).astype(np.int32)
    progress.state = progress.state._replace(params=_placed(progress.state.params, every, rows))
    selection = Selection(every, np.zeros(len(every), np.int32))  # pyright: ignore
    progress.imported = {**progress.imported, name: place(selection)}


@jax.jit
def _placed(params, active, rows):
    """Params [E, H, ...] with the rows [k, ...] written to the components [E, k] of each seed."""
    seeds = jnp.arange(len(active))[:, None]
    return jax.tree.map(lambda leaf, row: leaf.at[seeds, active].set(row[None]), params, rows)
