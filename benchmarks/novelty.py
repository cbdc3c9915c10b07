"""How well a trained run tells tasks that it has not learned from its own ones: errors at every level of the test.

    python -m ftn_jax.main --config=configs/lora.py:long,12,0 --config.base=packaged --config.seeds=2 \\
        --config.stream.evaluate=seen --config.methods="('lora_ftn_reserve',)" --workdir=runs/twelve
    python benchmarks/novelty.py --workdir=runs/twelve --figure=docs/figures/many_tasks/novelty.png

Support batches are drawn from the test examples of each task of the run, and from those of the other tasks of its kind
(the other styles, or the other files of the folder). A *false refusal* is a batch of a task of the run that is said to
be of none, a *false accept* one of another task that is said to be of one. `mine` of `ftn_jax.load(...).recover` uses
the level of `ftn_jax.lifelong.novelty`, at which a mask is promised to refuse at most one in a thousand batches of its
own task.
"""

import functools
import json
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import matplotlib.pyplot as plt
import numpy as np
import rich.console
import rich.table
from absl import app, flags, logging
from ml_collections import ConfigDict

import ftn_jax
from ftn_jax.lifelong.novelty import LEVEL, at_home, upper_bound
from ftn_jax.runs.build import make_problem, seeds_of
from ftn_jax.runs.workdir import read_results
from ftn_jax.streams.text.transforms import TRANSFORMS
from ftn_jax.training.evaluation import remains

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a run whose method reserves components.", required=True)
_EXAMPLES = flags.DEFINE_list("examples", ["4", "8", "16"], "Sizes of the support batches.")
_DRAWS = flags.DEFINE_integer("draws", 500, "Support batches of each task and seed.")
_FIGURE = flags.DEFINE_string("figure", None, "A file for the curves.")

_LEVELS = np.logspace(-9, np.log10(0.5), 60)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    results = read_results(pathlib.Path(_WORKDIR.value))
    config = ConfigDict(results["config"])
    known, everything = list(results["task_names"]), _every_task(config)
    stream = make_problem(everything, results["base_model"]["name"]).stream
    found = {int(size): [] for size in _EXAMPLES.value}
    for seed in seeds_of(config):
        model = ftn_jax.load(_WORKDIR.value, seed=seed)
        if not model.own:
            raise app.UsageError(f"--workdir={_WORKDIR.value}: the run kept nothing to judge examples by")
        left = {
            name: np.asarray(_remains(model, data.test()), float)
            for name, data in zip(stream.names, stream.tasks, strict=True)
        }
        for size, errors in found.items():
            errors.append(errors_of(left, known, list(model.own.values()), size, seed))
    rows = {size: np.mean(errors, axis=0) for size, errors in found.items()}
    report(rows, len(known), len(stream.names) - len(known), seeds_of(config))


def _every_task(config: ConfigDict) -> ConfigDict:
    """The config with all tasks of the stream's kind, those of the run first."""
    every = ConfigDict(config.to_dict())
    if config.stream.name == "styles":
        own = tuple(config.stream.tasks)
        every.stream.tasks = own + tuple(style for style in TRANSFORMS if style not in own)
    elif config.stream.name == "jsonl":
        own = tuple(config.stream.files)
        folder = pathlib.Path(own[0]).parent
        every.stream.files = own + tuple(str(f) for f in sorted(folder.glob("*.jsonl")) if str(f) not in own)
    else:
        raise app.UsageError(f"--workdir={_WORKDIR.value} is of stream {config.stream.name!r}, expected one of text")
    return every


def _remains(model, batch):
    """What is left of each example's loss under each mask, [M, 2, n]; rows without targets are padding."""
    there = np.asarray(batch.weights).any(1)
    batch = jax.tree.map(lambda leaf: leaf[there], batch)
    return _jitted(model.pool, model.method, model.params, model.extra, model._selections(model.own), batch)


_jitted = functools.partial(jax.jit, static_argnums=1)(remains)


def errors_of(left: dict, known: list[str], own: list, size: int, seed: int) -> np.ndarray:
    """The shares of errors at every level, [2, levels], then those at `LEVEL`: false refusals, and false accepts."""
    rng = np.random.default_rng(seed)
    levels = np.append(_LEVELS, LEVEL)
    bounds = np.array(
        [
            [[upper_bound([s[d] for s in samples], size, level / 2) for d in range(2)] for samples in own]
            for level in levels
        ]
    )  # [levels, M, 2]
    accepted: dict[bool, list] = {True: [], False: []}
    for name, measures in left.items():
        n = measures.shape[2]
        drawn = np.stack([rng.permutation(n)[:size] for _ in range(_DRAWS.value)])
        means = measures[:, :, drawn].mean(3)  # [M, 2, draws]
        fits = (means[None] <= bounds[..., None]).all(2).any(1)  # [levels, draws]
        for batch, said in zip(drawn[:3], fits[-1], strict=False):
            if said != (at_home(measures[:, :, batch], own) is not None):
                raise RuntimeError(f"{name}: the library decides otherwise")
        accepted[name in known].append(fits.mean(1))
    return np.stack([1 - np.mean(accepted[True], axis=0), np.mean(accepted[False], axis=0)])


def report(rows: dict[int, np.ndarray], known: int, others: int, seeds: tuple[int, ...]) -> None:
    table = rich.table.Table(
        title=f"{known} tasks of the run, {others} others, seeds {seeds}, {_DRAWS.value} batches of each task and seed"
    )
    heads = ("examples", "promised", "false refusals", "false accepts", "both alike at level", "errors there")
    for column in heads:
        table.add_column(column, justify="right")
    for size, (refused, accepted) in rows.items():
        alike = int(np.abs(refused - accepted)[:-1].argmin())
        cells = f"{LEVEL:g}", f"{refused[-1]:.2%}", f"{accepted[-1]:.2%}", f"{_LEVELS[alike]:.1e}"
        table.add_row(str(size), *cells, f"{(refused[alike] + accepted[alike]) / 2:.2%}")
    rich.console.Console(width=140).print(table)
    if _FIGURE.value:
        figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
        for size, (refused, accepted) in rows.items():
            line = axes.plot(accepted[:-1], 1 - refused[:-1], label=f"{size} examples")[0]
            axes.plot(accepted[-1], 1 - refused[-1], "o", color=line.get_color())
        axes.set(xlabel="false accepts", ylabel="own tasks accepted", title=f"{known} tasks known, {others} not")
        axes.legend()
        pathlib.Path(_FIGURE.value).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(_FIGURE.value, dpi=150)
    curves = {size: {"refused": r.tolist(), "accepted": a.tolist()} for size, (r, a) in rows.items()}
    print(json.dumps({"levels": [*_LEVELS.tolist(), LEVEL], "curves": curves}))


if __name__ == "__main__":
    app.run(main)
