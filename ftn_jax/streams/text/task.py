"""Tasks of text: pairs (prompt, completion) as padded arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.models.tokens import Example, Pair, Tokens, encode
from ftn_jax.pools.lora import TokenBatch

_MULTIPLE = 8  # padded sizes are multiples of this, so that tasks share compiled programs


_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def padded(size: int, most: int) -> int:
    """The size to which text of any length is padded: one of a few, so that programs are shared; ``most`` at most."""
    return min(next((length for length in _LENGTHS if length >= size), most), most)


def pad_examples(examples: Sequence[Example], *, length: int, targets: int, pad: int) -> TokenBatch:
    """Examples as one `TokenBatch` [n, length] with ``targets`` scored positions, padded on the right."""
    n = len(examples)
    tokens = np.full((n, length), pad, np.int32)
    columns = np.zeros((n, targets), np.int32)
    labels = np.zeros((n, targets), np.int32)
    weights = np.zeros((n, targets), np.float32)
    for i, (prompt, target, _) in enumerate(examples):
        # The last target is predicted but never read.
        inputs = [*prompt, *target[:-1]]
        tokens[i, : len(inputs)] = inputs
        columns[i, : len(target)] = len(prompt) - 1 + np.arange(len(target))
        labels[i, : len(target)] = target
        weights[i, : len(target)] = 1.0
    return TokenBatch(tokens, columns, labels, weights)


@flax.struct.dataclass
class TextTask:
    """One task's examples, leaves [n, ...], in three disjoint splits. The contract of a task's data."""

    train: TokenBatch
    recovery: TokenBatch
    held_out: TokenBatch

    def batch(self, key: jax.Array, size: int) -> TokenBatch:
        """``size`` different training examples. The key is consumed."""
        return draw(self.train, key, size)

    def support(self, key: jax.Array, size: int) -> TokenBatch:
        """``size`` different examples for recovery, from data that neither trains nor tests."""
        return draw(self.recovery, key, size)

    def test(self) -> TokenBatch:
        """The test set, always the same."""
        return self.held_out


def draw(split: Any, key: jax.Array, size: int) -> Any:
    """``size`` different rows of a batch, in an order of their own. The key is consumed.

    Raises:
      InputError: there are fewer.
    """
    count = len(jax.tree.leaves(split)[0])
    if size > count:
        raise InputError(f"{size} examples are drawn at once, and a task has {count}: add examples, or draw fewer")
    rows = jax.random.choice(key, count, (size,), replace=False)
    return jax.tree.map(lambda leaf: leaf[rows], split)


def make_task(name: str, splits: Mapping[str, Sequence[Pair]], tokens: Tokens, max_length: int) -> TextTask:
    """The task of ``splits`` ("train", "recovery", "test" -> pairs), at one padded length for all of it.

    Raises:
      InputError: an example is longer than ``max_length`` tokens.
    """
    encoded = {s: encode(pairs, tokens) for s, pairs in splits.items()}
    everything = [example for examples in encoded.values() for example in examples]
    longest = max(len(e.prompt) + len(e.target) - 1 for e in everything)
    if longest > max_length:
        raise InputError(f"task {name!r} has an example of {longest} tokens, config.stream.max_length is {max_length}")
    length = min(_round_up(longest), max_length)
    targets = min(_round_up(max(len(e.target) for e in everything)), length)
    arrays = {
        split: pad_examples(examples, length=length, targets=targets, pad=tokens.ends[0])
        for split, examples in encoded.items()
    }
    return TextTask(arrays["train"], arrays["recovery"], arrays["test"])


def _round_up(value: int) -> int:
    return -(-value // _MULTIPLE) * _MULTIPLE
