"""From where a search over the masks of earlier tasks finds the right one (docs/beyond.md); a quarter of an hour.

    python benchmarks/claim_search.py --workdir=runs/long --out=runs/claims.jsonl

For each task of a run whose tasks own their components, a few examples of its recovery split are drawn, and Algorithm 1
runs with one logit for each task's mask: from the paper's start, where every mask is half on, from starts nearer to
none, with more steps, with relaxed masks that are sharpened step by step, and with the gradient proposal. A line of the
output has, for one seed, task, number of examples and draw, the place of the right task in each search, and in the
order of the losses themselves; lines that are there are not computed again.
"""

import itertools
import json
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from ml_collections import ConfigDict

import ftn_jax
from ftn_jax.core.composition import union
from ftn_jax.core.configurer import named_proposal, propose
from ftn_jax.pools.base import mean_losses
from ftn_jax.runs.build import make_problem, seeds_of
from ftn_jax.runs.workdir import read_results
from ftn_jax.training.loop import draw_support

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the run.", required=True)
_OUT = flags.DEFINE_string("out", None, "JSON lines, kept and gone on with.", required=True)
_EXAMPLES = flags.DEFINE_list("examples", ["4", "8", "16"], "How many examples of a task there are.")
_DRAWS = flags.DEFINE_integer("draws", 3, "Batches of each task.")

_PATH = (977,)  # of the keys with which examples are drawn
_SHORT = 5  # places that count as found by a search which only proposes
_SHARPER = 4.0  # the factor of a sharpened relaxed mask's logits at its last step


def main(_):
    logging.set_verbosity(logging.WARNING)
    workdir, out = pathlib.Path(_WORKDIR.value), pathlib.Path(_OUT.value)
    results = read_results(workdir)
    config = ConfigDict(results["config"])
    pinned = results["base_model"]
    problem = make_problem(config, pinned and pinned["name"])
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    there = {(line["seed"], line["task"], line["examples"], line["draw"]) for line in lines}
    stream = problem.stream
    for at, seed in enumerate(seeds_of(config)):
        model = ftn_jax.load(workdir, seed=seed)
        members = np.stack([np.isin(np.arange(model.pool.size), model.stored[task]) for task in model.claims])
        own = [data if stream.axis is None else of_seed(data, at) for data in stream.tasks]
        for (index, task), examples in itertools.product(enumerate(model.claims), map(int, _EXAMPLES.value)):
            for draw in range(_DRAWS.value):
                if (seed, task, examples, draw) in there:
                    continue
                keys, path = jax.random.key(seed)[None], (*_PATH, index, draw)
                _, batch = draw_support(own[index], keys, path, split="support", size=examples, axis=stream.axis)
                orders = _search(model.pool, model.params, members, jax.tree.map(lambda leaf: leaf[0], batch))
                places = {how: int(np.flatnonzero(order == index)[0]) for how, order in orders.items()}
                lines.append({"seed": seed, "task": task, "examples": examples, "draw": draw, "places": places})
                with out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))


def of_seed(data, at):
    """Of data [E, ...] those of one seed, [1, ...]."""
    return jax.tree.map(lambda leaf: leaf[at : at + 1], data)


@jax.jit
def _search(pool, params, members, batch):
    """Name of a search -> the numbers of the masks, the likeliest first."""
    losses, count = mean_losses(pool, params, batch), len(members)

    def loss(values):
        return losses(union(members.astype(jnp.float32), values)).mean()

    def search(proposal, start, steps, eta):
        return propose(loss, count, steps=steps, optimizer=named_proposal(proposal, eta), start=start)[0]

    first = -jax.grad(loss)(jnp.zeros(count))
    alone = jax.lax.map(lambda own: losses(own.astype(jnp.float32)).mean(), members)
    few = jax.lax.top_k(first, min(_SHORT, count))[1]
    listed = jnp.full(count, -jnp.inf).at[few].set(-alone[few])
    logits = {
        "Adam, 15 steps from 1/2, the paper's": search("adam", 0.5, 15, 0.5),
        "Adam, 40 steps from 1/2": search("adam", 0.5, 40, 0.5),
        "Adam, 15 steps from 0.1": search("adam", 0.1, 15, 0.5),
        "Adam, 15 steps from 1/N": search("adam", 1 / count, 15, 0.5),
        "Adam, 40 steps from 1/N": search("adam", 1 / count, 40, 0.5),
        "Adam, 15 steps from 1/2, sharpened": _sharpened(loss, count, 0.5),
        "Adam, 15 steps from 1/N, sharpened": _sharpened(loss, count, 1 / count),
        "gradient, 15 steps from 0.05": search("gradient", 0.05, 15, 1.0),
        "gradient, 40 steps from 0.05": search("gradient", 0.05, 40, 1.0),
        "one gradient at 1/2": search("gradient", 0.5, 1, 1.0),
        "one gradient at the empty mask": first,
        "one gradient at the empty mask, then the losses of its first five": listed,
        "the losses of all": -alone,
    }
    return {name: jnp.argsort(-values) for name, values in logits.items()}


def _sharpened(loss, count, start, steps=15, eta=0.5):
    """Adam's steps on logits that are multiplied by 1 at the first step and by `_SHARPER` at the last."""
    origin, optimizer = jnp.log(start / (1 - start)), optax.adam(eta)

    def step(carry, factor):
        moved, state = carry
        gradient = jax.grad(lambda moved: loss(jax.nn.sigmoid(origin + factor * moved)))(moved)
        updates, state = optimizer.update(gradient, state)
        return (moved + updates, state), None

    moved = jnp.zeros(count)
    (moved, _), _ = jax.lax.scan(step, (moved, optimizer.init(moved)), jnp.geomspace(1.0, _SHARPER, steps))
    return moved


def table(lines):
    """The share of draws in which the right task comes first, and among the first five, of all tasks and seeds."""
    counts = sorted({line["examples"] for line in lines})
    rows = ["| search | " + " | ".join(f"{count} examples" for count in counts) + " |"]
    rows.append("| :-- |" + " --: |" * len(counts))
    for name in lines[0]["places"]:
        cells = []
        for count in counts:
            places = np.array([line["places"][name] for line in lines if line["examples"] == count])
            cells.append(f"{(places == 0).mean():.1%}, {(places < _SHORT).mean():.1%}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    app.run(main)
