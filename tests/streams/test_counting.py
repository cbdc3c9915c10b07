"""Counts of tokens against the tokenizer's own, for texts of any spaces and a table that forgets."""

import sys

import pytest
import tokenizers
import toys
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ftn_jax.models import pretrained
from ftn_jax.models.tokens import Tokens
from ftn_jax.streams.text.counting import TokenCounter

EOS = "<|endoftext|>"


def wrapped(backend):
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS)


def own_copy():
    return tokenizers.Tokenizer.from_str(toys.toy_tokenizer().to_str())


def with_prefix_space():
    backend = own_copy()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    return wrapped(backend)


def with_normalizer():
    backend = own_copy()
    backend.normalizer = tokenizers.normalizers.Replace(" ", "  ")
    return wrapped(backend)


TOKENIZERS = {
    "packaged": pretrained.load("packaged").tokens.tokenizer,
    "toy": wrapped(toys.toy_tokenizer()),
    "prefix space": with_prefix_space(),
    "normalizer": with_normalizer(),
}
COUNTERS = {name: TokenCounter(toys.toy_tokens(tokenizer, 10**6)) for name, tokenizer in TOKENIZERS.items()}
PIECES = st.sampled_from(
    [" ", "  ", "\n", "\t", "\x1c", "\x85", "\xa0", "\u180e", "\u3000", "the", "It's", "7", "!", EOS]
)
TEXTS = st.lists(st.lists(PIECES | st.text(max_size=3), max_size=8).map("".join), max_size=4)


def own(tokenizer, texts):
    return [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=400, deadline=None)
@given(texts=TEXTS)
@example(texts=["the   end", "the \n end ", f"a   {EOS}  b", "", " the", "the"])
def test_counts_are_the_tokenizers(name, texts):
    assert COUNTERS[name](texts) == own(TOKENIZERS[name], texts)


def test_a_word_is_tokenized_once_until_the_table_is_full(monkeypatch):
    asked = []

    class Asked:
        is_fast, backend_tokenizer = True, TOKENIZERS["toy"].backend_tokenizer
        get_added_vocab = TOKENIZERS["toy"].get_added_vocab

        def __call__(self, texts, **settings):
            asked.append(sorted(texts))
            return TOKENIZERS["toy"](texts, **settings)

    count = TokenCounter(Tokens(Asked(), (0,), (0,), 600))
    texts = ["a fox and a fox", "and a hill"]
    assert count(texts) == count(texts) == own(TOKENIZERS["toy"], texts)
    assert asked == [sorted(["a", " fox", " and", " a", "and", " hill"])]
    monkeypatch.setattr(sys.modules[TokenCounter.__module__], "_KEPT", 5)
    assert count(["a"]) == count(["a"]) == own(TOKENIZERS["toy"], ["a"])
    assert asked[1:] == [["a"]]
