"""How many tokens many texts have: words that repeat are tokenized once."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import models, pre_tokenizers

from ftn_jax.models.tokens import Tokens

_KEPT = 2**21  # characters of the words whose counts are kept
# GPT-2's pattern starts a word at a space before what is not one, and nothing before it depends on what follows.
_WORD = re.compile(r"(?= \S)")


class TokenCounter:
    """Counts as the tokenizer would: [texts] -> how many tokens each has.

    With GPT-2's pre-tokenizer a text's tokens are those of its words one after another, so each word is tokenized when
    it first occurs, and a table of bounded size knows it from then on. With any other tokenizer a text counts as one
    word.

    Raises:
      InputError: a token that the base's embeddings do not have.
    """

    def __init__(self, tokens: Tokens):
        self._tokens, tokenizer = tokens, tokens.tokenizer
        self._known: dict[str, int] = {}
        self._held = 0  # characters of what is known
        self._by_words = _splits_at_spaces(tokenizer)
        # Such a token is taken out of a text before words are looked for. Without any, nothing matches.
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
