"""Tasks of text: the prompt format, and pairs (prompt, completion) as padded arrays."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.errors import InputError
from ftn_jax.pools.lora import TokenBatch

_MULTIPLE = 8  # padded sizes are multiples of this, so that tasks share compiled programs


class Example(NamedTuple):
    """Token ids: what the model reads, and what it is to write."""

    prompt: list[int]
    target: list[int]


def encode(prompt: str, completion: str | None, tokenizer: Any) -> Example:
    """The prompt format, here and nowhere else: ``<eos> prompt newline``, then ``completion <eos>``.

    The leading end-of-text is the document boundary that GPT-2 saw in pretraining. Prompt and completion are
    tokenized apart, so that the boundary between them does not depend on the text. ``completion`` None gives an
    empty target: a prompt to generate from.
    """
    eos = tokenizer.eos_token_id
    ids = tokenizer([prompt + "\n", completion or ""], add_special_tokens=False)["input_ids"]
    return Example([eos, *ids[0]], [] if completion is None else [*ids[1], eos])


def pad_examples(examples: Sequence[Example], *, length: int, targets: int, pad: int) -> TokenBatch:
    """Examples as one `TokenBatch` [n, length] with ``targets`` scored positions, padded on the right."""
    n = len(examples)
    tokens = np.full((n, length), pad, np.int32)
    columns = np.zeros((n, targets), np.int32)
    labels = np.zeros((n, targets), np.int32)
    weights = np.zeros((n, targets), np.float32)
    for i, (prompt, target) in enumerate(examples):
        # The last target is predicted but never read.
        inputs = [*prompt, *target[:-1]]
        tokens[i, : len(inputs)] = inputs
        columns[i, : len(target)] = len(prompt) - 1 + np.arange(len(target))
        labels[i, : len(target)] = target
        weights[i, : len(target)] = 1.0
    return TokenBatch(*map(jnp.asarray, (tokens, columns, labels, weights)))


@flax.struct.dataclass
class TextTask:
    """One task's examples, leaves [n, ...], in three disjoint splits. The contract of a task's data."""

    train: TokenBatch
    recovery: TokenBatch
    held_out: TokenBatch

    def batch(self, key: jax.Array, size: int) -> TokenBatch:
        """``size`` different training examples. The key is consumed."""
        return _draw(self.train, key, size)

    def support(self, key: jax.Array, size: int) -> TokenBatch:
        """``size`` different examples for recovery, from data that neither trains nor tests."""
        return _draw(self.recovery, key, size)

    def test(self) -> TokenBatch:
        """The test set, always the same."""
        return self.held_out


def _draw(split, key, size):
    rows = jax.random.choice(key, len(split.tokens), (size,), replace=False)
    return jax.tree.map(lambda leaf: leaf[rows], split)


def make_task(name: str, splits: Mapping[str, Sequence[tuple[str, str]]], tokenizer: Any, max_length: int) -> TextTask:
    """The task of ``splits`` ("train", "recovery", "test" -> pairs), at one padded length for all of it.

    Raises:
      InputError: an example is longer than ``max_length`` tokens.
    """
    encoded = {s: [encode(p, c, tokenizer) for p, c in pairs] for s, pairs in splits.items()}
    everything = [example for examples in encoded.values() for example in examples]
    longest = max(len(e.prompt) + len(e.target) - 1 for e in everything)
    if longest > max_length:
        raise InputError(f"task {name!r} has an example of {longest} tokens, config.stream.max_length is {max_length}")
    length = min(_round_up(longest), max_length)
    targets = min(_round_up(max(len(e.target) for e in everything)), length)
    arrays = {
        split: pad_examples(examples, length=length, targets=targets, pad=tokenizer.eos_token_id)
        for split, examples in encoded.items()
    }
    return TextTask(arrays["train"], arrays["recovery"], arrays["test"])


def _round_up(value: int) -> int:
    return -(-value // _MULTIPLE) * _MULTIPLE
