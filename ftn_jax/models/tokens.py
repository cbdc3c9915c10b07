"""The format of text, defined only here: which tokens are read, which are scored, and where a text ends."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ftn_jax.core.errors import InputError

Pair = tuple[str, str]  # prompt and completion


class Example(NamedTuple):
    """The token ids of a prompt and its target; ``cut`` says that some tokens of the text were left out."""

    prompt: list[int]
    target: list[int]
    cut: bool = False


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Converts text to token ids of one base, and back."""

    tokenizer: Any  # of transformers
    start: tuple[int, ...]  # ids before a document; see `ftn_jax.models.families.Family`
    ends: tuple[int, ...]  # each ends a text; the first is appended to targets, and used as padding
    size: int  # rows of the base's embeddings
    base: str = ""  # the base's name, for messages

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without any special tokens added.

        Raises:
          InputError: the base's embeddings lack a token.
        """
        # Not verbose, or it would warn of texts that are too long for the base; these are cut later.
        settings = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        found = self.tokenizer(list(texts), **settings)["input_ids"]
        for ids in found:
            self.check(ids)
        return found

    def check(self, ids: Iterable[int]) -> None:
        """Raises InputError if the base's embeddings lack one of these tokens."""
        largest = max(ids, default=0)
        if largest >= self.size:
            name = self.tokenizer.convert_ids_to_tokens(largest)
            raise InputError(
                f"token {name!r} has id {largest}, and base {self.base!r} has embeddings of {self.size} tokens: resize "
                "them (resize_token_embeddings in transformers), or take the token out of the tokenizer or the text"
            )

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids that a model wrote, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def prompt(self, text: str) -> list[int]:
        """The ids that the model reads before it writes.

        Raises:
          InputError: there are none: the text is empty, and the base puts no token before it.
        """
        ids = [*self.start, *self.ids([text])[0]]
        if not ids:
            raise InputError(f"the prompt is empty, and base {self.base!r} puts no token before a text: give a prompt")
        return ids


def check_length(max_length: int, base: Any) -> None:
    """Raises InputError if a base has fewer positions than ``max_length``."""
    if max_length > base.config.positions:
        raise InputError(
            f"config.stream.max_length is {max_length}, expected at most the {base.config.positions} positions "
            f"of base {base.name!r}"
        )


def encode(
    pairs: Sequence[Pair], tokens: Tokens, max_length: int | None = None, pieces: Sequence[int] | None = None
) -> list[Example]:
    """``<start> prompt`` is read, ``completion <end>`` is scored.

    Prompt and completion are tokenized separately and joined, so that no token spans both. An example that is longer
    than ``max_length`` is cut at the left of its prompt and, if the completion alone is too long, at the end of the
    completion. If there would be nothing to read, the completion's first token is read instead of being scored.

    Args:
      pairs: prompt and completion of each example.
      tokens: of the base.
      max_length: the most tokens that are read; None: no limit.
      pieces: for each pair without a prompt, which piece of its text is wanted (see `cuts`); None: texts are cut, not
        split.

    Raises:
      InputError: the base's embeddings lack a token.
    """
    return arrange(tokenized(pairs, tokens), tokens, max_length, pieces)


def tokenized(pairs: Sequence[Pair], tokens: Tokens) -> list[tuple[list[int], list[int]]]:
    """The ids of each pair's prompt, and of its completion with the token that ends it.

    Raises:
      InputError: the base's embeddings lack a token.
    """
    ids, end = tokens.ids([text for pair in pairs for text in pair]), tokens.ends[0]
    return [(prompt, [*target, end]) for prompt, target in zip(ids[::2], ids[1::2], strict=True)]


def arrange(
    ids: Sequence[tuple[Sequence[int], Sequence[int]]],
    tokens: Tokens,
    max_length: int | None = None,
    pieces: Sequence[int] | None = None,
) -> list[Example]:
    """`encode` for pairs that are already `tokenized`; the other arguments are the same.

    Raises:
      InputError: the base's embeddings lack a token.
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
    """Splits a text without a prompt: (first, last + 1) of each piece's tokens; the text's ending token counts, too.

    Each piece after the first also reads the token before it, so that its own first token is scored, too.
    """
    edges = [0, fit(0, target, max_length, start)[1]]
    while edges[-1] < target:
        edges.append(min(edges[-1] + max_length, target))
    return list(itertools.pairwise(edges))


def fit(prompt: int, target: int, max_length: int | None, start: int) -> tuple[int, int]:
    """How many tokens of a prompt, after ``start`` others, and of a target with its end are kept; see `encode`."""
    if max_length is None:
        return prompt, target
    kept = min(target, max_length + 1 - max(start, 1))
    # The last target token is predicted but never read.
    return min(prompt, max_length + 1 - start - kept), kept


def measure(prompt: int, target: int, max_length: int | None, start: int) -> tuple[int, int, bool]:
    """(tokens read, tokens scored, whether some are cut) of an example; arguments as in `fit`."""
    shown, kept = fit(prompt, target, max_length, start)
    scored = kept if start + shown else kept - 1
    return start + shown + kept - 1, scored, shown < prompt or kept < target


def measure_pieces(target: int, max_length: int, start: int) -> list[tuple[int, int]]:
    """(tokens read, tokens scored) of each piece of a text without a prompt; see `cuts`."""
    sizes = [last - first for first, last in cuts(target, max_length, start)]
    return [measure(0, sizes[0], None, start)[:2], *((size, size) for size in sizes[1:])]
