"""The format of text, defined only here: which tokens are read, which are scored, and where a text ends."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ftn_jax.core.errors import InputError
from ftn_jax.models.chat import Chat, chat_prompt, scored_chats

Pair = tuple[str, str]  # prompt and completion
Text = Pair | Chat


class Example(NamedTuple):
    """The token ids of a text; the last is predicted but never read. ``cut`` says that some tokens were left out."""

    ids: list[int]
    scored: Sequence[int]  # the positions in ``ids`` that are scored: at least one, none of them the first
    cut: bool = False

    @classmethod
    def of(cls, prompt: Sequence[int], target: Sequence[int], cut: bool = False) -> "Example":
        """The example whose ``prompt`` is read and whose ``target`` is scored."""
        return cls([*prompt, *target], range(len(prompt), len(prompt) + len(target)), cut)

    @property
    def prompt(self) -> list[int]:
        """What is read before the last stretch that is scored."""
        return self.ids[: _last_stretch(self.scored)]

    @property
    def target(self) -> list[int]:
        """The last stretch that is scored."""
        return self.ids[_last_stretch(self.scored) :]


def _last_stretch(scored: Sequence[int]) -> int:
    """The first of the last positions that follow one another without a gap."""
    gaps = (i for i in range(len(scored) - 1, 0, -1) if scored[i] - scored[i - 1] > 1)
    return scored[next(gaps, 0)]


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

    def prompt(self, text: str | Chat) -> list[int]:
        """The ids that the model reads before it writes.

        Raises:
          InputError: there are none: the text is empty, and the base puts no token before it; or see `chat_prompt`.
        """
        if isinstance(text, Chat):
            ids = chat_prompt(text, self.tokenizer, self.base)
            self.check(ids)
            return ids
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
    texts: Sequence[Text], tokens: Tokens, max_length: int | None = None, pieces: Sequence[int] | None = None
) -> list[Example]:
    """Of a pair, ``<start> prompt`` is read and ``completion <end>`` is scored; of a conversation, see `Chat`.

    Prompt and completion are tokenized separately and joined, so that no token spans both. An example that is longer
    than ``max_length`` is cut at the left of its prompt and, if the completion alone is too long, at the end of the
    completion; in a conversation, the last scored turn is the completion, and all before it the prompt. If there would
    be nothing to read, the completion's first token is read instead of being scored.

    Args:
      texts: pairs of prompt and completion, and conversations.
      tokens: of the base.
      max_length: the most tokens that are read; None: no limit.
      pieces: for each pair without a prompt, which piece of its text is wanted (see `cuts`); None: texts are cut, not
        split.

    Raises:
      InputError: the base's embeddings lack a token, or see `scored_chats`.
    """
    return arrange(tokenized(texts, tokens), tokens, max_length, pieces)


Tokenized = tuple[Sequence[int], Sequence[int]] | Example
"""The ids of a prompt and of its completion with the token that ends it; or a whole conversation."""


def tokenized(texts: Sequence[Text], tokens: Tokens) -> list[Tokenized]:
    """The ids of texts, of which nothing is left out.

    Raises:
      InputError: the base's embeddings lack a token, or see `scored_chats`.
    """
    pairs = [text for text in texts if not isinstance(text, Chat)]
    ids = tokens.ids([part for pair in pairs for part in pair]) if pairs else []
    end = tokens.ends[0]
    of_pairs = iter([(prompt, [*target, end]) for prompt, target in zip(ids[::2], ids[1::2], strict=True)])
    chats = [text for text in texts if isinstance(text, Chat)]
    of_chats = iter(scored_chats(chats, tokens.tokenizer, tokens.ends, tokens.base) if chats else ())
    return [Example(*next(of_chats)) if isinstance(text, Chat) else next(of_pairs) for text in texts]


def arrange(
    texts: Sequence[Tokenized],
    tokens: Tokens,
    max_length: int | None = None,
    pieces: Sequence[int] | None = None,
) -> list[Example]:
    """`encode` for texts that are already `tokenized`; the other arguments are the same.

    Raises:
      InputError: the base's embeddings lack a token.
    """
    start = list(tokens.start)
    tokens.check([*start, tokens.ends[0]])
    examples = []
    for i, text in enumerate(texts):
        if isinstance(text, Example):
            tokens.check(text.ids)
            examples.append(_shortened(text, max_length))
            continue
        prompt, target = text
        shown, kept = fit(len(prompt), len(target), max_length, len(start))
        read = [*start, *prompt[len(prompt) - shown :]]
        cut = shown < len(prompt) or kept < len(target)
        if pieces is not None and max_length is not None and not prompt:
            first, last = cuts(len(target), max_length, len(start))[pieces[i]]
            if first:
                read, target = list(target[first - 1 : first]), target[first:last]
            kept, cut = last - first, False
        unscored = not read
        examples.append(Example.of(read or target[:1], target[unscored:kept], cut))
    return examples


def _shortened(chat: Example, max_length: int | None) -> Example:
    """A conversation of at most ``max_length`` + 1 tokens; see `encode`."""
    end = chat.scored[-1] + 1  # what follows the last scored turn is of no use
    if max_length is None or end <= max_length + 1:
        return Example(chat.ids[:end], chat.scored)
    first = min(end - max_length - 1, _last_stretch(chat.scored) - 1)
    last = min(end, first + max_length + 1)
    return Example(chat.ids[first:last], [at - first for at in chat.scored if first < at < last], cut=True)


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
