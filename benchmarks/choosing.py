"""Choosing among many claims: how often the shortlist is right, and what it costs beside comparing all.

    python -m ftn_jax.main --config=configs/lora.py:long --config.base=packaged --config.seeds=1 \\
        --config.stream.evaluate=seen --config.methods="('lora_ftn_reserve',)" --workdir=runs/long
    python benchmarks/choosing.py --workdir=runs/long              # half an hour on two cores
    python benchmarks/choosing.py --workdir=runs/long --quick      # does it run?

What is compared, and figures: benchmarks/README.md.
"""

import functools
import itertools
import json
import os
import pathlib
import statistics

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from absl import app, flags, logging
from ml_collections import ConfigDict
from timing import interleaved, median_ratio

import ftn_jax
from ftn_jax.core.shortlist import LENGTH, least
from ftn_jax.methods import Selection
from ftn_jax.methods.claims import best, first_order_scores
from ftn_jax.pools.base import component_count, gather
from ftn_jax.runs.build import make_problem
from ftn_jax.runs.workdir import read_results

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a run whose tasks own their components.", required=True)
_SEED = flags.DEFINE_integer("seed", None, "Of the run; default its first.")
_CLAIMS = flags.DEFINE_list("claims", ["6", "12", "24", "96", "384"], "How many there are to choose from.")
_EXAMPLES = flags.DEFINE_list("examples", ["2", "4", "8", "16"], "How many examples of a task there are.")
_DRAWS = flags.DEFINE_integer("draws", 2000, "Support batches of each task.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds in which the sides take turns.")
_QUICK = flags.DEFINE_boolean("quick", False, "Few claims and examples, one round.")

_SHOWN = (1, 2, 3, 5, 8, 12, 16)  # lengths of a shortlist that the table of places has


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    counts = [int(count) for count in _CLAIMS.value]
    sizes = [int(size) for size in _EXAMPLES.value]
    draws, rounds, tasks, sentences = _DRAWS.value, _ROUNDS.value, None, None
    if _QUICK.value:
        counts, sizes, draws, rounds, tasks, sentences = [6, 48], [2, 4], 20, 1, 3, 6
    results = read_results(pathlib.Path(_WORKDIR.value))
    model = ftn_jax.load(_WORKDIR.value, seed=_SEED.value)
    if not model.method.reserves or not hasattr(model.pool, "slopes"):
        raise app.UsageError(f"--workdir={_WORKDIR.value} is not of a method that reserves, on a pool with slopes")
    stream = make_problem(ConfigDict(results["config"]), results["base_model"]["name"]).stream
    names = [name for name in results["task_names"] if name in model.claims]
    data = [stream.tasks[results["task_names"].index(name)] for name in names][:tasks]
    batches = [_first(_examples(task), sentences) for task in data]
    pool, params, masks = enlarged(model, names, max(counts))
    sums = [Sums(*jax.tree.map(np.asarray, _sums(pool, params, masks, batch))) for batch in batches]
    rows = []
    for count, size in itertools.product(counts, sizes):
        own = [s.first(count) for s in sums[:count]]
        rows.append({"claims": count, "examples": size} | accuracy(own, min(count, len(names)), size, draws))
        held = jax.tree.map(lambda leaf, count=count: leaf[:count], masks)
        support = _first(batches[0], size)
        sides = {
            "all": lambda held=held, support=support: jax.block_until_ready(_all(pool, params, held, support)),
            "listed": lambda held=held, support=support: jax.block_until_ready(_listed(pool, params, held, support)),
        }
        seconds, found = interleaved(sides, rounds)
        ratio, low, high = median_ratio(seconds["listed"], seconds["all"])
        rows[-1] |= {"seconds": seconds, "ratio": ratio, "range": [low, high]}
        rows[-1]["same"] = bool(np.array_equal(found["all"][0].active, found["listed"][0].active))
    environment = {
        "workdir": _WORKDIR.value,
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "tasks": len(data),
        "examples of a task": [len(s.counts) for s in sums],
        "rank of a task": model.k * model.pool.rank,
        "shortlist": LENGTH,
    }
    report(environment, rows)


class Sums:
    """What is known of each example of one task, from which any support batch of it is a few sums.

    counts [n]: scored tokens; without [n]: loss without components; scores, losses [n, M]: of each claim. All are sums
    over the tokens.
    """

    def __init__(self, counts, without, scores, losses):
        self.counts, self.without, self.scores, self.losses = counts, without, scores, losses

    def first(self, count: int) -> "Sums":
        """The same of the first ``count`` claims only."""
        return Sums(self.counts, self.without, self.scores[:, :count], self.losses[:, :count])


