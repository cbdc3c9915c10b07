"""What a pool knows about the composition of two trained tasks, which it was not trained on.

    python -m ftn_jax.main --config=configs/lora.py --config.base=packaged --config.seeds=6 \\
        --config.stream.evaluate=seen --config.methods="('lora_ftn_reserve',)" --workdir=runs/compositions \\
        --config.stream.tasks="('upper','lower','reverse_words','double_words','starred_vowels','pirate', \\
                                'reverse_words+upper','double_words+lower')"
    python examples/compositions.py runs/compositions

Each composition is forgotten first, so that its own components are as they were before any training; then a mask is
recovered from 16 examples. The table compares its loss on the test sentences (nats per target token, mean over
sentences) with that of the base alone, of each task's mask, of the masks of both parts together, and of the mask that
the run trained for the composition.
"""

import pathlib
import sys

import numpy as np
import rich.console
import rich.table

import ftn_jax
from ftn_jax.runs.workdir import read_results
from ftn_jax.streams.text.sentences import SPLITS
from ftn_jax.streams.text.transforms import transform

BASE, RECOVERED, PARTS, TRAINED = "the base alone", "recovered", "both parts' masks", "newly trained"


def pairs(task: str, split: str) -> list[tuple[str, str]]:
    return [(f"{text}\n", transform(task)(text)) for text in SPLITS[split]]


def losses(model: ftn_jax.Model, task: str, compositions: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """The loss of each mask on a composition's test sentences, and the recovered mask's overlap with each task's."""
    test, trained = pairs(task, "test"), model
    for composition in compositions:
        model = model.forget(composition)
    found = model.recover(pairs(task, "recovery")[:16])
    both = np.sort(np.concatenate([model.stored[part] for part in task.split("+")]))
    masks = {BASE: None, **model.stored, PARTS: both, RECOVERED: found}
    scores = {name: model.example_losses(test, mask).mean().item() for name, mask in masks.items()}
    return scores | {TRAINED: trained.example_losses(test, trained.stored[task]).mean().item()}, found.overlap


def main(workdir: str) -> None:
    results = read_results(pathlib.Path(workdir))
    compositions = [task for task in results["task_names"] if "+" in task]
    models = [ftn_jax.load(workdir, seed=seed) for seed in results["seeds"]]
    for task in compositions:
        scores, overlaps = zip(*(losses(model, task, compositions) for model in models), strict=True)
        table = rich.table.Table("mask", "CE", "recovered mask's overlap", title=f"{task}, {len(models)} seeds")
        for name in scores[0]:
            found, shared = ([entry.get(name) for entry in entries] for entries in (scores, overlaps))
            share = "" if None in shared else f"{np.mean(shared):.2f}"
            table.add_row(name, f"{np.mean(found):.3f} ± {np.std(found, ddof=len(found) > 1):.3f}", share)
        rich.console.Console(width=100).print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
