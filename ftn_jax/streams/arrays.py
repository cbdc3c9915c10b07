"""The stream of arrays: each task has inputs x [n, d] and targets y [n], in memory or in a .npz or .csv file.

Inputs are used as given, in float32, without scaling or centring. Integers in y are classes, floats are values.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.pools.neurons import PointBatch
from ftn_jax.streams.base import ArrayTask, Context, Spec, Stream, with_rows
from ftn_jax.streams.examples import Examples, examples_of, read_examples
from ftn_jax.streams.files import (
    NEEDED,
    SPLITS,
    Shares,
    blocks_of,
    check_regular,
    check_shares,
    paths_of,
    split_of,
    task_names,
)


def arrays(
    context: Context,
    files: Sequence[str],
    *,
    recovery: float,
    test: float,
    validation: float = 0.0,
    classes: int = 0,
) -> Stream:
    """A stream with one task for each file; see `ftn_jax.streams.examples.read_examples` for the format of files.

    FILE#2 trains FILE's task further. Arguments other than ``files`` are as in `arrays_stream`.

    Raises:
      InputError: a file can't be read or used, two files have the same name or different columns, or `arrays_stream`
        refuses the examples.
    """
    names, found = task_names(files), {}
    for file, path in zip(files, paths_of(files), strict=True):
        check_regular(path)
        found[file] = read_examples(path)
    named = {file: own.columns for file, own in found.items() if own.columns}
    for file, columns in named.items():
        first = next(iter(named))
        if columns != named[first]:
            raise InputError(
                f"{file} has the inputs {_short(columns)} and {first} has {_short(named[first])}: expected the same "
                "columns in the same order"
            )
    shares = Shares(recovery, test, validation)
    stream = _stream(dict(zip(names, found.values(), strict=True)), list(files), shares, classes)
    return stream._replace(**blocks_of(files))


def arrays_stream(
    tasks: Mapping[str, tuple[Any, Any]],
    *,
    recovery: float = 0.15,
    test: float = 0.15,
    validation: float = 0.0,
    classes: int = 0,
) -> Stream:
    """A stream of tasks whose examples are arrays in memory.

    A hash of an example's bytes decides its split: adding examples moves no other, and equal examples are always in
    the same split.

    Args:
      tasks: name -> (x, y), in the order of training. x [n, d] has d numbers for each example, the same d in all
        tasks; they are used as given, in float32. y [n] has classes, whole numbers from 0, or floats for regression.
      recovery: share of the examples from which masks are recovered.
      test: share of the examples that are held out for testing.
      validation: share of the examples by which the best step of a task's training is chosen; 0 for none.
      classes: C; 0 takes the number from the largest class in any task. A larger C leaves room for later tasks.

    Raises:
      InputError: no tasks, arrays that can't be used, tasks with different d or kinds of y, a split without examples,
        or a class that is not below ``classes``.
    """
    if not tasks:
        raise InputError("a stream of arrays has no tasks, expected at least one: name -> (x, y)")
    shares = Shares(recovery, test, validation)
    for name in ("recovery", "test"):
        if not 0 < getattr(shares, name) < 1:
            raise InputError(f"{name} is {getattr(shares, name)}, expected a share between 0 and 1")
    places = [f"task {name!r}" for name in tasks]
    found = {}
    for place, (name, given) in zip(places, tasks.items(), strict=True):
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise InputError(f"{place} is {type(given).__name__}, expected arrays (x, y)")
        found[name] = examples_of(place, *given)
    return _stream(found, places, shares, classes)


def _stream(tasks: Mapping[str, Examples], places: Sequence[str], shares: Shares, classes: int) -> Stream:
    """The stream of ``tasks``; ``places`` names the source of each, for messages."""
    check_shares(shares)
    spec = _spec_of(list(tasks.values()), places, classes)
    data, counts = [], {split: list[int]() for split in SPLITS}
    for place, examples in zip(places, tasks.values(), strict=True):
        splits = _splits(examples, shares)
        for split, rows in splits.items():
            if not len(rows) and (split in NEEDED or shares.validation):
                raise InputError(
                    f"{place} has no example for split {split!r}: add examples, or change the shares of the splits "
                    "(config.stream.recovery, .test, .validation)"
                )
            counts[split].append(len(rows))
        data.append(_task(examples, splits))
    return Stream(
        tuple(tasks),
        data,
        "accuracy" if spec.classes else "mse",
        spec,
        examples=[
            {"training": trained, "recovery": kept}
            for trained, kept in zip(counts["train"], counts["recovery"], strict=True)
        ],
        task_facts={f"{split} examples": counts[split] for split in (SPLITS if shares.validation else NEEDED)},
    )


def _task(examples: Examples, splits: Mapping[str, np.ndarray]) -> ArrayTask:
    """A task's data; training and recovery examples are padded to one of a few sizes, to share compiled programs."""
    whole = {split: PointBatch(*(leaf[rows] for leaf in examples[:2])) for split, rows in splits.items()}
    counts = np.array([len(whole[split].y) for split in ("train", "recovery")], np.int32)
    train, recovery = (with_rows(whole[split], _rows(len(whole[split].y))) for split in ("train", "recovery"))
    validation = whole["validation"] if len(whole["validation"].y) else None
    return ArrayTask(train, recovery, whole["test"], counts, validation)


