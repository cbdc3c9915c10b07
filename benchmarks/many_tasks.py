"""What a practitioner would do instead: one PEFT adapter a task in PyTorch, the one with the least loss answers.

    pip install -r requirements-parity.txt
    python benchmarks/many_tasks.py --folder=words --base=packaged --workdir=runs/peft           # trains and scores
    python benchmarks/many_tasks.py --folder=words --base=packaged --workdir=runs/peft --table   # what there is so far
    python benchmarks/many_tasks.py --folder=words --base=packaged --workdir=runs/peft --time    # seconds beside ours

The stream, its splits, the batches of each seed and the optimizer are those of configs/words.py, which takes further
settings as `--set=stream.steps=50`. An adapter is a fresh LoRA of rank k r on the pool's modules, initialised by PEFT.
It is scored on the task's test set (told the task), and so is the one that leaves the least loss on the examples that a
method would recover from after the last task (chosen). Adapters and lines that are there are not made again.

What is timed, and figures: benchmarks/README.md.
"""

import ast
import dataclasses
import json
import os
import pathlib
import statistics
import tempfile
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import jax.numpy as jnp
import numpy as np
import peft
import rich.console
import rich.table
import safetensors.numpy
import torch
import transformers
from absl import app, flags, logging
from timing import interleaved, median_ratio

from ftn_jax.cli.command import load_config
from ftn_jax.methods import Selection
from ftn_jax.methods.claims import best
from ftn_jax.models.families import FAMILIES
from ftn_jax.models.hub import resolve
from ftn_jax.models.pretrained import open_folder, open_gguf
from ftn_jax.pools.adapter import place
from ftn_jax.pools.export import write_peft
from ftn_jax.pools.lora import TokenBatch
from ftn_jax.pools.peft import read_peft
from ftn_jax.runs.build import Problem, check, fill_in, filled, make_problem
from ftn_jax.runs.trained_language import LanguageModel
from ftn_jax.training.evaluation import recovery_support
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import State, init_state

_FOLDER = flags.DEFINE_string("folder", None, "Of the tasks, a .jsonl file each.", required=True)
_BASE = flags.DEFINE_string("base", "packaged", "As config.base.")
_WORKDIR = flags.DEFINE_string("workdir", None, "For adapters and results.jsonl.", required=True)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Of the batches and of the adapters.")
_SET = flags.DEFINE_multi_string("set", [], "Another setting of the config, such as stream.steps=50.")
_EXAMPLES = flags.DEFINE_list("examples", ["4", "16"], "How many examples an adapter is chosen by.")
_TABLE = flags.DEFINE_boolean("table", False, "Only print what there is.")
_TIME = flags.DEFINE_boolean("time", False, "Compare times instead, with the adapters of the first seed.")
_CLAIMS = flags.DEFINE_list("claims", ["24", "96"], "How many there are to choose from when times are compared.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds in which the sides take turns.")

_ANSWERS, _TOKENS, _STEPS = 32, 8, 20  # prompts and the most tokens of an answer; steps of training that are timed


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    workdir = pathlib.Path(_WORKDIR.value)
    if not _TABLE.value:
        problem, optimizer = problem_of()
        twin = Twin(problem, optimizer)
        if _TIME.value:
            compare_times(problem, twin, workdir)
            return
        train_and_score(problem, twin, workdir)
    print_table(workdir)


def problem_of() -> tuple[Problem, Any]:
    """The problem of configs/words.py, and the settings of its optimizer."""
    config = fill_in(load_config("words"))
    config.stream.files, config.base = (_FOLDER.value,), _BASE.value
    config.seeds = tuple(map(int, _SEEDS.value))
    for setting in _SET.value:
        name, _, value = setting.partition("=")
        config.update_from_flattened_dict({name: ast.literal_eval(value)})
    config = filled(config)
    check(config)
    return make_problem(config, config.base), config.optimizer


