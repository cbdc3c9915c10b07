"""The LoRA pool's training step and mask search at distilgpt2's size, seeds vmapped, in units of the device's matmul.

    python benchmarks/gpu_step.py               # on whatever device JAX finds
    python benchmarks/gpu_step.py --quick       # does it run?

The base is random and the tokens are the style double_words's. What is counted, and figures: benchmarks/README.md.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from absl import app, flags, logging
from sizes import BATCH, LEARNING_RATE, MAX_LENGTH, MODEL, RANK, SIZE, SUPPORT, K, mask_gflop, qkv, step_gflop

from ftn_jax.methods import Configurer, build_method
from ftn_jax.models import decoder, pretrained
from ftn_jax.pools.lora import LoraPool
from ftn_jax.streams import Context
from ftn_jax.streams.text.styles import styles
from ftn_jax.training.loop import install, train_task
from ftn_jax.training.state import Training, init_state, make_optimizer

_QUICK = flags.DEFINE_boolean("quick", False, "One seed, one step, once.")

_STEPS, _SEARCH = 50, 15  # of a block; S
_BATCHES = (BATCH, 8 * BATCH)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.INFO)
    seeds, steps, rounds = (1, 1, 1) if _QUICK.value else (7, _STEPS, 3)
    tokens = pretrained.load("packaged").tokens
    params = jax.jit(decoder.Decoder(MODEL).init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    base = pretrained.Base("random", "", MODEL, params, tokens, "gpt2")
    data = styles(Context((0,), base), ("double_words",), max_length=MAX_LENGTH).tasks[0]
    pools = {
        dtype: LoraPool(
            base=params,
            model=dataclasses.replace(MODEL, dtype=dtype),
            size=SIZE,
            rank=RANK,
            modules=qkv(MODEL),
            b_std=0.02,
        )
        for dtype in ("bfloat16", "float32")
    }
    rates = {dtype: _matmul_rate(dtype, 1024 if _QUICK.value else 8192) for dtype in pools}
    rows = []

    def report_row(dtype, row):
        row |= {"dtype": dtype, "matmul_gflops": rates[dtype]}
        row["share"] = row["gflop"] / row["seconds"] / rates[dtype]
        logging.info("%s", json.dumps(row))
        rows.append(row)

    for batch in _BATCHES[: 1 if _QUICK.value else None]:
        for dtype, pool in pools.items():
            report_row(dtype, _steps(pool, data, seeds, batch, steps, rounds))
    for dtype, pool in pools.items():
        report_row(dtype, _search(pool, data, seeds, rounds))
    device = jax.devices()[0].device_kind
    report = {"device": device, "jax": jax.__version__, "seeds": seeds, "rows": rows}
    table = rich.table.Table(title=f"{device}, jax {jax.__version__}, {seeds} seeds")
    for column in ("", "computed in", "ms", "tokens/s", "TFLOP/s", "matmul's", "share"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        rates = row["tokens"] / row["seconds"], row["gflop"] / row["seconds"] / 1e3, row["matmul_gflops"] / 1e3
        cells = f"{1e3 * row['seconds']:.2f}", f"{rates[0]:,.0f}", *(f"{rate:.1f}" for rate in rates[1:])
        table.add_row(row["name"], row["dtype"], *cells, f"{row['share']:.0%}")
    rich.console.Console(width=120).print(table)
    print(json.dumps(report))


def _steps(pool: LoraPool, data: Any, seeds: int, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """A mean step of a block under a given mask, from drawing the batch to Adam, its boundaries shared out."""
    method = build_method("lora_fixed", Configurer(k=K, steps=0, learning_rate=0.5, jitter=0.0, tasks=1), {})
    training = Training(make_optimizer("adam", LEARNING_RATE, 0.0), steps=steps, batch=batch, support=SUPPORT)
    state = init_state(pool, np.arange(seeds, dtype=np.int32), method=method, training=training)

    def block():
        nonlocal state
        state, _ = train_task(pool, method, training, state, data, 0)
        jax.block_until_ready(state.params)

    (length, targets), name = _shape(data), f"step, {batch} x {data.train.tokens.shape[1]}"
    gflop = seeds * step_gflop(batch * length, length, batch * targets)
    return {
        "name": name, "seconds": _median(block, rounds) / steps, "tokens": seeds * batch * length, "gflop": gflop,
    }  # fmt: skip


def _search(pool: LoraPool, data: Any, seeds: int, rounds: int) -> dict[str, Any]:
    """A whole search for a mask: S passes over all the components."""
    settings = Configurer(k=K, steps=_SEARCH, learning_rate=0.5, jitter=1e-6, tasks=1)
    method = build_method("lora_ftn", settings, {"kernel": 3, "lateral_steps": 15})
    training = Training(make_optimizer("adam", LEARNING_RATE, 0.0), steps=0, batch=BATCH, support=SUPPORT)
    state = init_state(pool, np.arange(seeds, dtype=np.int32), method=method, training=training)

    def search():
        jax.block_until_ready(install(pool, method, state, data, 0, support=SUPPORT, axis=None))

    length, targets = _shape(data)
    gflop = seeds * _SEARCH * mask_gflop(SUPPORT * length, length, SUPPORT * targets)
    tokens = seeds * _SEARCH * SUPPORT * length
    return {
        "name": f"search, {SUPPORT} x {length}", "seconds": _median(search, rounds), "tokens": tokens, "gflop": gflop,
    }  # fmt: skip


def _shape(data: Any) -> tuple[int, int]:
    """Tokens of an example, and how many of them are scored; both padded."""
    return data.train.tokens.shape[1], data.train.columns.shape[1]


def _matmul_rate(dtype: str, n: int) -> float:
    """GFLOP a second of JAX's n x n x n product at its default precision, on random data."""
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product, count = jax.jit(jnp.matmul), 20

    def products():
        jax.block_until_ready([product(a, a) for _ in range(count)])

    return 2 * n**3 * count / 1e9 / _median(products, 5)


def _median(side: Callable[[], None], rounds: int) -> float:
    """Seconds, after a first time that does not count."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        side()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    app.run(main)
