"""What proposals say of earlier tasks on the first batch of a new one (docs/reproduction.md); on the CPU.

    python benchmarks/first_batch.py --seed=6

Experiment 1, classification: two tasks are trained by ``ftn_slow_gradient``, then a mask is proposed for the third. For
each proposal and number of steps S the table has the mean logit on the components of the first task, of the second and
of neither, in units of the largest of the three, and the share of both tasks' components among the winners; means over
ten batches. ``eta`` is that of S = 10 in the paper's regression.
"""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from absl import app, flags

from ftn_jax.cli.command import load_config
from ftn_jax.core.configurer import PROPOSALS, smooth_kwta
from ftn_jax.runs.build import build, filled, make_problem
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import init_state

_SEED = flags.DEFINE_integer("seed", 6, "Of the run.")
_STEPS = flags.DEFINE_integer("steps", 1000, "Of each task.")

_CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "synthetic.py"
_METHOD = "ftn_slow_gradient"
_BATCHES = 10


def main(_):
    config = filled(load_config(f"{_CONFIG}:classification"))
    config.seeds, config.stream.steps = (_SEED.value,), _STEPS.value
    problem, method = make_problem(config, None), build(config, _METHOD)
    pool, training, tasks = problem.pool, problem.training, problem.stream.tasks
    with jax.set_mesh(problem.mesh):
        state = init_state(pool, np.array([_SEED.value], np.int32), method=method, training=training)
        masks = []
        for i in range(2):
            state, selection = train_task(pool, method, training, state, tasks[i], i, axis=0)
            masks.append(np.asarray(selection.active[0]))
    params = jax.tree.map(lambda leaf: np.asarray(leaf[0]), state.params)
    third = jax.tree.map(lambda leaf: leaf[0], tasks[2])
    groups = [*masks, np.setdiff1d(np.arange(pool.size), np.concatenate(masks))]
    print("| proposal | S | first task | second task | neither | in the mask: first | second |")
    print("| :-- | --: | --: | --: | --: | --: | --: |")
    for name in PROPOSALS:
        for steps in (1, 2, 3, 5, 10):

            @jax.jit
            def search(key, name=name, steps=steps):
                return smooth_kwta(
                    pool.mask_loss(params, third.batch(key, training.batch)),
                    pool.size,
                    k=config.configurer.k,
                    **{key: config.variants.ftn_slow[key] for key in ("kernel", "lateral_steps")},
                    steps=steps,
                    learning_rate=0.2,
                    proposal=name,
                )

            found = [search(key) for key in jax.random.split(jax.random.key(0), _BATCHES)]
            logits = np.mean([[np.asarray(f.logits)[group].mean() for group in groups] for f in found], 0)
            shares = np.mean([[np.isin(mask, f.active).mean() for mask in masks] for f in found], 0)
            cells = [f"{value:.2f}" for value in (*logits / np.abs(logits).max(), *shares)]
            print(f"| {name} | {steps} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    app.run(main)