def _rows(n: int) -> int:
    """The next of 64, 96, 128, 192, 256, ... rows, to which n are padded; it depends on nothing else."""
    power = max(64, 1 << (n - 1).bit_length())
    return 3 * power // 4 if 64 < n <= 3 * power // 4 else power


def _splits(examples: Examples, shares: Shares) -> dict[str, np.ndarray]:
    """The indices of the rows in each split."""
    x, y = examples.x.astype("<f4"), examples.y.astype("<f4" if examples.y.dtype.kind == "f" else "<i4")
    split = np.array([split_of(one.tobytes() + own.tobytes(), shares) for one, own in zip(x, y, strict=True)])
    return {name: np.flatnonzero(split == name) for name in SPLITS}


def _spec_of(tasks: Sequence[Examples], places: Sequence[str], classes: int) -> Spec:
    """The spec that all tasks share.

    Raises:
      InputError: the tasks differ in d or in the kind of y, have fewer than two classes, or more than ``classes``.
    """
    first, regress = tasks[0], tasks[0].y.dtype.kind == "f"
    for place, own in zip(places, tasks, strict=True):
        if own.x.shape[1] != first.x.shape[1]:
            raise InputError(
                f"{place} has {own.x.shape[1]} inputs and {places[0]} has {first.x.shape[1]}: expected the same number "
                "in each"
            )
        if (own.y.dtype.kind == "f") != regress:
            kinds = ("floats", "whole numbers") if regress else ("whole numbers", "floats")
            raise InputError(
                f"{place} has {kinds[1]} in y and {places[0]} has {kinds[0]}: expected classes in each task, or values "
                "in each"
            )
    if regress:
        if classes:
            raise InputError(
                f"config.stream.classes is {classes}, expected 0 since y has floats, which are not classes"
            )
        return Spec(first.x.shape[1])
    own = [int(examples.y.max()) for examples in tasks]
    largest, place = max(own), places[int(np.argmax(own))]
    if classes and largest >= classes:
        raise InputError(
            f"config.stream.classes is {classes}, expected at least {largest + 1}: {place} has class {largest}"
        )
    if not classes and not largest:
        raise InputError(f"{places[0]}: y is 0 in all tasks, expected two classes or more (or config.stream.classes)")
    return Spec(first.x.shape[1], classes or largest + 1)


def _short(columns: Sequence[str]) -> str:
    text = ", ".join(columns)
    return text if len(text) <= 60 else f"{text[:57]}..."
