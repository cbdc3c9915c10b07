"""Conversations against TRL: its training templates mark what the assistant says, and transformers reads the marks."""

import importlib.util
import pathlib

import pytest
import toys
import transformers

from ftn_jax.models.chat import Chat
from ftn_jax.models.tokens import Tokens, encode

# transformers warns of its own plans.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

SPECIAL = {
    "qwen2_5": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
}  # TRL's name of a family -> the special tokens of its template, of which the last ends a turn
TALKS = [
    (("user", "What is it?"), ("assistant", "A hat.")),
    (("user", "one\ntwo"), ("assistant", "three four"), ("user", "  five?"), ("assistant", "Six, seven.")),
]
WITH_SYSTEM = (("system", "Be short."), *TALKS[1])


def template(name):
    (folder,) = importlib.util.find_spec("trl").submodule_search_locations  # TRL itself needs much that we don't
    return (pathlib.Path(folder) / "chat_templates" / f"{name}.jinja").read_text()


@pytest.mark.parametrize("family", SPECIAL)
def test_tokens_and_what_is_scored(family):
    special = SPECIAL[family]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=toys.toy_tokenizer(), bos_token=special[0], eos_token=special[-1],
        extra_special_tokens=list(special[1:-1]),
    )  # fmt: skip
    tokens = Tokens(tokenizer, (), (tokenizer.eos_token_id,), len(tokenizer), family)
    for talk in TALKS if family == "gemma" else [*TALKS, WITH_SYSTEM]:  # Gemma's has no system
        messages = Chat(talk).records
        tokenizer.chat_template = template(f"{family}_training")
        marked = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        theirs = tokenizer.apply_chat_template(messages, **marked)
        tokenizer.chat_template = template(family)
        (ours,) = encode([Chat(talk)], tokens)
        assert ours.ids == theirs["input_ids"][: len(ours.ids)]
        assert ours.ids[-1] == tokenizer.eos_token_id
        # Theirs for Qwen also has the line breaks around a turn, and that for Gemma the one after it: the model never
        # writes these itself, since the first is in its prompt, and it stops before the other.
        breaks = {at for at, token in enumerate(theirs["input_ids"]) if [token] == tokens.ids(["\n"])[0]}
        scored = {at for at, mark in enumerate(theirs["assistant_masks"]) if mark}
        assert set(ours.scored) <= scored and scored - set(ours.scored) <= breaks
        assert family != "llama3" or scored == set(ours.scored)
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=True)["input_ids"]
        assert tokens.prompt(Chat(talk).prompt) == prompt
