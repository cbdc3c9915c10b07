"""Which components serve a task of one's own: number, rank, modules and learning rate, by validation lines alone.

    python benchmarks/lean.py --out=runs/lean.jsonl --stream=examples --components=72x4,8x2 --rates=5e-4,2e-3
    python benchmarks/lean.py --out=runs/lean.jsonl --stream=styles ...          # the six styles
    python benchmarks/lean.py --out=runs/lean.jsonl --stream=words --folder=words ...
    python benchmarks/lean.py --out=runs/lean.jsonl --table                      # what there is so far

Every task is trained by LoRA-Fixed on components of its own: k of rank r, written as k x r. A task's score is its
least validation loss; training and validation lines are chosen by hash, and lines for testing are not looked at by
any choice here. Settings that are in the file are not run again.
"""

import ast
import json
import math
import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import rich.console
import rich.table
from absl import app, flags, logging

import ftn_jax
from ftn_jax.cli.command import load_config

_OUT = flags.DEFINE_string("out", None, "A file of lines of JSON, one for each setting.", required=True)
_STREAM = flags.DEFINE_enum("stream", "examples", ("examples", "styles", "words"), "The tasks.")
_FOLDER = flags.DEFINE_string("folder", "words", "Of the tasks of words, a .jsonl file each.")
_TASKS = flags.DEFINE_integer("tasks", 0, "Only so many of the tasks of words, drawn with seed 0; 0: all.")
_BASE = flags.DEFINE_string("base", "packaged", "As config.base.")
_COMPONENTS = flags.DEFINE_list("components", ["72x4", "8x2"], "k x r of each setting.")
_MODULES = flags.DEFINE_list("modules", ["qkv", "all-linear"], "As config.pool.modules, of each setting.")
_RATES = flags.DEFINE_list("rates", ["5e-4", "1e-3", "2e-3", "4e-3"], "Learning rates of the components.")
_OPTIMIZER = flags.DEFINE_multi_string("optimizer", ["max_grad_norm=1.0"], "Other settings of config.optimizer.")
_STEPS = flags.DEFINE_integer("steps", 100, "Of each task.")
_SHARE = flags.DEFINE_float("share", 0.15, "Of the lines, for validation.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Of each setting.")
_TABLE = flags.DEFINE_boolean("table", False, "Only print what there is.")

_TEST, _EVERY = 0.02, 20  # the share of the lines that are scored for nothing; steps between two validations


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    out = pathlib.Path(_OUT.value)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if not _TABLE.value:
        done = {json.dumps(row["setting"]) for row in rows}
        out.parent.mkdir(parents=True, exist_ok=True)
        settings = [
            {
                "stream": _STREAM.value,
                "tasks": _TASKS.value,
                "base": _BASE.value,
                "steps": _STEPS.value,
                "share": _SHARE.value,
                "seeds": _SEEDS.value,
                "components": components,
                "modules": modules,
                "rate": float(rate),
                "optimizer": _OPTIMIZER.value,
            }
            for modules in _MODULES.value
            for components in _COMPONENTS.value
            for rate in _RATES.value
        ]
        for setting in settings:
            if json.dumps(setting) not in done:
                row = {"setting": setting, "losses": losses_of(setting)}
                rows.append(row)
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(setting, np.mean([min(of_task) for of_task in row["losses"].values()]), flush=True)
    print_table(rows)


def losses_of(setting: dict) -> dict[str, list[float]]:
    """The validation losses of each task, in the course of its training, the mean over the seeds."""
    k, rank = map(int, setting["components"].split("x"))
    if setting["stream"] == "styles":
        config, tasks = load_config("lora"), 6
    else:
        config = load_config("words" if setting["stream"] == "words" else "jsonl")
        config.stream.test = _TEST
        if setting["stream"] == "words":
            config.stream.files = (_FOLDER.value,)
            config.stream.drawn = (setting["tasks"], 0)
        tasks = setting["tasks"] or (24 if setting["stream"] == "words" else len(config.stream.files))
    config.update(base=setting["base"], methods=("lora_fixed",), seeds=setting["seeds"])
    side = math.ceil(math.sqrt(k * tasks))
    config.pool.update(name="lora", size=side * side, rank=rank, modules=(setting["modules"],))
    config.stream.update(steps=setting["steps"], validation=setting["share"], evaluate="ends")
    config.configurer = config.get("configurer", {})
    config.configurer.k = k
    others = (given.partition("=") for given in setting["optimizer"])
    config.optimizer = {"learning_rate": setting["rate"], "eval_steps": _EVERY}
    config.optimizer.update({name: ast.literal_eval(value) for name, _, value in others})
    losses: dict[str, list[float]] = {}

    def on_event(event: dict) -> None:
        if event["event"] == "validation":
            losses.setdefault(event["task"], []).append(float(np.mean(event["losses"])))

    with tempfile.TemporaryDirectory() as workdir:
        ftn_jax.train_and_evaluate(config, workdir, on_event=on_event)
    return losses


def print_table(rows: list[dict]) -> None:
    """Means over the tasks of the least validation loss, and of the last."""
    table = rich.table.Table(title="Validation loss, nats per target token, mean over the tasks")
    heads = ("stream", "base", "steps", "modules", "k x r", "learning rate", "optimizer", "best step", "last step")
    for column in heads:
        table.add_column(column, justify="right")
    for row in rows:
        setting, of_tasks = row["setting"], list(row["losses"].values())
        means = np.mean([(min(losses), losses[-1]) for losses in of_tasks], axis=0)
        names = (f"{setting['stream']} ({len(of_tasks)})", setting["base"], str(setting["steps"]))
        rate = f"{setting['rate']:g}", " ".join(setting.get("optimizer", ["max_grad_norm=0.0"]))
        cells = setting["modules"], setting["components"], *rate, *(f"{mean:.3f}" for mean in means)
        table.add_row(*names, *cells)
    rich.console.Console(width=140).print(table)


if __name__ == "__main__":
    app.run(main)
