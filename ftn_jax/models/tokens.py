"""The format of text: what is read, what is scored, and where a text ends; here and nowhere else."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ftn_jax.core.errors import InputError

Pair = tuple[str, str]  # prompt and completion


class Example(NamedTuple):
    """Token ids: what the model reads, and what it is to write; ``cut`` if the text has more of them."""

    prompt: list[int]
    target: list[int]
    cut: bool = False


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Text as token ids of one base, and back."""

    tokenizer: Any  # of transformers
    start: tuple[int, ...]  # stands before a document; see `ftn_jax.models.families.Family`
    ends: tuple[int, ...]  # each ends a text; the first is written after a target, and pads
    size: int  # rows of the base's embeddings
    base: str = ""  # its name, for messages

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, with nothing before or after.

        Raises:
          InputError: a token that the base's embeddings do not have.
        """
        # Not verbose: it would warn of texts that are longer than the base reads, which are cut later.
        settings = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        found = self.tokenizer(list(texts), **settings)["input_ids"]
        for ids in found:
            self.check(ids)
        return found

    def check(self, ids: Iterable[int]) -> None:
        """Raises InputError where the base's embeddings do not have one of these tokens."""
        largest = max(ids, default=0)
        if largest >= self.size:
            name = self.tokenizer.convert_ids_to_tokens(largest)
            raise InputError(
                f"token {name!r} has id {largest}, and base {self.base!r} has embeddings of {self.size} tokens: resize "
                "them (resize_token_embeddings in transformers), or take the token out of the tokenizer or the text"
            )

    def text(self, ids: Sequence[int]) -> str:
        """What a model wrote, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def prompt(self, text: str) -> list[int]:
        """What the model reads before it writes.

        Raises:
          InputError: nothing, since neither the text nor the base's format has a token.
        """
        ids = [*self.start, *self.ids([text])[0]]
        if not ids:
            raise InputError(f"the prompt is empty, and base {self.base!r} puts no token before a text: write one")
        return ids


def check_length(max_length: int, base: Any) -> None:
    """Raises InputError where a base has fewer positions than ``max_length``."""
    if max_length > base.config.positions:
        raise InputError(
            f"config.stream.max_length is {max_length}, expected at most the {base.config.positions} positions "
            f"of base {base.name!r}"
        )


def encode(
    pairs: Sequence[Pair], tokens: Tokens, max_length: int | None = None, pieces: Sequence[int] | None = None
) -> list[Example]:
    """``<start> prompt`` is read, ``completion <end>`` is scored.

    Prompt and completion are tokenized apart and joined as they are, so that the boundary between them does not depend
    on the text. What does not fit into ``max_length`` is cut from the left of the prompt, and from the end of a
    completion that alone is too long. Where nothing is read, the completion's first token is, and is not scored.

    Args:
      pairs: prompt and completion of each example.
      tokens: of the base.
      max_length: tokens that are read at most.
      pieces: of each pair, which piece is wanted of a text that is split (see `cuts`).

    Raises:
      InputError: a token that the base's embeddings do not have.
    """
    return arrange(tokenized(pairs, tokens), tokens, max_length, pieces)


def tokenized(pairs: Sequence[Pair], tokens: Tokens) -> list[tuple[list[int], list[int]]]:
    """The ids of each pair's prompt, and of its completion with the token that ends it.

    Raises:
      InputError: a token that the base's embeddings do not have.
    """
    ids, end = tokens.ids([text for pair in pairs for text in pair]), tokens.ends[0]
    return [(prompt, [*target, end]) for prompt, target in zip(ids[::2], ids[1::2], strict=True)]


def arrange(
    ids: Sequence[tuple[Sequence[int], Sequence[int]]],
    tokens: Tokens,
    max_length: int | None = None,
    pieces: Sequence[int] | None = None,
) -> list[Example]:
    """`encode` of what is `tokenized` already; other arguments as there.

    Raises:
      InputError: a token that the base's embeddings do not have.
    """
    start = list(tokens.start)
    tokens.check([*start, tokens.ends[0]])
    examples = []
    for i, (prompt, target) in enumerate(ids):
        shown, kept = fit(len(prompt), len(target), max_length, len(start))
        read = [*start, *prompt[len(prompt) - shown :]]
        cut = shown < len(prompt) or kept < len(target)
        if pieces is not None and max_length is not None and not prompt:
            first, last = cuts(len(target), max_length, len(start))[pieces[i]]
            if first:
                read, target = list(target[first - 1 : first]), target[first:last]
            kept, cut = last - first, False
        unscored = not read
        examples.append(Example(read or list(target[:1]), list(target[unscored:kept]), cut))
    return examples


def cuts(target: int, max_length: int, start: int) -> list[tuple[int, int]]:
    """Where a text without a prompt is split: (first, last + 1) of the tokens of each piece, its end among them.

    A piece after the first reads the token before it, so that each token is scored once.
    """
    edges = [0, fit(0, target, max_length, start)[1]]
    while edges[-1] < target:
        edges.append(min(edges[-1] + max_length, target))
    return list(itertools.pairwise(edges))


def fit(prompt: int, target: int, max_length: int | None, start: int) -> tuple[int, int]:
    """How many tokens are kept of a prompt, after ``start`` others, and of a target with its end; see `encode`."""
    if max_length is None:
        return prompt, target
    kept = min(target, max_length + 1 - max(start, 1))
    # The last target is predicted and never read.
    return min(prompt, max_length + 1 - start - kept), kept


def measure(prompt: int, target: int, max_length: int | None, start: int) -> tuple[int, int, bool]:
    """(tokens that are read, tokens that are scored, whether some are cut) of an example; arguments as in `fit`."""
    shown, kept = fit(prompt, target, max_length, start)
    scored = kept if start + shown else kept - 1
    return start + shown + kept - 1, scored, shown < prompt or kept < target


def measure_pieces(target: int, max_length: int, start: int) -> list[tuple[int, int]]:
    """(tokens that are read, tokens that are scored) of each piece of a text without a prompt; see `cuts`."""
    sizes = [last - first for first, last in cuts(target, max_length, start)]
    return [measure(0, sizes[0], None, start)[:2], *((size, size) for size in sizes[1:])]
