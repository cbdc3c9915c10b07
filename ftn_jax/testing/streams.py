"""The contract of a stream (`ftn_jax.streams.base`), as checks."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ftn_jax.core.metrics import METRICS
from ftn_jax.pools.lora import TokenBatch
from ftn_jax.streams import Stream
from ftn_jax.streams.base import task_of
from ftn_jax.testing.expect import expect, expect_equal

_DRAWS = 8  # batches of each kind that are compared


class StreamCase(NamedTuple):
    """A stream, with functions that draw its batches."""

    stream: Stream
    seeds: int  # E
    size: int  # examples in a batch

    def draw(self, task: int, part: str, key: int) -> Any:
        """A batch of "batch" or "support" data, leaves [E, size, ...]; each seed has its own key."""
        keys = jax.random.split(jax.random.key(key), self.seeds)
        data, axis = self.stream.tasks[task], self.stream.axis
        return _drawn(data, keys, kind=type(data), part=part, size=self.size, axis=axis)

    def test(self, task: int) -> Any:
        """The test set, leaves [E, n, ...]."""
        data = self.stream.tasks[task]
        return _tests(data, kind=type(data), seeds=self.seeds, axis=self.stream.axis)


# ``kind`` is static since JAX may take two dataclasses with equal fields for the same tree.
@functools.partial(jax.jit, static_argnames=("kind", "part", "size", "axis"))
def _drawn(data, keys, *, kind, part, size, axis):
    return jax.vmap(lambda data, key: getattr(data, part)(key, size), in_axes=(axis, 0))(data, keys)


@functools.partial(jax.jit, static_argnames=("kind", "seeds", "axis"))
def _tests(data, *, kind, seeds, axis):
    return jax.vmap(lambda data, _: data.test(), in_axes=(axis, 0))(data, np.arange(seeds))


def check_stream(stream: Stream, *, seeds: int = 1, size: int = 8) -> None:
    """Checks a stream against its contract.

    Args:
      stream: as its builder returns it.
      seeds: E, the number of seeds that it was built for.
      size: examples in a batch; no more than a task has of any kind.

    Raises:
      AssertionError: says which rule is broken.
    """
    for check in STREAM_CHECKS:
        check(StreamCase(stream, seeds, size))


def names_tasks_and_metric_fit(case: StreamCase) -> None:
    stream = case.stream
    names, count = stream.names, len(stream.tasks)
    expect(count > 0, "the stream has no task")
    expect(all(isinstance(name, str) and name for name in names), f"names are {names!r}, expected non-empty strings")
    expect(len(set(names)) == len(names) == count, f"the stream has {count} tasks and is named {names!r}")
    known = ", ".join(METRICS)
    expect(stream.metric in METRICS, f"the metric is {stream.metric!r}, expected one of {known}")
    expect(stream.axis in (None, 0), f"axis is {stream.axis!r}, expected None, or 0 where every seed has its own data")
    told: list[tuple[str, Sequence]] = [("examples", stream.examples), ("pairs", stream.pairs)]
    told += [(f"task_facts[{fact!r}]", values) for fact, values in stream.task_facts.items()]
    for field, values in told:
        expect(len(values) in (0, count), f"{field} has {len(values)} entries for {count} tasks")
    for fact, values in stream.facts.items():
        expect(len(values) == case.seeds, f"facts[{fact!r}] has {len(values)} entries for {case.seeds} seeds")
    for counts in stream.examples:
        strange = counts.keys() - {"training", "installation", "recovery"}
        expect(
            not strange and {"training", "recovery"} <= counts.keys(),
            f"examples have {', '.join(counts)}, expected training and recovery",
        )
    if stream.returns:
        expect(len(stream.returns) == count, f"returns has {len(stream.returns)} entries for {count} blocks")
        for name, task in zip(names, stream.returns, strict=True):
            expect(task_of(name) == task, f"block {name!r} returns to {task!r}, expected {task_of(name)!r}")


def data_are_arrays(case: StreamCase) -> None:
    """Tasks are pytrees of arrays with the same structure, and with the seed axis first if every seed has its own."""
    first = case.stream.tasks[0]
    for task in case.stream.tasks:
        expect(not jax.tree_util.all_leaves([task]), f"a task is {type(task).__name__}, expected a registered pytree")
        same = jax.tree.structure(task) == jax.tree.structure(first)
        expect(same, "tasks have different structures or settings, so that each would be compiled separately")
        for path, leaf in jax.tree_util.tree_leaves_with_path(task):
            name = f"{type(task).__name__}{jax.tree_util.keystr(path)}"
            expect(isinstance(leaf, jax.Array | np.ndarray), f"{name} is {type(leaf).__name__}, expected an array")
            if case.stream.axis == 0:
                expect(leaf.shape[:1] == (case.seeds,), f"{name} has shape {leaf.shape}, expected [{case.seeds}, ...]")


def batches_have_the_rows_that_are_asked_for(case: StreamCase) -> None:
    """All parts of all tasks have the same structure and dtypes, [size, ...] on every leaf, and finite values."""
    wanted = None
    for i in range(len(case.stream.tasks)):
        parts = {part: case.draw(i, part, 0) for part in ("batch", "support")}
        for part, batch in [*parts.items(), ("test", case.test(i))]:
            rows = {leaf.shape[1] for leaf in jax.tree.leaves(batch)}
            expect(len(rows) == 1, f"{part} of task {i} has leaves of {sorted(rows)} rows")
            asked = rows if part == "test" else {case.size}
            expect(rows == asked and rows != {0}, f"{part} of task {i} has {rows} rows, expected {asked}")
            kinds = jax.tree.structure(batch), [leaf.dtype for leaf in jax.tree.leaves(batch)]
            wanted = wanted or kinds
            expect(kinds == wanted, f"{part} of task {i} is {kinds}, expected {wanted} as the first batch")
            for leaf in jax.tree.leaves(batch):
                expect(np.isfinite(np.asarray(leaf)).all(), f"{part} of task {i} has values that are not finite")


def draws_are_functions_of_the_key(case: StreamCase) -> None:
    for i in range(len(case.stream.tasks)):
        for part in ("batch", "support"):
            first, again, other = (case.draw(i, part, key) for key in (0, 0, 1))
            expect_equal(again, first, f"{part} of task {i} for one key")
            expect(list(_examples(first)) != list(_examples(other)), f"{part} of task {i} is the same for two keys")


def the_test_set_is_always_the_same(case: StreamCase) -> None:
    for i, task in enumerate(case.stream.tasks):
        first = jax.tree.map(lambda leaf: leaf[0], task) if case.stream.axis == 0 else task
        again = jax.tree.map(np.asarray, (first.test(), first.test()))
        expect_equal(again[0], again[1], f"the test set of task {i}, read twice")


def training_recovery_and_test_share_no_example(case: StreamCase) -> None:
    """Not even with the same keys. Within each seed only: one seed may train on another's test examples."""
    for i in range(len(case.stream.tasks)):
        parts = {part: [case.draw(i, part, key) for key in range(_DRAWS)] for part in ("batch", "support")}
        parts["test"] = [case.test(i)]
        if case.stream.feed:
            fed = case.stream.feed(i, 0, 2, case.size)
            parts["feed"] = [jax.tree.map(lambda leaf: leaf.reshape(len(leaf), -1, *leaf.shape[3:]), fed)]
        for e in range(case.seeds):
            found = {part: {x for b in batches for x in _examples(b, e)} for part, batches in parts.items()}
            held = {"batch": "trained with", "feed": "trained with", "support": "recovered from", "test": "tested with"}
            for one, other in (("batch", "support"), ("batch", "test"), ("support", "test"), *_fed(case.stream)):
                shared = len(found[one] & found[other])
                expect(not shared, f"task {i}: {shared} examples are both {held[one]} and {held[other]}")


