"""Reads what a run has saved of a method, without its stream."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import Config
from ftn_jax.lifelong.progress import Progress
from ftn_jax.methods import Method
from ftn_jax.models import pretrained
from ftn_jax.pools.base import Pool, resized
from ftn_jax.runs.build import build, make_pool, seeds_of, training_of
from ftn_jax.runs.checkpoints import Checkpoints
from ftn_jax.runs.own_parts import check_registered
from ftn_jax.streams import TEXT, Context, Spec, Stream
from ftn_jax.training.state import Training


class Saved(NamedTuple):
    """A method's newest checkpoint, and the objects that it belongs to."""

    base: pretrained.Base | None
    pool: Pool
    method: Method
    training: Training
    progress: Progress


def read_saved(workdir: pathlib.Path, results: dict[str, Any], name: str, base_name: str | None = None) -> Saved:
    """The newest checkpoint of the method ``name`` in a workdir with these results.

    Args:
      workdir: the folder of the run.
      results: the results that it holds.
      name: the name of the method.
      base_name: where the run's base is now; None: where it was. Its weights must have the recorded hash.

    Raises:
      InputError: no checkpoint of such a method, a base that is not the run's, or a user's own part that is not
        registered.
      CheckpointError: checkpoints that can't be read.
    """
    check_registered(results, workdir)
    config: Config = ConfigDict(results["config"])
    folder = workdir / "checkpoints" / name
    if name not in config.methods or not folder.is_dir():
        known = sorted(path.name for path in (workdir / "checkpoints").glob("*"))
        raise InputError(f"workdir {workdir} has no checkpoints of method {name!r}, known: {', '.join(known) or '-'}")
    pinned = results["base_model"]
    base = None
    if pinned:
        try:
            base = pretrained.load(base_name or pinned["name"], **config.model)
        except InputError as error:
            where = "" if base_name else ": if it has moved, name its place with --base"
            raise InputError(f"the base of workdir {workdir} can't be loaded{where} ({error})") from error
        if base.hash != pinned["hash"]:
            raise InputError(
                f"workdir {workdir} was trained on base {pinned['name']!r} (hash {pinned['hash']}), and the weights of "
                f"{base.name!r} differ (hash {base.hash})"
            )
        if base.chat_template != pinned.get("chat_template", ""):
            raise InputError(
                f"workdir {workdir} was trained with another chat template than is in "
                f"{config.model.chat_template_path} now: put it back"
            )
    names, seeds = tuple(results["task_names"]), seeds_of(config)
    method, training = build(config, name), training_of(config)
    context = Context(seeds, base)
    stream = Stream(names, [], results["metric"], spec_of(results))
    pool = method.adapt_pool(make_pool(config, context, stream))
    with Checkpoints(folder, read_only=True) as checkpoints:
        progress = checkpoints.restore(pool, method, training, len(names), seeds)
    if progress is None:
        raise InputError(f"{folder} has no checkpoint yet: wait until the run has saved one")
    return Saved(base, resized(pool, progress.size), method, training, progress)


def spec_of(results: Mapping[str, Any]) -> Spec | None:
    """The spec of a run's batches; if an older version did not save it, the one that its metric implies."""
    if "spec" not in results:
        return {"accuracy": Spec(2, 2), "mse": Spec(2)}.get(results["metric"], TEXT)
    return results["spec"] and Spec(**results["spec"])
