"""A training step of FTN-Slow at the paper's size beside Algorithm 1 written literally in PyTorch; on the CPU.

    pip install -r requirements-parity.txt
    python benchmarks/pool_step.py

What is compared, and figures: benchmarks/README.md.
"""

import json
import os
import pathlib
import statistics
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import rich.console
import rich.table
import torch
from absl import app, flags
from timing import interleaved, median_ratio

from ftn_jax.cli.command import load_config
from ftn_jax.pools.base import gather
from ftn_jax.runs.build import build, filled, make_problem
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import init_state

_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds in which the two sides take turns.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps of a side in a round.")
_ACTIVATION = flags.DEFINE_enum("activation", "gelu", ["gelu", "relu"], "Of both sides.")

_CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "synthetic.py"
_GOALS = {"classification": 6.0, "regression": 20.0}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    rows = [compare(target) for target in _GOALS]
    environment = {
        "cores": len(os.sched_getaffinity(0)),
        "torch threads": torch.get_num_threads(),
        "activation": _ACTIVATION.value,
        **{name: module.__version__ for name, module in {"jax": jax, "torch": torch, "numpy": np}.items()},
    }
    table = rich.table.Table(title=", ".join(f"{name} {value}" for name, value in environment.items()))
    for column in ("FTN-Slow step", "ours, ms", "PyTorch, ms", "times as fast", "(range)", "goal"):
        table.add_column(column)
    for row in rows:
        speedup, least, most = row["speedup"]
        cells = (f"{1e3 * row['ours']:.1f}", f"{1e3 * row['theirs']:.0f}", f"{speedup:.1f}", f"{least:.1f}-{most:.1f}")
        table.add_row(row["name"], *cells, f"{row['goal']:.0f}")
    rich.console.Console(width=120).print(table)
    print(json.dumps({"environment": environment, "rows": rows}))


def compare(target: str) -> dict[str, Any]:
    """One variant: a mean step of `train_task`, data and reconfiguration included, and PyTorch's on a given batch.

    Raises:
      RuntimeError: the two find other masks or losses for the same weights and batch.
    """
    config = filled(load_config(f"{_CONFIG}:{target}"))
    config.methods, config.seeds, config.stream.steps = ("ftn_slow",), 1, _STEPS.value
    config.pool.activation = _ACTIVATION.value
    problem, method = make_problem(config, None), build(config, "ftn_slow")
    pool, training, data = problem.pool, problem.training, problem.stream.tasks[0]
    state = init_state(pool, np.zeros(1, np.int32), method=method, training=training)
    first = jax.tree.map(lambda leaf: leaf[0], (state.params, data))
    params, batch = first[0], first[1].batch(jax.random.key(0), config.stream.batch)
    peer = Peer(params, config)
    x, y = torch.from_numpy(np.array(batch.x)), torch.from_numpy(np.array(batch.y))
    y = y.long() if target == "classification" else y

    _check(peer, method.select(pool, params, {}, batch, None, jax.random.key(0)).active, pool, params, batch, x, y)

    def ours():
        nonlocal state
        state, _ = train_task(pool, method, training, state, data, 0, axis=0)
        jax.block_until_ready(state.params)

    def theirs():
        for _ in range(_STEPS.value):
            peer.step(x, y)

    seconds, _ = interleaved({"theirs": theirs, "ours": ours}, _ROUNDS.value)
    return {
        "name": target,
        "ours": statistics.median(seconds["ours"]) / _STEPS.value,
        "theirs": statistics.median(seconds["theirs"]) / _STEPS.value,
        "speedup": median_ratio(seconds["theirs"], seconds["ours"]),
        "goal": _GOALS[target],
    }


def _check(peer, active, pool, params, batch, x, y) -> None:
    found = torch.nonzero(peer.configure(x, y)).ravel().numpy()
    shared = np.isin(found, np.asarray(active)).mean()
    mask = torch.zeros(pool.size)
    mask[torch.from_numpy(np.array(active)).long()] = 1.0
    losses = peer.loss(x, y, mask).item(), float(pool.active_loss(gather(params, active), batch))
    # The sign of a gradient near zero may differ: S = 1 makes a step of +-1 of it.
    if shared < 0.95 or not np.isclose(*losses, rtol=1e-3):
        raise RuntimeError(f"masks share {shared:.0%}, losses under one mask are {losses}")


class Peer:
    """Algorithm 1 and the training step as the paper states them: dense einsums over all H networks."""

    def __init__(self, params, config):
        def leaf(a):
            return torch.from_numpy(np.array(a)).requires_grad_()

        self.weights, self.biases = [leaf(w) for w in params["w"]], [leaf(b) for b in params["b"]]
        self.readout, self.config = leaf(params["readout"]), config
        self.side = int(config.pool.size**0.5)
        self.activation = {
            "gelu": lambda h: torch.nn.functional.gelu(h, approximate="tanh"),
            "relu": torch.relu,
        }[config.pool.activation]
        o = config.optimizer
        self.optimizer = torch.optim.Adam([*self.weights, *self.biases, self.readout], lr=o.learning_rate)

    def loss(self, x, y, mask, dropout=0.0):
        # Networks first: with the batch first, einsum transposes at every layer.
        h = torch.einsum("bi,hio->hbo", x, self.weights[0]) + self.biases[0][:, None]
        for w, b in zip(self.weights[1:], self.biases[1:], strict=True):
            h = torch.einsum("hbi,hio->hbo", self.activation(h), w) + b[:, None]
        z = torch.nn.functional.dropout(h[..., 0].T, dropout) * mask
        prediction = z @ self.readout
        if self.config.stream.target == "classification":
            return torch.nn.functional.cross_entropy(prediction, y)
        return torch.nn.functional.mse_loss(prediction[:, 0], y)

    def configure(self, x, y):
        c, variant = self.config.configurer, self.config.variants.ftn_slow
        logits = torch.zeros(self.config.pool.size, requires_grad=True)
        adam = torch.optim.Adam([logits], lr=c.learning_rate)
        for _ in range(c.steps):
            adam.zero_grad()
            self.loss(x, y, torch.sigmoid(logits)).backward()
            adam.step()
        field = logits.detach().reshape(1, 1, self.side, self.side)
        kernel = torch.full((1, 1, variant.kernel, variant.kernel), variant.kernel**-2.0)
        pad = (variant.kernel // 2,) * 4
        for _ in range(variant.lateral_steps):
            field = torch.nn.functional.conv2d(torch.nn.functional.pad(field, pad, mode="circular"), kernel)
        mask = torch.zeros(self.config.pool.size)
        mask[field.ravel().topk(c.k).indices] = 1.0
        return mask

    def step(self, x, y):
        mask = self.configure(x, y)
        self.optimizer.zero_grad()
        self.loss(x, y, mask, self.config.pool.dropout).backward()
        self.optimizer.step()


if __name__ == "__main__":
    app.run(main)
