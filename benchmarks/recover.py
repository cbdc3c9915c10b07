"""Recovery and generation from a warm process: seconds to the first token, and a mask for each row; on the CPU.

    python benchmarks/recover.py

What is compared, and figures: benchmarks/README.md.
"""

import json
import os
import pathlib
import statistics

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import rich.console
import rich.table
from absl import app, flags
from timing import interleaved, median_ratio

from ftn_jax import LanguageModel
from ftn_jax.cli.command import load_config
from ftn_jax.models import pretrained
from ftn_jax.runs.build import build, filled, make_pool
from ftn_jax.streams import TEXT, Context, Stream
from ftn_jax.streams.text.sentences import SPLITS

_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds in which the sides take turns.")
_TOKENS = flags.DEFINE_integer("tokens", 32, "To write in each row.")

_CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "jsonl.py"
_ROWS = 8


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    model = random_model()
    rng = np.random.default_rng(0)
    k = filled(load_config(str(_CONFIG))).configurer.k
    masks = [np.sort(rng.choice(model.pool.size, k, replace=False)).astype(np.int32) for _ in range(_ROWS)]
    support = [(f"{text}\n", text.upper()) for text in SPLITS["recovery"][:16]]
    prompts = [f"{text}\n" for text in SPLITS["test"][:_ROWS]]
    tokens = _TOKENS.value

    def first_token():
        return model.generate(prompts[:1], model.recover(support), tokens=1)

    sides = {
        "recover, first token": first_token,
        "8 rows, 8 masks": lambda: model.generate(prompts, masks, tokens=tokens),
        "8 rows, 1 mask": lambda: model.generate(prompts, masks[0], tokens=tokens),
        "8 calls, 8 masks": lambda: [
            model.generate([prompt], mask, tokens=tokens)[0] for prompt, mask in zip(prompts, masks, strict=True)
        ],
    }
    seconds, results = interleaved(sides, _ROUNDS.value)
    if results["8 rows, 8 masks"] != results["8 calls, 8 masks"]:
        raise RuntimeError("rows write something else together than alone")
    ratios = {
        "8 rows of 8 masks over 8 calls": median_ratio(seconds["8 rows, 8 masks"], seconds["8 calls, 8 masks"]),
        "8 rows of 1 mask over 8 rows of 8": median_ratio(seconds["8 rows, 1 mask"], seconds["8 rows, 8 masks"]),
    }
    environment = {"cores": len(os.sched_getaffinity(0)), "tokens": tokens, "jax": jax.__version__}
    table = rich.table.Table(title=", ".join(f"{name} {value}" for name, value in environment.items()))
    for column in ("what", "seconds or ratio", "(range)"):
        table.add_column(column)
    for name, values in seconds.items():
        table.add_row(name, f"{statistics.median(values):.3f}", f"{min(values):.3f}-{max(values):.3f}")
    for name, (ratio, least, most) in ratios.items():
        table.add_row(name, f"{ratio:.2f}", f"{least:.2f}-{most:.2f}")
    rich.console.Console(width=120).print(table)
    print(json.dumps({"environment": environment, "seconds": seconds, "ratios": ratios}))


def random_model() -> LanguageModel:
    """The packaged base and a pool of the config's size whose components all matter."""
    config = filled(load_config(str(_CONFIG)))
    config.pool.b_std = 0.02
    base = pretrained.load("packaged")
    method = build(config, "lora_ftn")
    pool = make_pool(config, Context((0,), base), Stream((), [], "cross_entropy", TEXT))
    return LanguageModel(
        base=base,
        pool=pool,
        method=method,
        method_name="lora_ftn",
        params=pool.init(jax.random.key(0)),
        extra={},
        stored={},
        source="",
        k=config.configurer.k,
    )


if __name__ == "__main__":
    app.run(main)
