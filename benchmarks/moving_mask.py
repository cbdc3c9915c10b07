"""ftn_reserve beside masks that may still move inside their block, over unclaimed components only; on the CPU.

    python benchmarks/moving_mask.py

Every ten steps the mask is searched again on a batch of the block. Components that it has now are favoured by
``stickiness`` on the smoothed logits (hysteresis); all that it ever had are claimed at the block's end. Figures:
docs/beyond.md.
"""

import dataclasses
import json
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from absl import app, flags

from ftn_jax import Configurer, Method, Selection
from ftn_jax.cli.command import load_config
from ftn_jax.core import metrics
from ftn_jax.core.configurer import smooth_kwta
from ftn_jax.core.mesh import to_host, use_cores
from ftn_jax.methods import build_method
from ftn_jax.runs.build import configurer_of, filled, make_problem, variant_of
from ftn_jax.training.evaluation import evaluate_row
from ftn_jax.training.loop import draw_support, find, train_task
from ftn_jax.training.state import INSTALL, init_state

_SEEDS = flags.DEFINE_integer("seeds", 8, "Seeds of a run.")
_STEPS = flags.DEFINE_integer("steps", 1000, "Of each task.")
_STICKINESS = flags.DEFINE_multi_float("stickiness", [0.0, 0.1, 1.0], "Of the moving masks, one run for each.")

_CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "synthetic.py"
_EVERY = 10  # steps between two searches


def moving(configurer: Configurer, stickiness: float, variant: dict) -> Method:
    """``ftn_reserve``, whose install knows the mask that is in use, and what masks have left behind."""
    reserve = build_method("ftn_reserve", configurer, variant)

    def init(pool, params, key):
        return params, {"barred": jnp.zeros(pool.size, bool), "current": jnp.zeros(pool.size, bool)}

    def install(pool, params, extra, given):
        proposal = smooth_kwta(
            pool.mask_loss(params, given.support), pool.size, k=configurer.k, kernel=variant["kernel"],
            lateral_steps=variant["lateral_steps"], steps=configurer.steps, learning_rate=configurer.learning_rate,
            key=given.key, jitter=configurer.jitter,
            bias=jnp.where(extra["barred"], -jnp.inf, stickiness * extra["current"]),
        )  # fmt: skip
        return Selection(proposal.active)

    return dataclasses.replace(reserve, install=install, init=init)


def run(problem, config, stickiness: float | None) -> dict:
    """Of masks that move with that stickiness; None: that stay where they were installed."""
    stream, axis, seeds = problem.stream, problem.stream.axis, np.arange(_SEEDS.value, dtype=np.int32)
    training = dataclasses.replace(problem.training, chunk=_EVERY)
    method = moving(configurer_of(config, "ftn_reserve"), stickiness or 0.0, variant_of(config, "ftn_reserve")[1])
    pool, support = problem.pool, training.support
    state = init_state(pool, seeds, method=method, training=training)
    installed, rows, moved = [], [], []
    for task, data in enumerate(stream.tasks):
        selection, touched = None, np.zeros((len(seeds), pool.size), bool)
        for first in range(0, training.steps, _EVERY):
            until = min(first + _EVERY, training.steps)
            state, selection = train_task(
                pool,
                method,
                training,
                state,
                data,
                task,
                axis=axis,
                start=first,
                until=until,
                begun=selection,
                installed=installed,
            )
            now = np.zeros_like(touched)
            np.put_along_axis(now, to_host(selection.active), True, 1)
            touched |= now
            state = state._replace(extra=state.extra | {"current": _like(state.extra["current"], now)})
            if stickiness is not None and until < training.steps:
                path = (INSTALL, task, until)
                keys, batch = draw_support(data, state.keys, path, split="batch", size=support, axis=axis)
                selection = find(pool, state, None, batch, task, keys, select=method.install, oracle=False)
        barred = touched | to_host(state.extra["barred"])
        extra = {"barred": _like(state.extra["barred"], barred), "current": jnp.zeros_like(state.extra["current"])}
        state = state._replace(extra=extra)
        installed.append(selection)
        moved.append(touched.sum(1))
        rows.append(evaluate_row(pool, method, state, stream.tasks, task, installed, support=support, axis=axis))
    found = {"stickiness": stickiness, "touched": np.mean(moved, 1).tolist()}
    for protocol in ("stored", "reconfig"):
        matrix = np.stack([getattr(row, protocol)[stream.metric] for row in rows], axis=1)
        found[protocol] = metrics.summarise(matrix, stream.metric)
    return found


def _like(old: jax.Array, new: np.ndarray) -> jax.Array:
    return jax.device_put(new, old.sharding)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    use_cores(_SEEDS.value)
    config = filled(load_config(f"{_CONFIG}:classification"))
    config.seeds, config.stream.steps, config.methods = _SEEDS.value, _STEPS.value, ("ftn_reserve",)
    problem = make_problem(config, None)
    with jax.set_mesh(problem.mesh):
        found = [run(problem, config, stickiness) for stickiness in (None, *_STICKINESS.value)]
    table = rich.table.Table("stickiness", "ACC stored", "FM stored", "ACC reconfig", "FM reconfig", "touched, by task")
    for row in found:
        scores = [
            f"{row[protocol][name]['mean']:.3f} ± {row[protocol][name]['std']:.3f}"
            for protocol in ("stored", "reconfig")
            for name in ("final", "fm")
        ]
        label = "installed once" if row["stickiness"] is None else f"{row['stickiness']:g}"
        table.add_row(label, *scores, ", ".join(f"{count:.0f}" for count in row["touched"]))
    rich.console.Console(width=120).print(table)
    print(json.dumps({"seeds": _SEEDS.value, "steps": _STEPS.value, "rows": found}))


if __name__ == "__main__":
    app.run(main)
