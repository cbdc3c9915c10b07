"""The LoRA pool's training step beside PEFT's in PyTorch, and an install in units of training passes; on the CPU.

    pip install -r requirements-parity.txt
    python benchmarks/lora_step.py

What is compared, and figures: benchmarks/README.md.
"""

import dataclasses
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import rich.console
import rich.table
import torch
import transformers
from absl import app, flags, logging
from sizes import (
    BATCH,
    LEARNING_RATE,
    MAX_LENGTH,
    MODEL,
    MODELS,
    NAMES,
    RANK,
    SIZE,
    SUPPORT,
    K,
    mask_gflop,
    qkv,
    step_gflop,
)
from timing import Sides, interleaved

from ftn_jax.core.masks import fixed_block
from ftn_jax.methods import Configurer, build_method
from ftn_jax.models import pretrained
from ftn_jax.models.families import family_of
from ftn_jax.models.published import published_config
from ftn_jax.pools.base import gather
from ftn_jax.pools.lora import LoraPool, TokenBatch
from ftn_jax.streams import Context, Stream
from ftn_jax.streams.text.styles import styles
from ftn_jax.streams.text.transforms import TRANSFORMS
from ftn_jax.training.loop import install, train_task
from ftn_jax.training.state import Training, init_state, make_optimizer

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds of the single steps; a third of it for the others.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps of each style in a round.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "packaged", "Base whose tokenizer encodes the styles.")
_MODELS = flags.DEFINE_list("models", list(MODELS), "Which to compare.")
_QUICK = flags.DEFINE_boolean("quick", False, "One round of one step: does it run?")
_CPU_TIME = flags.DEFINE_boolean(
    "cpu_time", False, "Seconds of processor time instead of wall clock: for one core of a busy machine (taskset -c 0)."
)

_CONFIGURER = Configurer(k=K, steps=15, learning_rate=0.5, jitter=1e-6, tasks=len(TRANSFORMS))
_IGNORED = -100  # PyTorch's label where there is no loss


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.INFO)
    rounds, steps = (1, 1) if _QUICK.value else (_ROUNDS.value, _STEPS.value)
    tokens = pretrained.load(_TOKENIZER.value).tokens
    chosen = _MODELS.value
    unknown = set(chosen) - MODELS.keys()
    if unknown:
        raise app.UsageError(f"unknown models {', '.join(unknown)}, known: {', '.join(MODELS)}")
    rates = _sgemm_rates()
    rows = []
    if "distilgpt2" in chosen:
        rows += compare_distilgpt2(tokens, rounds, steps)
    if "smollm2" in chosen:
        for k in (K, 4):
            pool, adapter = _twins("smollm2", k)
            rows.append(compare_step("smollm2", pool, adapter, k, 48, rounds))
    for row in rows:
        row["share"] = row["gflop"] / row["ours"] / max(rates.values())
    report = {"environment": _environment(), "sgemm_gflops": rates, "rows": rows}
    _print(report)
    print(json.dumps(report))


