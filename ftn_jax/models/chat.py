"""Conversations as token ids, by the chat template of a base's tokenizer."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from ftn_jax.core.errors import InputError

ROLES = ("system", "user", "assistant")
# Llama's templates write today's date where they are given none. Their own default makes a text the same on every day.
_DATE = "26 Jul 2024"


@dataclasses.dataclass(frozen=True)
class Chat:
    """A conversation: its messages as (role, text).

    Of an example, the assistant's turns from message ``first`` on are scored. A prompt ends before the assistant's turn
    that is to be written.
    """

    messages: tuple[tuple[str, str], ...]
    first: int = 0

    @property
    def prompt(self) -> "Chat":
        """Of an example, what comes before the assistant's last turn."""
        return Chat(self.messages[: max(i for i, (role, _) in enumerate(self.messages) if role == "assistant")])

    @property
    def last(self) -> str:
        """The text of the last message."""
        return self.messages[-1][1]

    @property
    def records(self) -> list[dict[str, str]]:
        """The messages as in a task's file."""
        return [{"role": role, "content": text} for role, text in self.messages]


def chat_prompt(chat: Chat, tokenizer: Any, base: str) -> list[int]:
    """The ids that a model reads before it writes the assistant's next turn.

    Raises:
      InputError: the base has no chat template, or its template refuses the messages.
    """
    return _ids([_rendered(chat.records, tokenizer, base, opened=True)], tokenizer)[0]["input_ids"]


def scored_chats(
    chats: Sequence[Chat], tokenizer: Any, ends: Sequence[int], base: str
) -> list[tuple[list[int], list[int]]]:
    """The ids of each conversation, and the positions of those in the assistant's turns that are scored.

    A conversation is written by the template and tokenized as one text. A turn begins where the template's prompt for
    it ends, and ends with the first token that ends a text, as the model that has learned it will.

    Raises:
      InputError: the base has no chat template, or a template that refuses the messages, that writes earlier messages
        otherwise once others follow, or that does not end the assistant's turns.
    """
    texts, starts = [], []
    for chat in chats:
        text = _rendered(chat.records, tokenizer, base)
        turns = [i for i, (role, _) in enumerate(chat.messages) if role == "assistant" and i >= chat.first]
        before = [_rendered(chat.records[:i], tokenizer, base, opened=True) for i in turns]
        for i, beginning in zip(turns, before, strict=True):
            if not text.startswith(beginning):
                raise InputError(
                    f"the chat template of base {base!r} writes the messages before message {i + 1} otherwise once "
                    "others follow, so that the assistant's turn can't be told from them: name another template "
                    "(config.model.chat_template_path)"
                )
        texts.append(text)
        starts.append([len(beginning) for beginning in before])
    found = []
    for tokenized, begun in zip(_ids(texts, tokenizer), starts, strict=True):
        ids, places = tokenized["input_ids"], tokenized["offset_mapping"]
        scored: list[int] = []
        for start, stop in zip(begun, [*begun[1:], places[-1][1] + 1], strict=True):
            turn = [at for at, (_, end) in enumerate(places) if start < end and places[at][0] < stop]
            last = next((at for at in turn if ids[at] in ends), None)
            if last is None:
                names = ", ".join(repr(tokenizer.convert_ids_to_tokens(end)) for end in ends)
                raise InputError(
                    f"the chat template of base {base!r} ends the assistant's turn with none of the tokens that end a "
                    f"text ({names}), so that the model would never stop: name a template that does "
                    "(config.model.chat_template_path)"
                )
            scored += range(turn[0], last + 1)
        found.append((ids, scored))
    return found


def _rendered(messages: Sequence[dict[str, str]], tokenizer: Any, base: str, *, opened: bool = False) -> str:
    """The text that the template makes of messages; ``opened`` also begins the assistant's turn."""
    if not tokenizer.chat_template:
        raise InputError(
            f"base {base!r} has no chat template, expected one for messages: name the base's fine-tune for "
            "conversations, or a file with a template (config.model.chat_template_path)"
        )
    from jinja2 import TemplateError

    try:
        settings = {"tokenize": False, "add_generation_prompt": opened, "date_string": _DATE}
        return tokenizer.apply_chat_template(list(messages), **settings)
    except (TemplateError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the chat template of base {base!r} refuses the messages: {reason}") from error


def _ids(texts: Sequence[str], tokenizer: Any) -> list[dict[str, list]]:
    """For each text its ids, and the first and last + 1 letter of each."""
    if not tokenizer.is_fast:
        raise InputError("the base's tokenizer is a slow one, expected a fast one (tokenizer.json) for messages")
    settings = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    found = tokenizer(list(texts), return_offsets_mapping=True, **settings)
    keys = "input_ids", "offset_mapping"
    return [dict(zip(keys, row, strict=True)) for row in zip(*(found[key] for key in keys), strict=True)]


def read_template(path: str) -> str:
    """The chat template in a file.

    Raises:
      InputError: it can't be read, or is no template.
    """
    from jinja2 import Environment, TemplateSyntaxError

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"config.model.chat_template_path: {path} can't be read ({reason})") from error
    try:
        # The tags that transformers adds to the language, which mark what the assistant writes.
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_marks(text))
    except TemplateSyntaxError as error:
        raise InputError(
            f"config.model.chat_template_path: {path} is no chat template (line {error.lineno}: {error.message})"
        ) from error
    return text


def _without_marks(text: str) -> str:
    return re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", text)
