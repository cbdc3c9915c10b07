"""A stream of a user's own tasks in memory: pairs of text, or arrays."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import PART, SHARE
from ftn_jax.models.tokens import Text, Tokens, encode
from ftn_jax.streams.arrays import arrays_stream
from ftn_jax.streams.base import TEXT, ArrayTask, Stream
from ftn_jax.streams.files import NEEDED, SPLITS, Shares, split_of
from ftn_jax.streams.text.jsonl import read_texts
from ftn_jax.streams.text.pairs import texts_of
from ftn_jax.streams.text.records import line_of
from ftn_jax.streams.text.task import pad_examples, padded, padded_targets


def make_stream(
    tasks: Mapping[str, Any],
    base: Any = None,
    *,
    recovery: float = 0.2,
    test: float = 0.2,
    validation: float = 0.0,
    max_length: int | None = None,
) -> Stream:
    """A stream of tasks whose examples are in memory.

    A hash of an example's content decides its split, so that adding examples moves no other. A pair in memory is in the
    same split as the line that ``json.dumps`` writes for it.

    Args:
      tasks: name -> the task's examples, in the order of training. With a base: pairs (prompt, completion), records as
        in a JSONL file, or the path of such a file. Without a base: arrays (x f32[n, d], y [n]), where integers in y
        are classes, and floats are values.
      base: reads the text; from `ftn_jax.load_base`.
      recovery: share of the examples from which masks are recovered.
      test: share of the examples that are scored.
      validation: share of the examples by which the best step of a task's training is chosen (`ftn_jax.train_task`); 0
        for none. The rest is trained on.
      max_length: the most tokens that are read of an example; None: the base's positions.

    Raises:
      InputError: no tasks, examples that can't be read, a text longer than ``max_length``, or a task without examples
        for a split.
    """
    shares = Shares(recovery, test, validation)
    for name, share in shares._asdict().items():
        fits, expected = SHARE if name == "validation" else PART
        if not fits(share):
            raise InputError(f"{name} is {share!r}, expected {expected}")
    if sum(shares) >= 1:
        names = " + ".join(name for name, share in shares._asdict().items() if share)
        raise InputError(f"{names} is {sum(shares)}, expected less than 1")
    if not isinstance(tasks, Mapping) or not tasks:
        raise InputError(
            f"tasks are {type(tasks).__name__} of {tasks!r:.40}, expected a mapping from names to examples"
        )
    if base is None and max_length is not None:
        raise InputError(f"max_length is {max_length}, expected None without a base")
    if base is None:
        return arrays_stream(tasks, **shares._asdict())
    splits = {name: _split(name, _texts(name, given), shares) for name, given in tasks.items()}
    return _of_text(splits, base, max_length)


def _split(name: str, lines: list[tuple[bytes, Any]], shares: Shares) -> dict[str, list[Any]]:
    """Sorts (bytes to hash, example) into the splits."""
    found: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for line, example in lines:
        found[split_of(line, shares)].append(example)
    for split, examples in found.items():
        if not examples and (split in NEEDED or shares.validation):
            raise InputError(
                f"task {name!r} has {len(lines)} examples and none for split {split!r}: add examples, or change shares"
            )
    return {split: examples for split, examples in found.items() if examples}


def _texts(name: str, given: Any) -> list[tuple[bytes, Text]]:
    if isinstance(given, str | os.PathLike):
        return [(line, text) for _, line, text in read_texts(pathlib.Path(given))]
    try:
        texts = texts_of(given)
    except InputError as error:
        raise InputError(f"task {name!r}: {error}") from error
    return [(line_of(text), text) for text in texts]


def _of_text(splits: Mapping[str, Mapping[str, list]], base: Any, max_length: int | None) -> Stream:
    tokens: Tokens = base.tokens
    positions = base.config.positions
    most = positions if max_length is None else max_length
    if type(most) is not int or not 2 <= most <= positions:
        raise InputError(f"max_length is {max_length!r}, expected 2 to the {positions} positions of base {base.name!r}")
    encoded = {name: {s: encode(texts, tokens) for s, texts in split.items()} for name, split in splits.items()}
    longest = scored = 0
    for name, parts in encoded.items():
        for example in (example for examples in parts.values() for example in examples):
            length = len(example.ids) - 1
            if length > most:
                raise InputError(
                    f"task {name!r} has an example of {length} tokens, expected at most max_length = {most}: shorten it"
                )
            longest, scored = max(longest, length), max(scored, len(example.scored))
    length = padded(longest, most)
    size = {"length": length, "targets": padded_targets(scored, length), "pad": tokens.ends[0]}
    tasks = []
    for parts in encoded.values():
        train, kept, held_out, *validation = (pad_examples(parts[split], **size) for split in SPLITS if split in parts)
        tasks.append(ArrayTask(train, kept, held_out, validation=validation[0] if validation else None))
    pairs = [split["test"] for split in splits.values()]
    return Stream(tuple(splits), tasks, "cross_entropy", TEXT, examples=_counts(splits), pairs=pairs)


def _counts(splits: Mapping[str, Mapping[str, list]]) -> list[dict[str, int]]:
    return [{"training": len(split["train"]), "recovery": len(split["recovery"])} for split in splits.values()]
