"""Counts the tokens of many texts quickly: words that repeat are tokenized only once."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import models, pre_tokenizers

from ftn_jax.models.tokens import Tokens

_KEPT = 2**21  # the most characters of words whose counts are kept
# GPT-2's pattern always begins a new word at a space followed by a non-space, so a text can be split there.
_WORD = re.compile(r"(?= \S)")


class TokenCounter:
    """A function from texts to the number of tokens of each, the same numbers as by the tokenizer.

    With GPT-2's pre-tokenizer a text's tokens are the tokens of its words in order, so each word is tokenized when it
    first occurs, and its count is kept in a table of bounded size. With any other tokenizer a whole text counts as one
    word.

    Raises:
      InputError: the base's embeddings lack a token.
    """

    def __init__(self, tokens: Tokens):
        self._tokens, tokenizer = tokens, tokens.tokenizer
        self._known: dict[str, int] = {}
        self._held = 0  # characters of the known words
        self._by_words = _splits_at_spaces(tokenizer)
        # Added tokens are matched before a text is split into words. Without any, this matches nothing.
        self._added = re.compile("|".join(map(re.escape, tokenizer.get_added_vocab())) or "(?!)")

    def __call__(self, texts: Sequence[str]) -> list[int]:
        words = [self._words(text) for text in texts]
        if self._held > _KEPT:
            self._known, self._held = {}, 0
        unknown = list(set(itertools.chain.from_iterable(words)).difference(self._known))
        if unknown:
            self._known.update(zip(unknown, map(len, self._tokens.ids(unknown)), strict=True))
            self._held += sum(map(len, unknown))
        return [sum(map(self._known.__getitem__, text)) for text in words]

    def _words(self, text: str) -> list[str]:
        if not self._by_words or self._added.search(text):
            return [text]
        return _WORD.split(text)


def _splits_at_spaces(tokenizer: Any) -> bool:
    if not tokenizer.is_fast:
        return False
    backend = tokenizer.backend_tokenizer
    words = backend.pre_tokenizer
    return (
        backend.normalizer is None
        and isinstance(backend.model, models.BPE)
        and isinstance(words, pre_tokenizers.ByteLevel)
        and words.use_regex
        and not words.add_prefix_space
    )
