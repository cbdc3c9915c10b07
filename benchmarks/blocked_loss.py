"""What a loss by blocks of the vocabulary saves, and what it costs: memory and time of a loss and its gradient.

    python benchmarks/blocked_loss.py

The head of Qwen2.5-0.5B (151,936 tokens, width 896, float32) on 8 x 48 scored positions; the gradient is that of the
hidden states, since the head is frozen. Both sides take turns in one run.
"""

import json
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from ftn_jax.models import scores

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds that are timed, after one that is not.")

TOKENS, WIDTH, POSITIONS = 151_936, 896, (8, 48)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    rng = np.random.default_rng(0)
    params = {"embed": jnp.asarray(0.02 * rng.standard_normal((TOKENS, WIDTH), np.float32))}
    hidden = jnp.asarray(rng.standard_normal((*POSITIONS, WIDTH), np.float32))
    labels = jnp.asarray(rng.integers(0, TOKENS, POSITIONS), jnp.int32)
    programs = {}
    for name, most in (("all at once", 2**40), ("by blocks", 0)):
        scores._MOST = most  # pyright: ignore
        loss = jax.value_and_grad(lambda hidden, params: scores.token_scores(params, hidden, labels)[0].mean())
        programs[name] = jax.jit(loss).lower(hidden, params).compile()
    seconds = {name: [] for name in programs}
    values = {}
    for round_ in range(_ROUNDS.value + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            values[name] = jax.block_until_ready(program(hidden, params))
            if round_:
                seconds[name].append(time.perf_counter() - start)
    np.testing.assert_allclose(*(np.asarray(gradient) for _, gradient in values.values()), rtol=1e-3, atol=1e-8)
    megabytes = {name: program.memory_analysis().temp_size_in_bytes / 1e6 for name, program in programs.items()}
    medians = {name: float(np.median(of)) for name, of in seconds.items()}
    whole, blocks = programs
    for name in programs:
        print(f"{name}: {megabytes[name]:.0f} MB beside parameters and results, {1e3 * medians[name]:.0f} ms")
    ratios = {"megabytes": megabytes[blocks] / megabytes[whole], "seconds": medians[blocks] / medians[whole]}
    print(json.dumps({"megabytes": megabytes, "seconds": medians, "ratios": ratios}))


if __name__ == "__main__":
    app.run(main)
