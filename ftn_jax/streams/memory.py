"""A stream of a user's own tasks that fit in memory: pairs of text, or arrays."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import PART
from ftn_jax.models.tokens import Pair, Tokens, encode
from ftn_jax.pools.neurons import PointBatch
from ftn_jax.streams.base import Stream
from ftn_jax.streams.text.jsonl import read_pairs, split_of
from ftn_jax.streams.text.pairs import pairs_of
from ftn_jax.streams.text.task import TextTask, draw, pad_examples, padded

_SPLITS = ("train", "recovery", "test")


@flax.struct.dataclass
class PointTask:
    """One task's points, leaves [n, ...], in three disjoint splits. The contract of a task's data."""

    train: PointBatch
    recovery: PointBatch
    held_out: PointBatch

    def batch(self, key: jax.Array, size: int) -> PointBatch:
        """``size`` different training examples. The key is consumed."""
        return draw(self.train, key, size)

    def support(self, key: jax.Array, size: int) -> PointBatch:
        """``size`` different examples for recovery, from data that neither trains nor tests."""
        return draw(self.recovery, key, size)

    def test(self) -> PointBatch:
        """The test set, always the same."""
        return self.held_out


def make_stream(
    tasks: Mapping[str, Any],
    base: Any = None,
    *,
    recovery: float = 0.2,
    test: float = 0.2,
    max_length: int | None = None,
) -> Stream:
    """A stream of tasks whose examples are at hand.

    Examples are split by a hash of their content, so that adding some moves no other. Pairs in memory are split as the
    lines that ``json.dumps`` writes of them.

    Args:
      tasks: name -> its examples, in the order in which they are trained. With a base: pairs (prompt, completion),
        records as in a JSONL file, or the path of one. Without: arrays (x f32[n, d], y [n]), where whole numbers are
        classes and others are values.
      base: that reads the text, as `ftn_jax.load_base` gives it.
      recovery: share of examples from which masks are recovered.
      test: share of examples that are scored; the rest is trained on.
      max_length: tokens of an example that are read; None: as many as the base has positions.

    Raises:
      InputError: no tasks, examples that can't be read, a text that is longer than ``max_length``, or a task without
        examples for a split.
    """
    for name, share in (("recovery", recovery), ("test", test)):
        if not PART[0](share):
            raise InputError(f"{name} is {share!r}, expected {PART[1]}")
    if recovery + test >= 1:
        raise InputError(f"recovery + test is {recovery + test}, expected less than 1")
    if not isinstance(tasks, Mapping) or not tasks:
        raise InputError(f"tasks are {type(tasks).__name__} of {tasks!r:.40}, expected names with their examples")
    if base is None and max_length is not None:
        raise InputError(f"max_length is {max_length}, expected none where there is no base")
    shares, read = {"recovery": recovery, "test": test}, _points if base is None else _pairs
    splits = {name: _split(name, read(name, given), shares) for name, given in tasks.items()}
    return _of_points(splits) if base is None else _of_text(splits, base, max_length)


def _split(name: str, lines: list[tuple[bytes, Any]], shares: Mapping[str, float]) -> dict[str, list[Any]]:
    """Examples, each with what it is hashed by, in their splits."""
    found: dict[str, list[Any]] = {split: [] for split in _SPLITS}
    for line, example in lines:
        found[split_of(line, **shares)].append(example)
    for split, examples in found.items():
        if not examples:
            raise InputError(
                f"task {name!r} has {len(lines)} examples and none for split {split!r}: add examples, or change shares"
            )
    return found


def _pairs(name: str, given: Any) -> list[tuple[bytes, Pair]]:
    if isinstance(given, str | os.PathLike):
        return [(line, pair) for _, line, pair in read_pairs(pathlib.Path(given))]
    try:
        pairs = pairs_of(given)
    except InputError as error:
        raise InputError(f"task {name!r}: {error}") from error
    return [
        (json.dumps({"prompt": prompt, "completion": target}).encode(), (prompt, target)) for prompt, target in pairs
    ]


def _points(name: str, given: Any) -> list[tuple[bytes, tuple[np.ndarray, np.ndarray]]]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InputError(
            f"task {name!r} is {type(given).__name__}, expected arrays (x, y); pairs need a base that reads them"
        )
    try:
        x, y = (np.asarray(part) for part in given)
    except ValueError as error:  # rows of different length
        raise InputError(f"task {name!r} has rows of different length, expected arrays (x, y)") from error
    if x.ndim != 2 or y.shape != x.shape[:1] or x.dtype.kind not in "iuf" or y.dtype.kind not in "iuf":
        kinds = f"{x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}"
        raise InputError(f"task {name!r} is {kinds}, expected numbers x [n, d] and y [n]")
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise InputError(f"task {name!r} has values that are not finite")
    x, y = x.astype(np.float32), y.astype(np.float32 if y.dtype.kind == "f" else np.int32)
    return [(one.tobytes() + target.tobytes(), (one, target)) for one, target in zip(x, y, strict=True)]


def _of_points(splits: Mapping[str, Mapping[str, list]]) -> Stream:
    tasks, metrics, widths = [], set(), set()
    for split in splits.values():
        arrays = [[jnp.asarray(np.stack(leaf)) for leaf in zip(*split[part], strict=True)] for part in _SPLITS]
        task = PointTask(*(PointBatch(*leaves) for leaves in arrays))
        tasks.append(task)
        metrics.add("accuracy" if jnp.issubdtype(task.train.y.dtype, jnp.integer) else "mse")
        widths.add(task.train.x.shape[1])
    if len(metrics) > 1:
        raise InputError("some tasks have classes (whole numbers) and others values, expected one kind in all")
    if len(widths) > 1:
        raise InputError(
            f"tasks have inputs of {' and '.join(map(str, sorted(widths)))} numbers, expected as many in each"
        )
    return Stream(tuple(splits), tasks, metrics.pop(), examples=_counts(splits))


def _of_text(splits: Mapping[str, Mapping[str, list]], base: Any, max_length: int | None) -> Stream:
    tokens: Tokens = base.tokens
    positions = base.config.positions
    most = positions if max_length is None else max_length
    if type(most) is not int or not 2 <= most <= positions:
        raise InputError(f"max_length is {max_length!r}, expected 2 to the {positions} positions of base {base.name!r}")
    encoded = {name: {s: encode(pairs, tokens) for s, pairs in split.items()} for name, split in splits.items()}
    longest = scored = 0
    for name, parts in encoded.items():
        for example in (example for examples in parts.values() for example in examples):
            length = len(example.prompt) + len(example.target) - 1
            if length > most:
                raise InputError(
                    f"task {name!r} has an example of {length} tokens, expected at most max_length = {most}: shorten it"
                )
            longest, scored = max(longest, length), max(scored, len(example.target))
    length = padded(longest, most)
    size = {"length": length, "targets": padded(scored, length), "pad": tokens.ends[0]}
    tasks = [TextTask(*(pad_examples(parts[s], **size) for s in _SPLITS)) for parts in encoded.values()]
    pairs = [split["test"] for split in splits.values()]
    return Stream(tuple(splits), tasks, "cross_entropy", examples=_counts(splits), pairs=pairs)


def _counts(splits: Mapping[str, Mapping[str, list]]) -> list[dict[str, int]]:
    return [{"training": len(split["train"]), "recovery": len(split["recovery"])} for split in splits.values()]
