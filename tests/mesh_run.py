"""Trains two toy tasks on meshes of several shapes, for test_mesh: see `main`."""

import contextlib
import pickle
import sys

import jax
import numpy as np
import toys
from jax._src import compiler  # nothing public tells what is compiled inside a call

from ftn_jax.core.mesh import make_mesh, spread, to_host
from ftn_jax.runs.program_costs import exchanges_of
from ftn_jax.training.evaluation import evaluate_row
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import init_state

STEPS = 5
SEEDS = (3, 7, 1, 4)


def main(file: str, pool_name: str, method_name: str, *shapes: str) -> None:
    """Writes to ``file``, for each shape, such as 2x2x2 (seed x data x pool), what `run` gives."""
    results = {shape: run(pool_name, method_name, tuple(map(int, shape.split("x")))) for shape in shapes}
    with open(file, "wb") as opened:
        pickle.dump(results, opened)


def run(pool_name: str, method_name: str, shape: tuple[int, ...]) -> dict:
    """Params before, between and after the tasks; their masks; losses and scores; what the programs exchange."""
    method, training = toys.toy_method(method_name), toys.toy_training(steps=STEPS, chunk=STEPS)
    pool, stream = method.adapt_pool(toys.POOLS[pool_name]()), toys.toy_pool_stream(pool_name, SEEDS)
    if pool_name == "lora":
        pool = pool.replace(model=toys.toy_config(dtype="float64"))
    else:  # what a second layer does, the first one's output layer does too: it would only take longer to compile
        pool = pool.replace(layers=1)
    mesh = make_mesh(len(SEEDS), training.batch, pool.size, **dict(zip(("seed", "data", "pool"), shape, strict=True)))
    per_seed = ("seed",) if stream.axis == 0 else ()
    losses, masks, selections = [], [], []
    with jax.set_mesh(mesh), compiled_programs() as programs:
        pool, tasks = spread(pool, mesh), spread(stream.tasks, mesh, *per_seed)
        state = init_state(pool, np.array(SEEDS, np.int32), method=method, training=training)
        params = [to_host(state.params)]
        for i in range(2):
            state, selection = train_task(
                pool, method, training, state, tasks[i], i, axis=stream.axis,
                on_chunk=lambda _, loss, moved, __: (losses.append(loss), masks.append(moved)),
            )  # fmt: skip
            selections.append(selection)
            params.append(to_host(state.params))
        row = evaluate_row(pool, method, state, tasks, 1, selections, support=training.support, axis=stream.axis)
        installed = [to_host(selection.active) for selection in selections]
        axes = {leaf.sharding.spec for leaf in jax.tree.leaves((state.params, state.extra))}
        return {
            "params": params,
            "moments": to_host(state.opt_state),
            "extra": to_host(state.extra),
            "losses": losses,
            "scores": (row.stored, row.reconfig),
            "masks": [installed[i][:, None] if moved is None else moved for i, moved in enumerate(masks)],
            "recovered": [to_host(selection.active) for selection in row.recovered],
            "axes": sorted(map(str, axes)),
            "exchanged": [exchange for text in programs for exchange in exchanges_of(text)],
        }


@contextlib.contextmanager
def compiled_programs():
    """The text of every program that is compiled inside, as it runs on a device."""
    texts, whole = [], compiler.compile_or_get_cached

    def listen(*args, **kwargs):
        executable = whole(*args, **kwargs)
        texts.extend(module.to_string() for module in executable.hlo_modules())
        return executable

    compiler.compile_or_get_cached = listen
    try:
        yield texts
    finally:
        compiler.compile_or_get_cached = whole


if __name__ == "__main__":
    main(*sys.argv[1:])