def a_feed_is_a_function_of_its_arguments(case: StreamCase) -> None:
    """Leaves are [E, steps, size, ...], and the batch is of the same kind as those that are drawn."""
    if not case.stream.feed:
        return
    for i in range(len(case.stream.tasks)):
        first, again = (case.stream.feed(i, 4, 2, case.size) for _ in range(2))
        expect_equal(again, first, f"what is fed for steps 4 and 5 of task {i}")
        expect(
            jax.tree.structure(first) == jax.tree.structure(case.draw(i, "batch", 0)),
            "feed gives another kind of batch than batch",
        )
        wanted = case.seeds, 2, case.size
        for leaf in jax.tree.leaves(first):
            expect(leaf.shape[:3] == wanted, f"fed leaves have shape {leaf.shape}, expected {[*wanted]} first")


STREAM_CHECKS: tuple[Callable[[StreamCase], None], ...] = (
    names_tasks_and_metric_fit,
    data_are_arrays,
    batches_have_the_rows_that_are_asked_for,
    draws_are_functions_of_the_key,
    the_test_set_is_always_the_same,
    training_recovery_and_test_share_no_example,
    a_feed_is_a_function_of_its_arguments,
)


def _fed(stream: Stream) -> Sequence[tuple[str, str]]:
    return (("feed", "support"), ("feed", "test")) if stream.feed else ()


def _examples(batch: Any, seed: int | None = None) -> Iterator[bytes]:
    """Bytes that identify each example of a batch [E, ..., n, ...], of one seed or all; without padding for text."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
    if isinstance(batch, TokenBatch):
        flat = [leaf.reshape(len(leaf), -1, leaf.shape[-1]) for leaf in leaves]
        for tokens, columns, labels, weights in zip(*(_of(leaf, seed) for leaf in flat), strict=True):
            scored = weights > 0
            read = tokens[: columns[scored].max(initial=-1) + 1]
            yield read.tobytes() + b"|" + labels[scored].tobytes()
        return
    for row in zip(*(_of(leaf, seed) for leaf in leaves), strict=True):
        yield b"|".join(part.tobytes() for part in row)


def _of(leaf: np.ndarray, seed: int | None) -> np.ndarray:
    """The rows of one seed, or those of all."""
    return leaf.reshape(-1, *leaf.shape[2:]) if seed is None else leaf[seed]
