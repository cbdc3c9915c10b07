"""What each search says of earlier tasks' components, at every install and recovery (docs/reproduction.md).

    python benchmarks/installs.py --base=packaged
    python benchmarks/installs.py --base=smollm2     # half an hour a method on two cores

Experiment 2, one seed, `configs/lora.py`. For each install (a row is the task that begins) and for each recovery at the
end of the stream (a row is the task whose examples they are) the cells have, for the components of each task that is
trained: the mean logit after S steps, then the share that is in the mask which was found. The last cell is of the
components that no task has.
"""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from absl import app, flags

from ftn_jax.cli.command import load_config
from ftn_jax.core.configurer import smooth_kwta
from ftn_jax.runs.build import build, configurer_of, filled, make_problem, variant_of
from ftn_jax.training.loop import draw_support, train_task
from ftn_jax.training.state import INSTALL, RECOVER, init_state

_BASE = flags.DEFINE_string("base", "packaged", "As config.base.")
_METHOD = flags.DEFINE_string("method", "lora_ftn", "Or lora_ftn_gradient.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the run.")
_STEPS = flags.DEFINE_integer("steps", 200, "Of each task.", 1)

_CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "lora.py"


def main(_):
    config = filled(load_config(str(_CONFIG)))
    config.base, config.seeds, config.stream.steps, config.methods = (
        _BASE.value,
        (_SEED.value,),
        _STEPS.value,
        (_METHOD.value,),
    )
    problem, method = make_problem(config, config.base), build(config, _METHOD.value)
    pool, training, stream = method.adapt_pool(problem.pool), problem.training, problem.stream
    variant, c = variant_of(config, _METHOD.value)[1], configurer_of(config, _METHOD.value)
    smoothed = variant["lateral_steps"]
    blurs = {INSTALL: smoothed, RECOVER: variant.get("recovery_lateral_steps", smoothed)}

    @jax.jit
    def losses(params, mask, batch):
        return pool.loss(params, mask, batch)

    def search(state, data, path, split):
        keys, batch = draw_support(data, state.keys, path, split=split, size=training.support, axis=None)
        batch, params = jax.tree.map(lambda leaf: leaf[0], (batch, state.params))
        program = jax.jit(
            lambda params, batch, key: smooth_kwta(
                pool.mask_loss(params, batch), pool.size, k=c.k, kernel=variant["kernel"], lateral_steps=blurs[path[0]],
                steps=c.steps, learning_rate=c.learning_rate, proposal=c.proposal, start=c.start,
                key=key, jitter=c.jitter,
            )
        )  # fmt: skip
        found = program(params, batch, keys[0])
        on = np.isin(np.arange(pool.size), found.active).astype(np.float32)
        compared = {"base": 0 * on, "all half on": 0 * on + c.start, "found": on}
        return found, {name: float(losses(params, mask, batch)) for name, mask in compared.items()}

    def show(name, found, told, masks):
        free = np.setdiff1d(np.arange(pool.size), np.concatenate([*masks, []]))
        logits, cells = np.asarray(found.logits), []
        for group in (*masks, free):
            cells.append(
                f"{logits[group].mean():+.2f}, {np.isin(group, found.active).mean():.2f}" if len(group) else ""
            )
        cells[-1:-1] = [""] * (len(stream.names) - len(masks))
        print(f"| {name} | {' | '.join(f'{loss:.2f}' for loss in told.values())} | {' | '.join(cells)} |", flush=True)

    heading = ["", "loss: base", f"all at {c.start:g}", "found", *stream.names, "untrained"]
    print(f"{_METHOD.value} on {problem.base.name}, seed {_SEED.value}\n\n| {' | '.join(heading)} |")
    print(f"| :-- {'| --: ' * (len(heading) - 1)}|")
    with jax.set_mesh(problem.mesh):
        state = init_state(pool, np.array([_SEED.value], np.int32), method=method, training=training)
        masks, installed = [], []
        for i, (name, data) in enumerate(zip(stream.names, stream.tasks, strict=True)):
            found, told = search(state, data, (INSTALL, i), "batch")
            show(f"installed: {name}", found, told, masks)
            state, selection = train_task(pool, method, training, state, data, i, axis=None, installed=installed)
            assert np.array_equal(selection.active[0], found.active)  # the run's own search
            masks.append(np.asarray(found.active))
            installed.append(selection)
        last = len(masks) - 1
        for i, (name, data) in enumerate(zip(stream.names, stream.tasks, strict=True)):
            show(f"recovered: {name}", *search(state, data, (RECOVER, last, i), "support"), masks)


if __name__ == "__main__":
    app.run(main)
