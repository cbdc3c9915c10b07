"""Builds the Hugging Face tokenizer that the metadata of a GGUF file describes.

There are two kinds: byte-level BPE, for which the file names the rule that splits text into words, and SentencePiece's
BPE, which does not split text and has a score for each token instead of a list of merges.
"""

from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from ftn_jax.core.errors import InputError
from ftn_jax.models.gguf_file import Metadata

_KINDS = ("gpt2", "llama")  # values of tokenizer.ggml.model
_SPACE = "\u2581"  # stands for a space in SentencePiece
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # values of tokenizer.ggml.token_type


class _Words(NamedTuple):
    """How text is split into words before tokens are merged."""

    pattern: str | None = None  # regex of the words; None: GPT-2's
    digits: bool = False  # whether digits are first split one by one
    composed: bool = False  # whether text is first normalized to Unicode's NFC
    whole: bool = False  # whether a word that is a token is used without merges
    bos: bool = False  # whether a text begins with bos if the file doesn't say


def _pattern(digits: str) -> str:
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )


_LLAMA3 = _Words(_pattern(r"\p{N}{1,3}"), whole=True, bos=True)
_WORDS = {
    "gpt-2": _Words(),
    "smollm": _Words(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _Words(_pattern(r"\p{N}"), composed=True),
}
"""The rules, by their names in tokenizer.ggml.pre."""


def tokenizer_of(metadata: Metadata, architecture: str, size: int) -> Any:
    """The ``transformers.PreTrainedTokenizerFast`` that a file describes.

    Args:
      metadata: of the file.
      architecture: of its model; it decides what older files leave out.
      size: of the model's vocabulary.

    Raises:
      InputError: an unknown kind of tokenizer or rule for words, or metadata that is missing or contradictory.
    """
    from transformers import PreTrainedTokenizerFast

    kind = metadata.text("tokenizer.ggml.model")
    if kind not in _KINDS:
        raise metadata.refuse("tokenizer.ggml.model", kind, " or ".join(_KINDS))
    tokens = metadata.texts("tokenizer.ggml.tokens")
    ids = {token: i for i, token in enumerate(tokens)}
    if not 0 < len(tokens) == len(ids) <= size:
        raise InputError(
            f"base {metadata.where}: the tokenizer has {len(tokens)} tokens, {len(ids)} of them different, for a "
            f"vocabulary of {size}"
        )
    types = metadata.numbers("tokenizer.ggml.token_type", len(tokens)).tolist()
    if kind == "gpt2":
        tokenizer, bos = _byte_level(metadata, ids, architecture)
    else:
        tokenizer, bos = _sentencepiece(metadata, ids, types), True
    special = [i for i, one in enumerate(types) if one == _CONTROL]
    own = [i for i, one in enumerate(types) if one == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(tokens[i], special=True, normalized=False) for i in special])
    tokenizer.add_tokens([AddedToken(tokens[i], special=False, normalized=False) for i in own])

    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found: dict[str, int] = {}
    for name, theirs in named.items():
        key = f"tokenizer.ggml.{theirs}_token_id"
        number = metadata.count(key, None, least=0)
        if number is not None and number >= len(tokens):
            raise metadata.refuse(key, number, f"less than {len(tokens)}")
        if number is not None:
            found[name] = number
    if "eos" not in found:
        raise InputError(f"base {metadata.where}: the tokenizer has no end-of-text token (eos_token)")
    around = {name: metadata.flag(f"tokenizer.ggml.add_{name}_token", bos and name == "bos") for name in ("bos", "eos")}
    if around["bos"] and "bos" not in found:
        raise InputError(
            f"base {metadata.where}: texts begin with a token that the tokenizer does not have (bos_token)"
        )
    first, last = ([f"{name}:{{}}"] if around[name] else [] for name in ("bos", "eos"))
    single, second = ([part.format(i) for part in (*first, f"${text}:{{}}", *last)] for i, text in enumerate("AB"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=single + second,
        special_tokens=[{"id": n, "ids": [found[n]], "tokens": [tokens[found[n]]]} for n in around if around[n]],
    )
    template = metadata.text("tokenizer.chat_template", None)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=metadata.count(f"{architecture}.context_length"),
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **({"chat_template": template} if template else {}),
        **{f"{name}_token": tokens[number] for name, number in found.items()},
    )


def _byte_level(metadata: Metadata, ids: dict[str, int], architecture: str) -> tuple[Tokenizer, bool]:
    """A byte-level BPE, and whether a text begins with bos if the file doesn't say."""
    key = "tokenizer.ggml.pre"
    rule = metadata.text(key, "default")
    if rule == "default" and architecture == "gpt2":  # files of GPT-2 from before rules had names
        rule = "gpt-2"
    if rule not in _WORDS:
        raise metadata.refuse(key, rule, " or ".join(_WORDS))
    words = _WORDS[rule]
    merges = []
    for merge in metadata.texts("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise InputError(
                f"base {metadata.where}: {merge!r} of tokenizer.ggml.merges does not join two known tokens into a third"
            )
        merges.append((left, right))
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, ignore_merges=words.whole))
    if words.composed:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if words.digits else []
    if words.pattern:
        steps.append(pre_tokenizers.Split(Regex(words.pattern), "isolated"))
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", False)
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=words.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, words.bos


def _sentencepiece(metadata: Metadata, ids: dict[str, int], types: list[int]) -> Tokenizer:
    metadata.neutral("tokenizer.ggml.remove_extra_whitespaces", False)
    tokens, scores = list(ids), metadata.numbers("tokenizer.ggml.scores", len(ids))
    # SentencePiece first merges the adjacent pair that makes the token of the highest score; among equal scores, the
    # token listed first. Merges never make tokens of the other types, which are matched in the text beforehand.
    usable = {token for token, one in zip(tokens, types, strict=True) if one == _NORMAL}
    merges = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if types[i] == _NORMAL:
            token = tokens[i]
            for cut in range(len(token) - 1, 0, -1):
                if token[:cut] in usable and token[cut:] in usable:
                    merges.append((token[:cut], token[cut:]))
    unknown = metadata.count("tokenizer.ggml.unknown_token_id", None, least=0)
    name = tokens[unknown] if unknown is not None and unknown < len(tokens) else None
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, unk_token=name, fuse_unk=True, byte_fallback=True))
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer
