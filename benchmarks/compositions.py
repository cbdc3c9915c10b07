"""What a pool of known tasks is worth to a new one that is made of two of them (docs/beyond.md); hours on two cores.

    python -m ftn_jax.main --config=configs/lora.py --config.base=packaged --config.seeds=5 --config.pool.size=1764 \\
        --config.stream.evaluate=seen --config.methods="('lora_ftn_reserve',)" --workdir=runs/six
    python benchmarks/compositions.py --workdir=runs/six --out=runs/compositions.jsonl

Each of the compositions of two parts is trained alone after the stream of the run, from its end and with the run's own
settings: on fresh components only (k), and by `lora_ftn_compose` with k and with k / 4 components of its own. A line of
the output has, for one seed and composition,

  wanted, reused: the tasks that the search wants, and those that pass the test and are reused
  base, single, zero_shot: loss on the test sentences under no mask, the best stored one, and `recover(compose=True)`
  fresh, compose, quarter: that loss after training, and at every tenth step of it; components of its own

Lines that are there are not computed again; `--table` prints what there is.
"""

import functools
import itertools
import json
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

import ftn_jax
from ftn_jax.core.composition import MOST, search_sets
from ftn_jax.methods import Selection
from ftn_jax.pools.base import mean_losses
from ftn_jax.runs.build import training_of
from ftn_jax.runs.workdir import read_results
from ftn_jax.streams import STREAMS, Context
from ftn_jax.streams.text.sentences import SPLITS
from ftn_jax.streams.text.transforms import transform
from ftn_jax.training.evaluation import active_rows, score
from ftn_jax.training.loop import draw_support, train_task
from ftn_jax.training.state import INSTALL, State

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the run.", required=True)
_OUT = flags.DEFINE_string("out", None, "JSON lines, kept and gone on with.", required=True)
_SEEDS = flags.DEFINE_list("seeds", None, "Of the run; default all.")
_TABLE = flags.DEFINE_bool("table", False, "Only print what there is.")

_PARTS = ("upper", "reverse_words", "double_words", "starred_vowels")
_ARMS = {
    "fresh": ("lora_ftn_reserve", {}),
    "compose": ("lora_ftn_compose", {}),
    "quarter": ("lora_ftn_compose", {"share": 0.25}),
}


def main(_):
    logging.set_verbosity(logging.WARNING)  # orbax tells of every file
    out = pathlib.Path(_OUT.value)
    results = read_results(pathlib.Path(_WORKDIR.value))
    config = ConfigDict(results["config"])
    seeds = [int(seed) for seed in _SEEDS.value or results["seeds"]]
    tasks = [f"{first}+{second}" for first, second in itertools.permutations(_PARTS, 2)]
    methods = {}  # built once, so that all compositions share their programs
    for seed in () if _TABLE.value else seeds:
        model = None
        for i, task in enumerate(tasks):
            if (seed, task) in {(line["seed"], line["task"]) for line in lines_of(out)}:
                continue
            model = model or ftn_jax.load(_WORKDIR.value, seed=seed)
            methods = methods or arms(model, config, len(model.stored) + len(tasks))
            line = {"seed": seed, "task": task} | one(model, config, methods, task, len(model.stored) + i)
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(table(lines_of(out)))


def lines_of(out):
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def arms(model, config, tasks):
    search = {name: value for name, value in config.configurer.items() if name != "support"}
    configurer = ftn_jax.Configurer(tasks=tasks, **search)
    return {arm: ftn_jax.make_method(name, model.pool, configurer, **own)[1] for arm, (name, own) in _ARMS.items()}


def one(model, config, methods, task, index):
    """What there is to say of one composition; ``index`` is its place in the stream, from which its keys are made."""
    settings = {name: config.stream[name] for name in ("held_out", "max_length")}
    stream = STREAMS["styles"].build(Context((model.seed,), model.base), (task,), **settings)
    (data,), training, found = stream.tasks, training_of(config), {}
    known = [Selection(mask[None], np.zeros(1, np.int32)) for mask in model.stored.values()]
    for arm, method in methods.items():
        pool = method.adapt_pool(model.pool)
        params = jax.tree.map(lambda leaf: jnp.array(leaf[None]), model.params)  # train_task takes its buffers
        moments = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], training.optimizer.init(model.params))
        state, curve = State(params, moments, {}, jax.random.key(model.seed)[None]), {}

        def chunk(step, losses, masks, snapshot, pool=pool, method=method, curve=curve):
            rows = active_rows(*snapshot(), method=method)
            curve[step] = float(np.asarray(score(pool, rows, data, axis=stream.axis)["cross_entropy"])[0])

        _, selection = train_task(
            pool, method, training, state, data, index, axis=stream.axis, installed=known, on_chunk=chunk
        )
        answering = selection.answering(0, pool.size)
        own = np.asarray(selection.active[0])
        found[arm] = {"own": int((own < pool.size).sum()), "curve": curve}
        found["reused"] = [name for name, mask in model.stored.items() if np.isin(mask, answering).all()]
    found["wanted"] = wanted(model, data, index, training.support, stream.axis)
    test, support = pairs(task, "test"), pairs(task, "recovery")[: training.support]
    zero = model.recover(support, compose=True)
    found |= {"parts": zero.parts, "zero_shot": float(model.example_losses(test, zero).mean())}
    single = min(float(model.example_losses(test, name).mean()) for name in model.stored)
    return found | {"base": float(model.example_losses(test, None).mean()), "single": single}


def wanted(model, data, index, support, axis):
    """The tasks that the search wants, on the batch on which the task's block was installed."""
    keys = jax.random.key(model.seed)[None]
    _, batch = draw_support(data, keys, (INSTALL, index), split="batch", size=support, axis=axis)
    members = np.zeros((len(model.stored), model.pool.size), bool)
    for own, mask in zip(members, model.stored.values(), strict=True):
        own[mask] = True
    found = np.asarray(_search(model.pool, model.params, members, jax.tree.map(lambda leaf: leaf[0], batch), model.k))
    return [list(model.stored)[number] for number in found if number < len(members)]


@functools.partial(jax.jit, static_argnums=4)
def _search(pool, params, members, batch, k):
    return search_sets(
        mean_losses(pool, params, batch), members, jnp.ones(len(members), bool), most=MOST, size=MOST * k
    )


def pairs(task, split):
    return [(f"{text}\n", transform(task)(text)) for text in SPLITS[split]]


def table(lines):
    """Means over seeds, a row for each composition.

    Named: seeds in which the search wants both parts. Steps: until the loss of k and of k / 4 is no more than fresh k's
    last, medians.
    """
    heads = ("task", "named", "reused", "base", "single", "zero-shot", "fresh k", "compose k", "compose k/4", "steps")
    rows = [f"| {' | '.join(heads)} |", "| :-- | --: | :-- |" + " --: |" * (len(heads) - 3)]
    for task in dict.fromkeys(line["task"] for line in lines):
        own = [line for line in lines if line["task"] == task]
        parts = set(task.split("+"))
        named = sum(parts <= set(line["wanted"]) for line in own)
        reused = ", ".join(sorted({"+".join(line["reused"]) or "none" for line in own}))
        ends = [np.mean([_last(line[arm]) for line in own]) for arm in _ARMS]
        steps = [np.median([_steps(line[arm], _last(line["fresh"])) for line in own]) for arm in ("compose", "quarter")]
        numbers = [np.mean([line[name] for line in own]) for name in ("base", "single", "zero_shot")]
        cells = [f"{named} of {len(own)}", reused, *(f"{number:.3f}" for number in [*numbers, *ends])]
        rows.append(f"| {task} | {' | '.join(cells)} | {', '.join(_told(step) for step in steps)} |")
    return "\n".join(rows)


def _told(step):
    return "never" if np.isinf(step) else f"{step:.0f}"


def _last(arm):
    return list(arm["curve"].values())[-1]


def _steps(arm, goal):
    """The first step whose loss is no more than the goal; infinite where there is none."""
    return next((int(step) for step, loss in arm["curve"].items() if loss <= goal), np.inf)


if __name__ == "__main__":
    app.run(main)
