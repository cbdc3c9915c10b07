"""Six tasks of one's own on the packaged base: from eight examples the right components are found, for every task."""

import json

import numpy as np
import pytest
from toys import CONFIGS

import ftn_jax
from ftn_jax.experiment import train_and_evaluate
from ftn_jax.main import load_config
from ftn_jax.streams.jsonl import load_pairs, split_of

WRITE = {
    "spoken": lambda text: f'"{text[:-1]}," she said.',
    "headline": lambda text: text[:-1].upper() + "!",
    "slow": lambda text: text.lower().replace(" ", "... "),
    "doubled": lambda text: " ".join(f"{word} {word}" for word in text.split()),
    "reversed": lambda text: " ".join(reversed(text.split())),
    "starred": lambda text: "".join("*" if letter in "aeiou" else letter for letter in text),
}
pytestmark = pytest.mark.xdist_group("six")  # trained once
SHARES = {"recovery": 0.2, "test": 0.15}


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """A model that has learned the tasks, and their splits."""
    folder = tmp_path_factory.mktemp("six")
    prompts = [prompt for prompt, _ in load_pairs(CONFIGS.parent / "examples" / "spoken.jsonl")]
    splits = {}
    for name, write in WRITE.items():
        splits[name] = {"train": [], "recovery": [], "test": []}
        with (folder / f"{name}.jsonl").open("w") as file:
            for prompt in prompts:
                line = json.dumps({"prompt": prompt, "completion": write(prompt.strip())})
                file.write(f"{line}\n")
                splits[name][split_of(line.encode(), **SHARES)].append((prompt, write(prompt.strip())))
    config = load_config(str(CONFIGS / "jsonl.py"))
    config.base, config.stream.steps = "packaged", 100
    config.stream.files = tuple(str(folder / f"{name}.jsonl") for name in WRITE)
    config.stream.update(SHARES)
    train_and_evaluate(config, folder / "run")
    return ftn_jax.load(folder / "run"), splits


@pytest.mark.slow
def test_eight_examples_find_each_tasks_components(six):
    model, splits = six
    for name, parts in splits.items():
        found = model.recover(parts["recovery"][:8])
        stored, recovered = (model.example_losses(parts["test"], m).mean() for m in (model.stored[name], found))
        assert abs(recovered - stored) < 0.1, name
        assert found.fits and max(found.overlap, key=found.overlap.__getitem__) == name


@pytest.mark.slow
def test_rows_of_all_tasks_under_their_own_masks(six):
    model, splits = six
    pairs = [parts["test"][0] for parts in splits.values()]
    masks = list(model.stored.values())
    alone = [model.example_losses([pair], mask)[0] for pair, mask in zip(pairs, masks, strict=True)]
    np.testing.assert_allclose(model.example_losses(pairs, masks), alone, rtol=1e-4)
    crossed = model.example_losses(pairs, masks[1:] + masks[:1])
    assert (crossed > np.array(alone) + 0.5).all()  # and no other's will do
