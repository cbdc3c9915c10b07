"""What checkpoints cost a run: the first task of a config with and without them; on the CPU.

    python benchmarks/checkpoint_cost.py

What is compared, and figures: benchmarks/README.md.
"""

import contextlib
import json
import os
import pathlib
import statistics
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import rich.console
import rich.table
from absl import app, flags, logging
from timing import interleaved, median_ratio

from ftn_jax.cli.command import load_config
from ftn_jax.core.mesh import use_cores
from ftn_jax.runs.build import filled, make_problem
from ftn_jax.runs.checkpoints import Checkpoints
from ftn_jax.runs.driver import run_method
from ftn_jax.runs.monitor import Monitor

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds in which the two sides take turns.")
_SEEDS = flags.DEFINE_integer("seeds", 2, "Seeds of a run.")

_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
_RUNS = {
    "synthetic.py:classification": ("ftn_slow", "fixedmask"),
    "lora.py:quick": ("lora_ftn", "lora_naive"),
}
_GOAL = 1.03


class NoCheckpoints(contextlib.nullcontext):
    """Stands where `Checkpoints` do and keeps nothing."""

    def __enter__(self):
        return self

    def save(self, progress, at):
        pass

    def restore(self, *args):
        return None


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # orbax tells every file
    use_cores(_SEEDS.value)
    rows = [cost(config, method) for config, methods in _RUNS.items() for method in methods]
    environment = {"cores": len(os.sched_getaffinity(0)), "seeds": _SEEDS.value, "jax": jax.__version__}
    table = rich.table.Table(title=", ".join(f"{name} {value}" for name, value in environment.items()))
    for column in ("method", "checkpoints", "MB each", "with, s", "without, s", "ratio", "(range)"):
        table.add_column(column)
    for row in rows:
        ratio, least, most = row["ratio"]
        numbers = (f"{row['megabytes']:.1f}", f"{row['with']:.2f}", f"{row['without']:.2f}")
        table.add_row(row["method"], str(row["saved"]), *numbers, f"{ratio:.3f}", f"{least:.3f}-{most:.3f}")
    rich.console.Console(width=120).print(table)
    print(json.dumps({"environment": environment, "goal": _GOAL, "rows": rows}))


def cost(file: str, name: str) -> dict:
    """One method on the first task, its evaluation included; as many checkpoints a step as in the whole run."""
    config = filled(load_config(str(_CONFIGS / file)))
    config.seeds, config.methods, config.stream.tasks = _SEEDS.value, (name,), config.stream.tasks[:1]
    problem = make_problem(config, config.get("base"))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = pathlib.Path(folder)
        quiet = rich.console.Console(quiet=True)
        monitor = stack.enter_context(Monitor(root, quiet))
        count = iter(range(1000))
        kept = root / "0"

        def run(checkpoints):
            with checkpoints:
                run_method(problem, name, monitor, checkpoints, lambda: False)

        def with_them():
            nonlocal kept
            kept = root / f"{next(count)}"
            run(Checkpoints(kept))

        seconds, _ = interleaved({"with": with_them, "without": lambda: run(NoCheckpoints())}, _ROUNDS.value)
        newest = max(kept.iterdir(), key=lambda path: int(path.name))
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    return {
        "method": name,
        "saved": -(-config.stream.steps // config.checkpoint.every_steps),
        "megabytes": size / 1e6,
        "with": statistics.median(seconds["with"]),
        "without": statistics.median(seconds["without"]),
        "ratio": median_ratio(seconds["with"], seconds["without"]),
    }


if __name__ == "__main__":
    app.run(main)