class Twin:
    """The base in PyTorch, with PEFT adapters."""

    def __init__(self, problem: Problem, optimizer: Any):
        _, where = resolve(_BASE.value)
        checkpoint = open_gguf(where) if where.is_file() else open_folder(where)
        raw, family = checkpoint.config, FAMILIES[problem.base.family]
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw))
        state = {family.prefix + name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.names}
        wrong = model.load_state_dict(state, strict=False)
        if wrong.unexpected_keys or set(wrong.missing_keys) - {"lm_head.weight"}:
            raise RuntimeError(f"the base differs in PyTorch: {wrong}")
        model.tie_weights()
        pool, reserves = problem.pool, next(iter(problem.methods.values())).reserves
        rank = pool.rank * reserves
        self.settings = peft.LoraConfig(
            r=rank,
            lora_alpha=rank,
            lora_dropout=0.0,
            target_modules=list(pool.modules),
            fan_in_fan_out=not family.transposed,
            task_type="CAUSAL_LM",
        )
        if (optimizer.name, optimizer.lr_scheduler_type, optimizer.warmup_steps) != ("adam", "constant", 0):
            raise app.UsageError(f"the twin trains with Adam at a constant rate, not as {optimizer.to_dict()}")
        self.learning_rate, self.most = optimizer.learning_rate, optimizer.max_grad_norm or float("inf")
        self._base, self.model, self.names = model.eval(), None, list[str]()

    def add(self, name: str, seed: int) -> None:
        """A fresh adapter."""
        torch.manual_seed(seed)
        if self.model is None:
            self.model = peft.get_peft_model(self._base, self.settings, adapter_name=name).eval()
        else:
            self.model.add_adapter(name, self.settings)
        self.names.append(name)

    def read(self, folder: pathlib.Path, name: str) -> None:
        if self.model is None:
            self.model = peft.PeftModel.from_pretrained(self._base, str(folder), adapter_name=name).eval()
        else:
            self.model.load_adapter(str(folder), adapter_name=name)
        self.names.append(name)

    def _use(self, name: str) -> None:
        if self.model.active_adapter != name:
            self.model.set_adapter(name)

    def drop(self) -> None:
        """Forgets all adapters."""
        if self.model is not None:
            self._base = self.model.unload()
        self.model, self.names = None, []

    def scored(self, batch: TokenBatch, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of each target [B, T], and whether it is the likeliest."""
        self._use(name)
        tokens, columns, labels = (torch.from_numpy(np.asarray(leaf, np.int64)) for leaf in batch[:3])
        logits = self.model(input_ids=tokens).logits
        logits = torch.take_along_dim(logits, columns[:, :, None], 1)
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return losses, logits.argmax(-1) == labels

    def loss(self, batch: TokenBatch, name: str) -> torch.Tensor:
        weights = torch.from_numpy(np.array(batch.weights))
        return (self.scored(batch, name)[0] * weights).sum() / weights.sum()

    def train(self, name: str, batches: list[TokenBatch]) -> None:
        self._use(name)
        rows = [p for n, p in self.model.named_parameters() if f".{name}." in n]
        optimizer = torch.optim.Adam(rows, self.learning_rate)
        for batch in batches:
            optimizer.zero_grad()
            self.loss(batch, name).backward()
            torch.nn.utils.clip_grad_norm_(rows, self.most)
            optimizer.step()

    @torch.inference_mode()
    def metrics(self, batch: TokenBatch, name: str) -> dict[str, float]:
        losses, right = map(np.asarray, self.scored(batch, name))
        weights = np.asarray(batch.weights)
        there = weights.any(1)  # an empty row is padding
        exact = np.where(weights > 0, right, True).all(1)[there].mean()
        return {"cross_entropy": float((losses * weights).sum() / weights.sum()), "exact_match": float(exact)}

    @torch.inference_mode()
    def choose(self, batch: TokenBatch, names: list[str]) -> tuple[int, list[float]]:
        losses = [float(self.loss(batch, name)) for name in names]
        return int(np.argmin(losses)), losses


def batches_of(problem: Problem, task: int, seed: int, steps: int) -> list[TokenBatch]:
    """The batches on which `train_task` trains one seed; ``seed`` is its place among the run's."""
    chunk, found = problem.training.chunk, []
    for first in range(0, steps, chunk):
        length = min(chunk, steps - first)
        given = problem.stream.feed(task, first, length, problem.training.batch)
        found += [TokenBatch(*(leaf[seed, step] for leaf in given)) for step in range(length)]
    return found


def train_and_score(problem: Problem, twin: Twin, workdir: pathlib.Path) -> None:
    names, out = problem.stream.names, workdir / "results.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(line["seed"], line["task"]) for line in known}
    for place_, seed in enumerate(problem.seeds):
        twin.drop()
        for task, name in enumerate(names):
            folder = workdir / f"seed{seed}" / name
            if (folder / "adapter_model.safetensors").exists():
                twin.read(folder, name)
                continue
            twin.add(name, 1000 * seed + task)
            twin.train(name, batches_of(problem, task, place_, problem.training.steps))
            twin.model.save_pretrained(str(folder.parent), selected_adapters=[name])
            print(f"seed {seed}: {name} is trained", flush=True)
        for task, name in enumerate(names):
            if (seed, name) in done:
                continue
            data = problem.stream.tasks[task]
            line = {"seed": seed, "task": name, "told": twin.metrics(data.test(), name)}
            for size in map(int, _EXAMPLES.value):
                chosen, losses = twin.choose(support_of(problem, task, place_, size), list(names))
                found = line["told"] if chosen == task else twin.metrics(data.test(), names[chosen])
                line[f"chosen by {size}"] = {"adapter": names[chosen], "losses": losses} | found
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")


def support_of(problem: Problem, task: int, seed: int, size: int) -> TokenBatch:
    """The examples from which a method of `ftn_jax` recovers the task's mask after the last task."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(problem.seeds))
    state = State({}, (), {}, keys)
    last = len(problem.stream.names) - 1
    _, batch = recovery_support(problem.stream.tasks[task], state, last, task, support=size, axis=problem.stream.axis)
    return TokenBatch(*(np.asarray(leaf[seed]) for leaf in batch))


def print_table(workdir: pathlib.Path) -> None:
    lines = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    kinds = ["told", *(kind for kind in lines[0] if kind.startswith("chosen"))]
    table = rich.table.Table(title=f"{len(lines)} adapters, seeds {sorted({line['seed'] for line in lines})}")
    table.add_column("task")
    for kind in kinds:
        for column in ("CE", "exact match", *(["right"] if kind != "told" else [])):
            table.add_column(f"{kind}: {column}", justify="right")
    for name in [*tasks, "mean"]:
        own = [line for line in lines if name in (line["task"], "mean")]
        cells = []
        for kind in kinds:
            cells.append(f"{statistics.mean(line[kind]['cross_entropy'] for line in own):.3f}")
            cells.append(f"{statistics.mean(line[kind]['exact_match'] for line in own):.3f}")
            if kind != "told":
                cells.append(f"{statistics.mean(line[kind]['adapter'] == line['task'] for line in own):.3f}")
        table.add_row(name, *cells)
    rich.console.Console(width=160).print(table)


def compare_times(problem: Problem, twin: Twin, workdir: pathlib.Path) -> None:
    """The same adapters on both sides: training steps, choosing, answering 32 prompts of 32 tasks, bytes of a task."""
    names, seed = problem.stream.names, problem.seeds[0]
    most = max(_ANSWERS, *map(int, _CLAIMS.value))
    k = next(iter(problem.methods.values())).reserves
    pool = problem.pool.replace(size=most * k)
    params, masks, rng = pool.init(jax.random.key(0)), {}, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as copies:
        for i in range(most):
            name = names[i % len(names)]
            folder, label = workdir / f"seed{seed}" / name, name
            if i >= len(names):  # an adapter that has learned nothing, of the same size
                label = f"{name}_{i // len(names)}"
                folder = _shuffled(folder, pathlib.Path(copies) / label, rng)
            masks[label] = np.arange(i * k, (i + 1) * k, dtype=np.int32)
            params = place(pool, params, read_peft(folder, problem.base, same_base=True), masks[label])
            twin.read(folder, label)
        labels = list(masks)
        rows = [
            *_training(problem, twin),
            *(_choosing(problem, twin, pool, params, masks, labels[: int(n)]) for n in _CLAIMS.value),
            _answering(problem, twin, pool, params, masks, labels[:_ANSWERS]),
        ]
        ours = pathlib.Path(copies) / "ours"
        own = jax.tree.map(lambda leaf: leaf[masks[labels[0]]], params)
        write_peft(ours, pool, own, problem.base, {})
        sizes = [(f / "adapter_model.safetensors").stat().st_size for f in (ours, workdir / f"seed{seed}" / labels[0])]
    environment = {
        "base": problem.base.name,
        "cores": len(os.sched_getaffinity(0)),
        "torch threads": torch.get_num_threads(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "peft": peft.__version__,
        "bytes of a task, ours and PEFT's": sizes,
    }
    table = rich.table.Table(title=", ".join(f"{name} {value}" for name, value in environment.items()))
    for column in ("", "ours, s", "PEFT, s", "ratio (range)"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        ratio, low, high = median_ratio(row["ours"], row["peft"])
        medians = (f"{statistics.median(row[side]):.3f}" for side in ("ours", "peft"))
        table.add_row(row["name"], *medians, f"{ratio:.2f} ({low:.2f}-{high:.2f})")
    rich.console.Console(width=160).print(table)
    print(json.dumps({"environment": environment, "rows": rows}))


def _shuffled(folder: pathlib.Path, to: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    to.mkdir()
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    mixed = {name: np.ascontiguousarray(rng.permuted(value, axis=-1)) for name, value in tensors.items()}
    safetensors.numpy.save_file(mixed, to / "adapter_model.safetensors", metadata={"format": "pt"})
    (to / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    return to


def _training(problem: Problem, twin: Twin) -> list[dict[str, Any]]:
    training = dataclasses.replace(problem.training, steps=_STEPS)
    method = next(iter(problem.methods.values()))
    pool = method.adapt_pool(problem.pool)
    rows = []
    for task in (0, len(problem.stream.names) // 2):
        data = problem.stream.tasks[task]

        def ours(task=task, data=data):
            state = init_state(pool, np.asarray(problem.seeds[:1], np.int32), method=method, training=training)

            def feed(*given):
                return jax.tree.map(lambda leaf: leaf[:1], problem.stream.feed(task, *given))

            return jax.block_until_ready(train_task(pool, method, training, state, data, task, feed=feed))

        def theirs(task=task):
            fresh = f"timed{len(twin.names)}"
            twin.add(fresh, 0)
            twin.train(fresh, batches_of(problem, task, 0, _STEPS))
            twin.model.delete_adapter(fresh)

        seconds, _ = interleaved({"ours": ours, "peft": theirs}, _ROUNDS.value)
        rows.append({"name": f"train {_STEPS} steps of {problem.stream.names[task]}, search included"} | seconds)
    return rows


def _choosing(problem, twin, pool, params, masks, labels):
    support = support_of(problem, 0, 0, 16)
    active = np.stack([masks[label] for label in labels])
    held = Selection(jnp.asarray(active), jnp.zeros(len(active), jnp.int32))
    chosen = jax.jit(best)
    mine = jax.jit(lambda active: pool.active_loss(jax.tree.map(lambda leaf: leaf[active], params), support))
    number, losses = twin.choose(support, labels)
    for label, loss in zip(labels, losses, strict=True):
        if not np.isclose(float(mine(masks[label])), loss, rtol=1e-4, atol=1e-4):
            raise RuntimeError(f"the loss of {label} is {float(mine(masks[label]))}, PEFT's is {loss}")
    sides = {
        "ours": lambda: jax.block_until_ready(chosen(pool, params, held, support)),
        "peft": lambda: twin.choose(support, labels),
    }
    seconds, found = interleaved(sides, _ROUNDS.value)
    if not np.array_equal(found["ours"][0].active, masks[labels[number]]):
        raise RuntimeError("the two do not choose the same")
    return {"name": f"choose among {len(labels)} with 16 examples"} | seconds


def _answering(problem, twin, pool, params, masks, labels):
    base = problem.base
    prompts = [problem.stream.pairs[i % len(problem.stream.names)][0][0] for i in range(len(labels))]
    name, method = next(iter(problem.methods.items()))
    model = LanguageModel(
        pool=pool, method=method, method_name=name, params=params, extra={}, stored=masks, source="", base=base,
        k=len(masks[labels[0]]),
    )  # fmt: skip
    encoded = [base.tokens.prompt(prompt) for prompt in prompts]
    longest = max(map(len, encoded))
    ids = torch.tensor([[base.tokens.ends[0]] * (longest - len(row)) + list(row) for row in encoded])
    there = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded])
    settings = {"max_new_tokens": _TOKENS, "do_sample": False, "pad_token_id": base.tokens.ends[0]}

    @torch.inference_mode()
    def theirs():
        written = twin.model.generate(
            input_ids=ids, attention_mask=there, adapter_names=labels, eos_token_id=list(base.tokens.ends), **settings
        )
        return [base.tokens.text(_until(row[longest:].tolist(), base.tokens.ends)) for row in written]

    sides = {"ours": lambda: model.generate(prompts, labels, tokens=_TOKENS), "peft": theirs}
    seconds, found = interleaved(sides, _ROUNDS.value)
    same = sum(a == b for a, b in zip(found["ours"][0], found["peft"][0], strict=True))
    if same < 0.9 * len(labels):  # rounding may decide between two likeliest tokens
        raise RuntimeError(f"only {same} of {len(labels)} answers are the same")
    return {"name": f"answer {len(labels)} prompts of as many tasks"} | seconds


def _until(ids: list[int], ends: tuple[int, ...]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


if __name__ == "__main__":
    app.run(main)
