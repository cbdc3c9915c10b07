"""The style stream: one corpus of sentences, a text transformation for each task (section 3, Experiment 2)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ftn_jax.errors import InputError
from ftn_jax.streams.sentences import SPLITS
from ftn_jax.streams.text import TextTask, make_task
from ftn_jax.streams.transforms import TRANSFORMS


class Stream(NamedTuple):
    """A stream of tasks. ``pairs`` are the test pairs (prompt, completion) of each task, for samples."""

    names: tuple[str, ...]
    tasks: list[TextTask]
    pairs: list[list[tuple[str, str]]]
    metric: str = "cross_entropy"
    axis: int | None = None  # 0 where every seed has data of its own


def styles(names: Sequence[str], tokenizer: Any, *, max_length: int) -> Stream:
    """The tasks ``names`` (of `TRANSFORMS`) over the 120 sentences: 80 train, 20 recovery, 20 test.

    Raises:
      InputError: an unknown name, or an example longer than ``max_length`` tokens.
    """
    for name in names:
        if name not in TRANSFORMS:
            raise InputError(f"config.stream.tasks: unknown task {name!r}, known: {', '.join(TRANSFORMS)}")
    splits = [{s: [(x, TRANSFORMS[name](x)) for x in xs] for s, xs in SPLITS.items()} for name in names]
    tasks = [make_task(n, split, tokenizer, max_length) for n, split in zip(names, splits, strict=True)]
    return Stream(tuple(names), tasks, [split["test"] for split in splits])