def compare_distilgpt2(tokens: Any, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Steps, a mean step over the six styles, and installs, at distilgpt2's size."""
    pool, adapter = _twins("distilgpt2", K)
    base = pretrained.Base("random", "", MODEL, pool.base, tokens, "gpt2")
    stream = styles(Context((0,), base), tuple(TRANSFORMS), max_length=MAX_LENGTH)
    fewer = max(1, rounds // 3)
    rows = [compare_step("distilgpt2", pool, adapter, K, length, rounds) for length in (64, MAX_LENGTH)]
    rows += compare_styles(pool, adapter, stream, fewer, steps)
    return rows + [
        compare_install(pool, stream, name, fewer) for name in ("lower", "double_words")
    ]  # shortest, longest


def compare_step(name: str, pool: LoraPool, adapter: Any, k: int, length: int, rounds: int) -> dict[str, Any]:
    """One optimisation step on one batch [8, length] without padding, logits at every column.

    Raises:
      RuntimeError: the losses of the two differ, so they do not compute the same.
    """
    tokens = np.random.default_rng(length).integers(0, pool.model.vocabulary, (BATCH, length))
    weights = np.ones(tokens.shape, np.float32)
    weights[:, -1] = 0  # the last column predicts nothing; PEFT computes its logits, and so do we
    columns = np.tile(np.arange(length), (BATCH, 1))
    batch = TokenBatch(*map(jnp.asarray, (tokens, columns, np.roll(tokens, -1, axis=1), weights)))
    optimizer = make_optimizer("adam", LEARNING_RATE, 0.0)

    @jax.jit
    def step(pool, rows, state, batch):
        loss, grads = jax.value_and_grad(pool.active_loss)(rows, batch)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(rows, updates), state, loss

    rows = gather(jax.jit(LoraPool.init)(pool, jax.random.key(length)), fixed_block(0, k))
    _copy_adapter(rows, adapter)
    trained = rows, optimizer.init(rows)

    def ours():
        nonlocal trained
        *trained, loss = step(pool, *trained, batch)
        return float(loss)

    peft_step = _peft_step(adapter)
    their_tokens = torch.as_tensor(tokens)

    def theirs():
        return peft_step(their_tokens, torch.ones_like(their_tokens), their_tokens)

    seconds, losses = _interleaved({"theirs": theirs, "ours": ours}, rounds)
    if not np.allclose(losses["ours"], losses["theirs"], rtol=1e-3):
        raise RuntimeError(f"the losses differ: {losses}")
    gflop = step_gflop(tokens.size, length, tokens.size, pool.model, k * RANK)
    return _row(f"{name}, r = {k * RANK}, step, {BATCH} x {length} tokens", seconds, "theirs", 1.0, gflop)


def compare_styles(pool: LoraPool, adapter: Any, stream: Stream, rounds: int, steps: int) -> list[dict[str, Any]]:
    """A mean step over the six styles: `train_task` under a given mask, and a plain loop around PEFT.

    PEFT's batches are padded to their longest example, or all to 96 tokens; both sides draw 8 of 80 examples.
    """
    method = build_method("lora_fixed", _CONFIGURER, {})
    training = Training(make_optimizer("adam", LEARNING_RATE, 0.0), steps=steps, batch=BATCH, support=SUPPORT)
    state = init_state(pool, np.zeros(1, np.int32), method=method, training=training)
    tasks = range(len(stream.tasks))

    def ours():
        nonlocal state
        for i in tasks:
            state, _ = train_task(pool, method, training, state, stream.tasks[i], i)
        jax.block_until_ready(state.params)

    def theirs(pad_to: int | None):
        for i in tasks:
            step, batches = _peft_step(adapter), _peft_batches(stream.tasks[i].train, pad_to, seed=i)
            for _ in range(steps):
                step(*next(batches))

    sides = {"longest": lambda: theirs(None), "ours": ours, "fixed": lambda: theirs(MAX_LENGTH)}
    seconds, _ = _interleaved(sides, rounds)
    count = steps * len(tasks)
    means = {name: [value / count for value in values] for name, values in seconds.items()}
    shapes = [(t.train.tokens.shape[1], t.train.columns.shape[1]) for t in stream.tasks]
    gflop = statistics.mean(step_gflop(BATCH * q, q, BATCH * p) for q, p in shapes)
    return [
        _row("six styles, PEFT padded to the longest", means, "longest", 0.7, gflop),
        _row(f"six styles, PEFT padded to {MAX_LENGTH}", means, "fixed", None, gflop),
    ]


def compare_install(pool: LoraPool, stream: Stream, name: str, rounds: int) -> dict[str, Any]:
    """One configurer call, in units of a loss and its gradient at rank 288 on a batch of the same 16 examples."""
    task = stream.names.index(name)
    data, pool = stream.tasks[task], dataclasses.replace(pool, b_std=0.02)  # B is not zero, as after training
    method = build_method("lora_ftn", _CONFIGURER, {"kernel": 3, "lateral_steps": 15})
    training = Training(make_optimizer("adam", LEARNING_RATE, 0.0), steps=0, batch=BATCH, support=SUPPORT)
    state = init_state(pool, np.zeros(1, np.int32), method=method, training=training)
    rows = jax.tree.map(lambda leaf: leaf[0, :K], state.params)
    batch = data.batch(jax.random.key(0), SUPPORT)
    passes = jax.jit(lambda pool, rows, batch: jax.value_and_grad(pool.active_loss)(rows, batch))

    def ours():
        return jax.block_until_ready(install(pool, method, state, data, task, support=SUPPORT, axis=None))

    def one_pass():
        return jax.block_until_ready(passes(pool, rows, batch))

    seconds, _ = _interleaved({"pass": one_pass, "ours": ours}, rounds)
    (_, length), targets = batch.tokens.shape, batch.columns.size
    gflop = _CONFIGURER.steps * mask_gflop(batch.tokens.size, length, targets)
    return _row(f"install, {name} ({SUPPORT} x {length}), in passes", seconds, "pass", 25.0, gflop)


def _interleaved(sides: Sides, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Seconds and results of each side in each round, the sides one after the other; a first round does not count."""
    return interleaved(sides, rounds, time.process_time if _CPU_TIME.value else time.perf_counter)


def _row(name: str, seconds: dict[str, list[float]], unit: str, goal: float | None, gflop: float) -> dict[str, Any]:
    """Medians over the rounds; the ratio is the median of the rounds' ratios, since a machine's speed drifts."""
    ratios = [ours / theirs for ours, theirs in zip(seconds["ours"], seconds[unit], strict=True)]
    logging.info("%s: %.2f", name, statistics.median(ratios))
    return {
        "name": name,
        "ours": statistics.median(seconds["ours"]),
        "theirs": statistics.median(seconds[unit]),
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
        "goal": goal,
        "gflop": gflop,
    }


def _twins(name: str, k: int) -> tuple[LoraPool, Any]:
    """The pool and PEFT's model on the same random weights, with k components and a LoRA of rank k r."""
    torch.manual_seed(0)
    raw, config = published_config(NAMES[name]) or {}, MODELS[name]
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0) if name == "distilgpt2" else {}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw, **dropout))
    family = family_of(raw, name)
    tensors = {key.removeprefix(family.prefix): value.numpy() for key, value in model.state_dict().items()}
    random = pretrained.Checkpoint(raw, frozenset(tensors), tensors.__getitem__, None, (), [])
    base = pretrained.read_params(random, family, config, name)
    rank, modules = k * RANK, qkv(config)
    lora = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=[module.split(".")[-1] for module in modules],
        fan_in_fan_out=not family.transposed,
    )
    pool = LoraPool(base=base, model=config, size=SIZE, rank=RANK, modules=modules)
    return pool, peft.get_peft_model(model, lora).train()