def accuracy(sums: list[Sums], real: int, size: int, draws: int) -> dict:
    """Over support batches of ``size`` examples, each of the first ``real`` tasks: the shares of right choices.

    Returns:
      "all" and "listed": how often the right claim is chosen; "differs": how often the two do not choose the same;
      "compared": mean number of claims that the shortlist compares; "missed_right" and "missed_best": for each length
      of a shortlist, how often it leaves out the right claim, and the claim with the least loss.
    """
    rng, found = np.random.default_rng(0), []
    for task, own in enumerate(sums[:real]):
        n = len(own.counts)
        chosen = np.stack([rng.permutation(n)[: min(size, n)] for _ in range(draws)])
        count = own.counts[chosen].sum(1)
        parts = ((whole[chosen].sum(1).T / count).T for whole in (own.without, own.scores, own.losses))
        without, scores, losses = (jnp.asarray(part, jnp.float32) for part in parts)
        number = np.asarray(_chosen(without, scores, losses))
        places = np.asarray(jnp.argsort(jnp.argsort(scores, axis=1), axis=1))
        lowest = np.asarray(losses.argmin(1))
        of_best = places[np.arange(draws), lowest]
        found.append(
            np.stack([lowest == task, number[0] == task, number[0] != lowest, number[1], places[:, task], of_best])
        )
    right, listed, differs, compared, place, of_best = np.concatenate(found, axis=1)
    return {
        "draws": len(right),
        "all": right.mean(),
        "listed": listed.mean(),
        "differs": differs.mean(),
        "compared": compared.mean(),
        "missed_right": {length: (place >= length).mean() for length in _SHOWN},
        "missed_best": {length: (of_best >= length).mean() for length in _SHOWN},
    }


@jax.jit
def _chosen(without, scores, losses):
    """The choices int32[n] of the shortlist for n batches, and how many claims it compares, int32[n]."""

    def one(given):
        without, scores, losses = given
        there = jnp.ones(len(scores), bool)
        place = jnp.argsort(jnp.argsort(scores))
        # All are compared where a claim beyond the shortlist is chosen if its loss is low enough.
        bait = jnp.where(place < LENGTH, losses, -jnp.inf)
        number, other = (least(lambda i, of=of: of[i], there, lambda: (without, scores)) for of in (losses, bait))
        return number, jnp.where(place[other] < LENGTH, min(LENGTH, len(scores)), len(scores))

    return jax.lax.map(one, (without, scores, losses))


def enlarged(model, names: list[str], count: int):
    """(pool, params, masks) of ``count`` claims: those of the run, and others that have learned nothing.

    The others are claims of the run with the channels of A and of B permuted: of the same size, but without a sense.
    """
    real = [model.stored[name] for name in names]
    longest = max(map(len, real))
    padded = np.stack([np.pad(mask, (0, longest - len(mask)), constant_values=model.pool.size) for mask in real])
    claims = jax.tree.map(lambda leaf: np.asarray(leaf.at[padded].get(mode="fill", fill_value=0)), model.params)
    rng, others = np.random.default_rng(0), []
    for _, number in zip(range(count - len(names)), itertools.cycle(range(len(names))), strict=False):
        own = jax.tree.map(lambda leaf, number=number: leaf[number], claims)
        others.append(jax.tree.map(lambda leaf: leaf[..., rng.permutation(leaf.shape[-1])], own))
    rows = jax.tree.map(lambda leaf, *rest: np.concatenate([leaf, *(one[None] for one in rest)]), claims, *others)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf.reshape(-1, *leaf.shape[2:])), rows)
    size = component_count(params)
    active = jnp.arange(size, dtype=jnp.int32).reshape(-1, longest)
    return model.pool.replace(size=size), params, Selection(active, jnp.zeros(len(active), jnp.int32))


_listed = jax.jit(best)
_all = jax.jit(functools.partial(best, shortlist=False))


@jax.jit
def _sums(pool, params, masks, batch):
    """`Sums` of the examples of a batch."""

    def one(example):
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        without, scores = first_order_scores(pool, params, masks, alone)
        count = alone.weights.sum()
        return count, count * without, count * scores

    def losses(active):
        rows = gather(params, active)
        return pool.example_losses(rows, jnp.ones(component_count(rows)), batch)[0]

    return *jax.lax.map(one, batch), jax.lax.map(losses, masks.active).T


def _examples(data):
    """All examples of a task that are not trained on, as one batch."""
    spare = data.recovery if data.counts is None else _first(data.recovery, int(data.counts[1]))
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), spare, data.test())
    return jax.tree.map(lambda leaf: leaf[whole.weights.sum(1) > 0], whole)


def _first(batch, count: int | None):
    return jax.tree.map(lambda leaf: leaf[:count], batch)


def report(environment: dict, rows: list[dict]) -> None:
    table = rich.table.Table(title=", ".join(f"{name} {value}" for name, value in environment.items()))
    heads = ("claims", "examples", "all, s", "shortlist, s", "ratio (range)", "right: all", "shortlist", "compared")
    for column in heads:
        table.add_column(column, justify="right")
    for row in rows:
        seconds = (f"{statistics.median(row['seconds'][side]):.3f}" for side in ("all", "listed"))
        low, high = row["range"]
        shares = f"{row['all']:.2%}", f"{row['listed']:.2%}", f"{row['compared']:.1f}"
        cells = str(row["claims"]), str(row["examples"]), *seconds, f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})"
        table.add_row(*cells, *shares)
    places = rich.table.Table(
        title="left out by a shortlist of this length: the right claim / the claim with the least loss"
    )
    for column in ("claims", "examples", *map(str, _SHOWN)):
        places.add_column(column, justify="right")
    for row in rows:
        missed = (f"{row['missed_right'][n]:.2%} / {row['missed_best'][n]:.2%}" for n in _SHOWN)
        places.add_row(str(row["claims"]), str(row["examples"]), *missed)
    for shown in (table, places):
        rich.console.Console(width=160).print(shown)
    print(json.dumps({"environment": environment, "rows": rows}))


if __name__ == "__main__":
    app.run(main)
