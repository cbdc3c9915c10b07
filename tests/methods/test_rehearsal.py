"""Replay and Joint: which examples a batch has, told from the examples themselves."""

import jax
import numpy as np
import pytest
import toys

from ftn_jax.methods.rehearsal import joined
from ftn_jax.pools.lora import TokenBatch
from ftn_jax.streams.base import ArrayTask


def marked(task: int, examples: int = 40, length: int = 4) -> ArrayTask:
    """A task of which every example holds its own number, ``100 task`` and on."""
    tokens = np.repeat(100 * task + np.arange(examples, dtype=np.int32)[:, None], length, axis=1)
    split = TokenBatch(tokens, tokens[:, :2], tokens[:, :2], np.ones((examples, 2), np.float32))
    return ArrayTask(split, split, split)


TASKS = [marked(0), marked(1, length=7), marked(2, length=5)]


def batches(name: str, index: int, count: int = 60, size: int = 9) -> np.ndarray:
    """The numbers of the examples in ``count`` batches, [count, size]."""
    data = toys.toy_method(name).training_data(TASKS, index, None)
    keys = jax.random.split(jax.random.key(5), count)
    drawn = jax.jit(lambda data, keys: jax.vmap(lambda key: data.batch(key, size))(keys))(data, keys)
    numbers = np.asarray(drawn.tokens)[:, :, 0]
    np.testing.assert_array_equal(drawn.columns[:, :, 0], numbers)  # leaves of one example stay together
    assert drawn.weights.all()
    return numbers


def test_replay_draws_the_first_block_from_its_own_task_alone():
    found = batches("replay", 0)
    assert set(found.ravel()) == set(range(40))
    assert all(len(set(row)) == len(row) for row in found)


@pytest.mark.parametrize("index", (1, 2))
def test_replay_fills_half_a_batch_with_the_few_it_kept_of_each_earlier_task(index):
    found = batches("replay", index)
    own = found // 100 == index
    assert (own.sum(1) == 5).all()  # the larger half
    assert set(found[own]) == set(range(100 * index, 100 * index + 40))
    for earlier in range(index):
        kept = set(found[found // 100 == earlier])
        assert len(kept) == 6  # as its settings in tests/toys.py say
    assert not (found // 100 > index).any()


def test_replay_keeps_what_it_kept():
    first, second = (batches("replay", index) for index in (1, 2))
    assert set(first[first < 100]) == set(second[second < 100])


@pytest.mark.parametrize("index", (0, 2))
def test_joint_draws_from_all_tasks_alike(index):
    found = batches("joint", index, count=400)
    shares = np.bincount(found.ravel() // 100, minlength=3) / found.size
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
    assert set(found.ravel()) == {100 * task + i for task in range(3) for i in range(40)}


def read(name: str, index: int, size: int = 9, steps: int = 60) -> np.ndarray:
    """The numbers of the examples in ``steps`` batches of a block, where the host reads them, [steps, size]."""
    method, asked = toys.toy_method(name), []

    def feed(task, first, steps, size):  # new numbers at each step, below 100
        asked.append((task, size))
        numbers = 100 * task + np.arange(first * size, (first + steps) * size) % 100
        tokens = np.repeat(numbers.reshape(1, steps, size, 1), 4 + task, axis=3).astype(np.int32)
        return TokenBatch(tokens, *[tokens[..., :2]] * 2, np.ones((1, steps, size, 2), np.float32))

    data = method.training_data(TASKS, index, None)
    fed = jax.tree.map(lambda leaf: leaf[0], method.training_feed(feed, 3, index)(0, steps, size))
    assert {type(leaf) for leaf in fed} == {np.ndarray}
    assert asked == ([(0, 3), (1, 3), (2, 3)] if name == "joint" else [(index, size)])
    mixed = jax.vmap(lambda key, given: data.mix(key, given, size))(jax.random.split(jax.random.key(5), steps), fed)
    numbers = np.asarray(mixed.tokens)[:, :, 0]
    np.testing.assert_array_equal(mixed.labels[:, :, 0], numbers)
    return numbers


@pytest.mark.parametrize("index", (0, 1, 2))
def test_replay_beside_what_the_host_reads(index):
    found, drawn = (function("replay", index) for function in (read, batches))
    own = found // 100 == index
    assert (own.sum(1) == (5 if index else 9)).all()
    assert set(found[own] % 100) == set(range(100))  # of all lines
    assert set(found[~own]) == set(drawn[drawn // 100 != index])  # the kept ones are of the task's data


@pytest.mark.parametrize("size", (9, 8))
def test_joint_reads_from_all_tasks_alike(size):
    found = read("joint", 1, size)
    counts = np.stack([(found // 100 == task).sum(1) for task in range(3)])
    assert counts.max() == 3 and (counts.sum(0) == size).all()  # of three read from each task
    assert all(len(set(row)) == size for row in found)
    assert len({tuple(row // 100) for row in found}) > 30  # in any order


def test_shorter_rows_are_padded_with_what_nothing_scores():
    short, long = (TASKS[i].test() for i in (0, 1))
    both = joined([long, short])
    assert both.tokens.shape == (80, 7)
    np.testing.assert_array_equal(both.tokens[40:], np.pad(short.tokens, ((0, 0), (0, 3))))
    np.testing.assert_array_equal(both.weights, 1.0)


def test_a_buffer_for_each_seed_where_each_has_data_of_its_own():
    stream = toys.toy_pool_stream("neurons")
    data = toys.toy_method("replay").training_data(stream.tasks, 2, stream.axis)
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(data.buffer)} == {(2, 18)}
    assert not np.array_equal(*data.buffer.y)
    np.testing.assert_array_equal(data.held, [12, 12])
