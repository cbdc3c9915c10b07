"""Streams of tasks at hand: what is read, how it is split, and what is refused."""

import json

import jax
import numpy as np
import pytest
import toys

from ftn_jax.core.errors import InputError
from ftn_jax.models import pretrained
from ftn_jax.streams.memory import make_stream
from ftn_jax.streams.text.jsonl import Lines, index_file
from ftn_jax.testing import check_stream

PAIRS = {name: [(f"{text}\n", write(text)) for text in toys.SHORT] for name, write in toys.WRITE.items()}
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3))


@pytest.fixture(scope="module")
def toy_base(base):
    return pretrained.load(base)


def test_pairs_records_and_files_are_one(toy_base, tmp_path):
    """The lines that `toys.write_tasks` writes are json's own, and as they are in memory."""
    files = dict(zip(toys.WRITE, toys.write_tasks(tmp_path), strict=True))
    records = {
        name: [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
        for name, pairs in PAIRS.items()
    }
    streams = [make_stream(given, toy_base) for given in (PAIRS, files, records)]
    for stream in streams:
        assert stream.names == tuple(toys.WRITE) and stream.metric == "cross_entropy" and stream.axis is None
        jax.tree.map(np.testing.assert_array_equal, stream.tasks, streams[0].tasks)
        assert stream.pairs == streams[0].pairs
    check_stream(streams[0], size=4)


def test_a_file_is_split_as_the_stream_of_files_splits_it(toy_base, tmp_path):
    (file, *_) = toys.write_tasks(tmp_path)
    stream = make_stream({"loud": file}, toy_base, recovery=0.3, test=0.25)
    index = index_file(tmp_path / "loud.jsonl", toy_base.tokens, max_length=64, recovery=0.3, test=0.25)
    held = Lines(tmp_path / "loud.jsonl", index["test"], toy_base.tokens, 64)
    assert stream.pairs[0] == held.pairs(np.arange(held.count))
    assert stream.examples == [{"training": len(index["train"].offsets), "recovery": len(index["recovery"].offsets)}]
    assert held.count > 3


def test_examples_that_are_added_move_no_other(toy_base):
    fewer, more = (make_stream({"loud": PAIRS["loud"][:count]}, toy_base).pairs[0] for count in (30, 48))
    assert set(fewer) == {pair for pair in more if pair in PAIRS["loud"][:30]} and len(more) > len(fewer)


def test_tasks_share_one_padded_length(toy_base):
    stream = make_stream({"short": PAIRS["loud"], "long": PAIRS["twice"]}, toy_base)
    shapes = {leaf.shape[1:] for task in stream.tasks for leaf in (task.train.tokens, task.held_out.tokens)}
    assert len(shapes) == 1


def test_arrays_are_classes_or_values():
    classes, values = (X[:, 0] > 0).astype(int), X[:, 1]
    stream = make_stream({"a": (X, classes), "b": (X, 1 - classes)})
    assert stream.metric == "accuracy" and make_stream({"a": (X, values)}).metric == "mse"
    check_stream(stream, size=4)
    check_stream(make_stream({"a": (X, values)}), size=4)
    task, counts = stream.tasks[0], stream.examples[0]
    every = np.concatenate([part.x for part in (task.train, task.recovery, task.held_out)])
    assert sorted(map(tuple, every)) == sorted(map(tuple, X.astype(np.float32)))
    assert counts == {"training": len(task.train.x), "recovery": len(task.recovery.x)}
    for part in (task.train, task.recovery, task.held_out):
        np.testing.assert_array_equal(part.y, part.x[:, 0] > 0)


def test_a_draw_that_is_too_large_is_one_line():
    (task,) = make_stream({"a": (X, X[:, 1])}).tasks
    with pytest.raises(InputError, match="100 examples are drawn at once, and a task has"):
        task.support(jax.random.key(0), 100)


WRONG = {
    "tasks are dict": ({}, {}),
    "recovery is 0, expected": (PAIRS, {"recovery": 0}),
    "recovery \\+ test is 1.2": (PAIRS, {"recovery": 0.6, "test": 0.6}),
    "task 'a': no examples": ({"a": []}, {}),
    "task 'a': number 1 of what is given is int 3": ({"a": [("a", "b"), 3]}, {}),
    "task 'a' has 1 examples and none for split": ({"a": [("a", "b")]}, {}),
    "task 'loud' has an example of .* tokens, expected at most max_length = 6": (PAIRS, {"max_length": 6}),
    "max_length is 500, expected 2 to the 128 positions": (PAIRS, {"max_length": 500}),
    "max_length is 1,": (PAIRS, {"max_length": 1}),
    "nowhere.jsonl can't be read": ({"a": "nowhere.jsonl"}, {}),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_is_refused_of_text(says, toy_base):
    tasks, settings = WRONG[says]
    with pytest.raises(InputError, match=says) as error:
        make_stream(tasks, toy_base, **settings)
    assert "\n" not in str(error.value)


WRONG_ARRAYS = {
    "task 'loud' is list, expected arrays": PAIRS,
    r"float64\[60, 3\] and float64\[59\]": {"a": (X, X[:59, 0])},
    r"float64\[60, 3\] and bool\[60\]": {"a": (X, X[:, 0] > 0)},
    "rows of different length": {"a": ([[1.0], [1.0, 2.0]], [0, 1])},
    "values that are not finite": {"a": (X * np.nan, X[:, 0])},
    "some tasks have classes": {"a": (X, np.arange(60)), "b": (X, X[:, 0])},
    "inputs of 2 and 3 numbers": {"a": (X, X[:, 0]), "b": (X[:, :2], X[:, 0])},
}


@pytest.mark.parametrize("says", WRONG_ARRAYS)
def test_what_is_refused_of_arrays(says):
    with pytest.raises(InputError, match=says) as error:
        make_stream(WRONG_ARRAYS[says])
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="max_length is 8, expected none"):
        make_stream({"a": (X, X[:, 0])}, max_length=8)


def test_a_pair_is_hashed_as_its_line(tmp_path, toy_base):
    """Unlike spaces would be another line, and another split."""
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in PAIRS["loud"]))
    assert make_stream({"a": str(tmp_path / "a.jsonl")}, toy_base).pairs == make_stream(
        {"a": PAIRS["loud"]}, toy_base
    ).pairs  # fmt: skip
