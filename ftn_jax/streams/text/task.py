"""Tasks of text: pairs (prompt, completion) as padded arrays."""

from collections.abc import Mapping, Sequence

import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.models.tokens import Example, Pair, Tokens, encode
from ftn_jax.pools.lora import TokenBatch
from ftn_jax.streams.base import ArrayTask

_MULTIPLE = 8  # padded sizes are multiples of this, so that tasks share compiled programs
_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def padded(size: int, most: int) -> int:
    """The size to which ``size`` tokens are padded: one of a few, to share compiled programs, and at most ``most``."""
    return min(next((length for length in _LENGTHS if length >= size), most), most)


def padded_targets(count: int, length: int) -> int:
    """The size to which ``count`` scored positions are padded: a power of two from 8, at most ``length``.

    These sizes are fewer than those of `padded`: scores at positions of padding cost less than another program.
    """
    return min(max(8, 1 << (count - 1).bit_length()), length)


def pad_examples(examples: Sequence[Example], *, length: int, targets: int, pad: int) -> TokenBatch:
    """Examples as one `TokenBatch` [n, length] with ``targets`` scored positions, padded on the right."""
    n = len(examples)
    tokens = np.full((n, length), pad, np.int32)
    columns = np.zeros((n, targets), np.int32)
    labels = np.zeros((n, targets), np.int32)
    weights = np.zeros((n, targets), np.float32)
    for i, (ids, scored, _) in enumerate(examples):
        tokens[i, : len(ids) - 1] = ids[:-1]
        at = np.asarray(scored, np.int64)
        columns[i, : len(scored)] = at - 1
        labels[i, : len(scored)] = np.asarray(ids)[at]
        weights[i, : len(scored)] = 1.0
    return TokenBatch(tokens, columns, labels, weights)


def make_task(name: str, splits: Mapping[str, Sequence[Pair]], tokens: Tokens, max_length: int) -> ArrayTask:
    """A task from ``splits`` ("train", "recovery", "test" and maybe "validation" -> pairs), all padded to one length.

    Raises:
      InputError: an example is longer than ``max_length`` tokens.
    """
    encoded = {s: encode(pairs, tokens) for s, pairs in splits.items()}
    everything = [example for examples in encoded.values() for example in examples]
    longest = max(len(e.ids) - 1 for e in everything)
    if longest > max_length:
        raise InputError(f"task {name!r} has an example of {longest} tokens, config.stream.max_length is {max_length}")
    length = min(_round_up(longest), max_length)
    targets = min(_round_up(max(len(e.scored) for e in everything)), length)
    arrays = {
        split: pad_examples(examples, length=length, targets=targets, pad=tokens.ends[0])
        for split, examples in encoded.items()
    }
    return ArrayTask(arrays["train"], arrays["recovery"], arrays["test"], validation=arrays.get("validation"))


def _round_up(value: int) -> int:
    return -(-value // _MULTIPLE) * _MULTIPLE
