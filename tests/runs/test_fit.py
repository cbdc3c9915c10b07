"""Tasks from Python: the same run as the command line's on files with the same lines, going on, and what is refused."""

import json
import pathlib

import numpy as np
import pytest
import toys
from kills import numbers
from ml_collections import ConfigDict

import ftn_jax
from ftn_jax.core.errors import InputError, Interrupted
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.streams.text.jsonl import load_texts

SETTINGS = {
    "stream.steps": 40,
    "stream.max_length": 64,
    "stream.recovery": 0.3,
    "pool.size": 16,
    "configurer.k": 4,
    "configurer.support": 8,
    "optimizer.learning_rate": 0.03,
    "variants.lora_ftn_reserve.lateral_steps": 2,
    "mesh.seed": 1,
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    toys.write_tasks(folder)
    written = {name: load_texts(folder / f"{name}.jsonl") for name in ("loud", "title")}
    # As long as the others when padded, so that it needs no program of its own for training.
    return written | {"turned": [(prompt, " ".join(text.split()[::-1])) for prompt, text in written["loud"]]}


class Rows:
    """As a `datasets.Dataset`: rows with further columns, and no list."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __iter__(self):
        return iter({"id": i, "prompt": a, "completion": b} for i, (a, b) in enumerate(self.pairs))


@pytest.fixture(scope="module")
def first(base, pairs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("fit") / "run"
    tasks = {"loud": pairs["loud"], "title": Rows(pairs["title"])}
    return ftn_jax.fit(tasks, workdir=workdir, base=base, settings=SETTINGS, progress=False)


@pytest.mark.slow
def test_it_is_the_run_of_the_command_line(first, base, tmp_path):
    held = json.loads((pathlib.Path(first.source) / "results.json").read_text())
    config = ConfigDict(held["config"])
    files = [tmp_path / f"{name}.jsonl" for name in ("loud", "title")]
    for file, own in zip(files, config.stream.files, strict=True):
        file.write_bytes(pathlib.Path(own).read_bytes())
    config.stream.files = tuple(map(str, files))
    train_and_evaluate(config, tmp_path / "run")
    found, expected = (numbers(folder) for folder in (tmp_path / "run", pathlib.Path(first.source)))
    del found["config"], expected["config"]  # the folders differ
    assert found == expected


@pytest.mark.slow
def test_more_tasks_are_added_and_nothing_else_is_trained(first, pairs, capsys):
    events = []
    with pytest.raises(Interrupted):
        first.add({"turned": pairs["turned"]}, progress=False, stop=lambda: True)
    model = first.add({"turned": pairs["turned"]}, progress=False, on_event=events.append)
    assert list(model.stored) == ["loud", "title", "turned"]
    for name in first.stored:
        np.testing.assert_array_equal(model.stored[name], first.stored[name])
    assert {event["task"] for event in events if event["event"] == "steps"} == {"turned"}
    again = ftn_jax.fit(pairs, workdir=first.source, progress=False)  # all of them are there
    assert numbers(pathlib.Path(first.source)) and list(again.stored) == list(model.stored)
    found = again.recover(pairs["turned"][:8])
    assert max(found.overlap, key=found.overlap.__getitem__) == "turned"
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match=r"task 'turned' has other examples in .*turned\.jsonl"):
        model.add({"turned": pairs["turned"][1:]}, progress=False)


@pytest.mark.parametrize(
    ("tasks", "more", "said"),
    [
        ({}, {}, "tasks are dict {}, expected a mapping"),
        ({"../up": [("a", "b")]}, {}, "task '../up': expected a name of letters"),
        ({"loud": [("a", 1)]}, {}, "task 'loud': item 0 has int 1 in place of a text"),
        ({"loud": [("a", "b")]}, {"settings": {"stream.stepz": 1}}, "'stream.stepz' is not a setting, known: .*steps"),
        (
            {"loud": [("a", "b")]},
            {"settings": {"stream.steps": 0}},
            "config.stream.steps is 0, expected a whole number",
        ),
        ({"loud": [("a", "b")]}, {"method": "lora"}, "config.methods"),
        ({"loud": "title.jsonl"}, {}, "task 'loud' is in title.jsonl, expected a file of the task's name"),
    ],
)
def test_what_is_refused(tasks, more, said, tmp_path):
    with pytest.raises(InputError, match=said):
        ftn_jax.fit(tasks, workdir=tmp_path / "run", base="packaged", progress=False, **more)
    assert not (tmp_path / "run" / "results.json").exists()