def _copy_adapter(rows: Any, adapter: Any) -> None:
    """Gives PEFT's adapter the values of the pool's active rows."""
    with torch.no_grad():
        for full, module in adapter.named_modules():
            name = next((name for name in rows if full.endswith(f".{name}")), None)
            if name is None:
                continue
            layer = int(re.findall(r"\.(\d+)\.", full)[0])
            a, b = (np.array(rows[name][leaf][:, layer]) for leaf in ("a", "b"))
            module.lora_A["default"].weight.copy_(torch.from_numpy(a.reshape(-1, a.shape[-1])))
            module.lora_B["default"].weight.copy_(torch.from_numpy(b.reshape(-1, b.shape[-1]).T))


def _peft_step(adapter: Any) -> Callable[..., float]:
    """One step of a fresh Adam on the adapter: (tokens, attention mask, labels) -> loss."""
    optimizer = torch.optim.Adam([p for p in adapter.parameters() if p.requires_grad], lr=LEARNING_RATE)

    def step(tokens, mask, labels):
        optimizer.zero_grad()
        loss = adapter(input_ids=tokens, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _peft_batches(split: TokenBatch, pad_to: int | None, seed: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Random batches (tokens, attention mask, labels) of a split, padded to their longest example or to a length."""
    rng = np.random.default_rng(seed)
    examples = []
    for tokens, columns, labels, weights in zip(*map(np.asarray, split), strict=True):
        prompt, target = tokens[: columns[0] + 1].tolist(), labels[weights > 0].tolist()
        examples.append((prompt + target, [_IGNORED] * len(prompt) + target))
    while True:
        chosen = [examples[i] for i in rng.choice(len(examples), BATCH, replace=False)]
        length = pad_to or max(len(tokens) for tokens, _ in chosen)
        yield (
            torch.tensor([tokens + [0] * (length - len(tokens)) for tokens, _ in chosen]),
            torch.tensor([[1] * len(tokens) + [0] * (length - len(tokens)) for tokens, _ in chosen]),
            torch.tensor([labels + [_IGNORED] * (length - len(labels)) for _, labels in chosen]),
        )


def _sgemm_rates() -> dict[str, float]:
    """What NumPy, JAX and PyTorch reach at 2048 x 2048 x 2048, in GFLOP a second."""
    n = 2048
    a = np.random.default_rng(0).standard_normal((n, n), np.float32)
    jax_a, torch_a, product = jnp.asarray(a), torch.from_numpy(a), jax.jit(jnp.matmul)
    sides = {
        "numpy": lambda: a @ a,
        "jax": lambda: product(jax_a, jax_a).block_until_ready(),
        "torch": lambda: torch_a @ torch_a,
    }
    # One after the other: NumPy's threads spin for a while after each product and would slow down whoever is next.
    seconds = {name: _interleaved({name: side}, 10)[0][name] for name, side in sides.items()}
    return {name: 2 * n**3 / 1e9 / min(values) for name, values in seconds.items()}


def _environment() -> dict[str, Any]:
    names = {"jax": jax, "torch": torch, "peft": peft, "transformers": transformers, "numpy": np}
    threads = {"cores": len(os.sched_getaffinity(0)), "torch_threads": torch.get_num_threads()}
    clock = {"clock": "cpu" if _CPU_TIME.value else "wall"}
    return threads | clock | {name: module.__version__ for name, module in names.items()}


def _print(report: dict[str, Any]) -> None:
    environment = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    sgemm = ", ".join(f"{name} {rate:.0f}" for name, rate in report["sgemm_gflops"].items())
    table = rich.table.Table(title=f"{environment}; SGEMM in GFLOP/s: {sgemm}")
    for column in ("", "ours, ms", "PEFT or pass, ms", "ratio", "(range)", "goal", "GFLOP", "of SGEMM"):
        table.add_column(column, justify="right" if column else "left")
    for row in report["rows"]:
        table.add_row(
            row["name"],
            f"{1e3 * row['ours']:.0f}",
            f"{1e3 * row['theirs']:.0f}",
            f"{row['ratio']:.2f}",
            "{:.2f}-{:.2f}".format(*row["ratios"]),
            "" if row["goal"] is None else f"{row['goal']}",
            f"{row['gflop']:.0f}",
            f"{row['share']:.0%}",
        )
    rich.console.Console(width=140).print(table)


if __name__ == "__main__":
    app.run(main)
