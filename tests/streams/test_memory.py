"""Streams of tasks at hand: what is read, how it is split, and what is refused."""

import json

import chex
import jax
import numpy as np
import pytest
import toys

from ftn_jax.core.errors import InputError
from ftn_jax.models import pretrained
from ftn_jax.streams.arrays import arrays_stream
from ftn_jax.streams.base import check_drawn
from ftn_jax.streams.files import Shares
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
    index = index_file(tmp_path / "loud.jsonl", toy_base.tokens, max_length=64, shares=Shares(0.3, 0.25))
    held = Lines(tmp_path / "loud.jsonl", index["test"], toy_base.tokens, 64)
    assert stream.pairs[0] == held.texts(np.arange(held.count))
    assert stream.examples == [{"training": len(index["train"].offsets), "recovery": len(index["recovery"].offsets)}]
    assert held.count > 3


def test_examples_that_are_added_move_no_other(toy_base):
    fewer, more = (make_stream({"loud": PAIRS["loud"][:count]}, toy_base).pairs[0] for count in (30, 48))
    assert set(fewer) == {pair for pair in more if pair in PAIRS["loud"][:30]} and len(more) > len(fewer)


def test_tasks_share_one_padded_length(toy_base):
    stream = make_stream({"short": PAIRS["loud"], "long": PAIRS["twice"]}, toy_base)
    shapes = {leaf.shape[1:] for task in stream.tasks for leaf in (task.train.tokens, task.held_out.tokens)}
    assert len(shapes) == 1


def test_arrays_are_those_of_a_stream_of_files():
    """See tests/streams/test_arrays.py for what they are."""
    tasks = {"a": (X, (X[:, 0] > 0).astype(int)), "b": (X, (X[:, 1] > 0).astype(int))}
    found, wanted = make_stream(tasks), arrays_stream(tasks, recovery=0.2, test=0.2)
    assert (found.names, found.metric, found.spec) == (wanted.names, wanted.metric, wanted.spec)
    chex.assert_trees_all_equal(found.tasks, wanted.tasks)
    check_stream(found, size=4)


def test_a_draw_that_is_too_large_is_one_line():
    (task,) = make_stream({"a": (X, X[:, 1])}).tasks
    count = int(task.counts[1])
    for size in (count + 1, 100):  # padding is no example
        with pytest.raises(InputError, match=f"{size} examples are drawn at once, but a task has {count}"):
            task.support(jax.random.key(0), size)
    check_drawn(task, support=count)
    with pytest.raises(InputError, match=f"{count + 1} examples are drawn at once, but a task has {count}"):
        check_drawn(task, support=count + 1)


WRONG = {
    "tasks are dict": ({}, {}),
    "recovery is 0, expected": (PAIRS, {"recovery": 0}),
    "recovery \\+ test is 1.2": (PAIRS, {"recovery": 0.6, "test": 0.6}),
    "task 'a': no examples": ({"a": []}, {}),
    "task 'a': item 1 is int 3": ({"a": [("a", "b"), 3]}, {}),
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


def test_pairs_need_a_base_and_arrays_no_length():
    with pytest.raises(InputError, match="task 'loud' is list, expected arrays"):
        make_stream(PAIRS)
    with pytest.raises(InputError, match="max_length is 8, expected None"):
        make_stream({"a": (X, X[:, 0])}, max_length=8)


def test_a_pair_is_hashed_as_its_line(tmp_path, toy_base):
    """Unlike spaces would be another line, and another split."""
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in PAIRS["loud"]))
    assert make_stream({"a": str(tmp_path / "a.jsonl")}, toy_base).pairs == make_stream(
        {"a": PAIRS["loud"]}, toy_base
    ).pairs  # fmt: skip
