"""Records of text, as JSON or mappings, with TRL's names.

``{"prompt": ..., "completion": ...}``, ``{"text": ...}`` or ``{"messages": [{"role": ..., "content": ...}, ...]}``;
prompt and completion may be lists of messages, too.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ftn_jax.models.chat import ROLES, Chat
from ftn_jax.models.tokens import Text

_FIELDS = "prompt and completion, or text, or messages alone"


def text_of(record: Mapping[str, Any]) -> Text:
    """A record's pair of prompt and completion, or its conversation; the prompt of a text is empty.

    ``messages`` is a conversation whose assistant's turns are all scored; where prompt and completion are lists of
    messages, those of the completion are. A field that is null counts as missing.

    Raises:
      ValueError: says what is wrong with the record.
    """
    if record.get("messages") is not None:
        _alone(record, "messages", ("text", "prompt", "completion"))
        return _scored(Chat(_messages(record, "messages")), "messages")
    if record.get("text") is not None:
        _alone(record, "text", ("prompt", "completion"))
        prompt, scored = "", "text"
    elif isinstance(record.get("prompt"), list) or isinstance(record.get("completion"), list):
        prompt = _messages(record, "prompt")
        return _scored(Chat((*prompt, *_messages(record, "completion")), len(prompt)), "completion")
    else:
        prompt, scored = string(record, "prompt"), "completion"
    completion = string(record, scored)
    if not completion:
        raise ValueError(f"{scored} is empty")
    return prompt, completion


def _alone(record: Mapping[str, Any], field: str, others: Sequence[str]) -> None:
    for other in others:
        if record.get(other) is not None:
            raise ValueError(f"has {field} and {other}, expected {_FIELDS}")


def _messages(record: Mapping[str, Any], field: str) -> tuple[tuple[str, str], ...]:
    """The messages in a field of a record, as (role, text).

    Raises:
      ValueError: says what is wrong with them. What would change the text and isn't known is refused.
    """
    given = record.get(field)
    if given is None:
        raise ValueError(f"has no {field}, expected {_FIELDS}")
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(f"{field} is {type(given).__name__}, expected a list of messages")
    for other in ("tools", "chat_template_kwargs"):
        if record.get(other) is not None:
            raise ValueError(f"has {other}, which is not supported: expected messages alone")
    found = []
    for i, message in enumerate(given, 1):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {i} of {field} is {type(message).__name__}, expected an object")
        unknown = [name for name in message if name not in ("role", "content") and message[name] is not None]
        if unknown:
            raise ValueError(f"message {i} of {field} has {unknown[0]}, expected role and content")
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(f"message {i} of {field} has role {role!r}, expected one of {', '.join(ROLES)}")
        try:
            found.append((role, string(message, "content", "role and content")))
        except ValueError as error:
            raise ValueError(f"message {i} of {field} {error}") from error
    return tuple(found)


def _scored(chat: Chat, field: str) -> Chat:
    """A conversation of a training example, which has a turn of the assistant's to score."""
    answers = [text for role, text in chat.messages[chat.first :] if role == "assistant"]
    if not answers:
        raise ValueError(f"{field} has no message with role assistant, expected at least one")
    if not all(answers):
        raise ValueError(f"{field} has an assistant's message without content")
    return chat


def line_of(text: Text) -> bytes:
    """The line of a text in memory, without its end: what is hashed to choose its split, and what a file gets."""
    if not isinstance(text, Chat):
        record: dict[str, Any] = dict(zip(("prompt", "completion"), text, strict=True))
    elif text.first:
        record = {"prompt": text.records[: text.first], "completion": text.records[text.first :]}
    else:
        record = {"messages": text.records}
    return json.dumps(record).encode()


def prompt_of(record: Mapping[str, Any]) -> str | Chat:
    """The prompt of a record, which may also have a completion.

    ``messages`` is a conversation that the assistant continues; if its last message is the assistant's, that one is the
    completion.

    Raises:
      ValueError: says what is wrong with the record.
    """
    if record.get("messages") is not None:
        _alone(record, "messages", ("text", "prompt"))
        messages = _messages(record, "messages")
        return _asked(messages[:-1] if messages[-1][0] == "assistant" else messages, "messages")
    if isinstance(record.get("prompt"), list):
        return _asked(_messages(record, "prompt"), "prompt")
    return string(record, "prompt", "a prompt")


def _asked(messages: tuple[tuple[str, str], ...], field: str) -> Chat:
    if not messages or messages[-1][0] == "assistant":
        raise ValueError(f"{field} has no message that the assistant answers, expected the user's last")
    return Chat(messages)


def reference_of(record: Mapping[str, Any]) -> Any:
    """The completion that a record of a prompt has already, or None."""
    messages = record.get("messages")
    if messages and messages[-1]["role"] == "assistant":
        return messages[-1:]
    return record.get("completion")


def answered(prompt: str | Chat, text: str) -> dict[str, Any]:
    """The record of a prompt and what was written after it; of a conversation, both are lists of messages."""
    if isinstance(prompt, Chat):
        return {"prompt": prompt.records, "completion": Chat((("assistant", text),)).records}
    return {"prompt": prompt, "completion": text}


def string(record: Mapping[str, Any], field: str, expected: str = _FIELDS) -> str:
    """The text in a field of a record.

    Raises:
      ValueError: the field is missing, or is not a string of valid Unicode.
    """
    if record.get(field) is None:
        raise ValueError(f"has no {field}, expected {expected}")
    if not isinstance(record[field], str):
        raise ValueError(f"{field} is {type(record[field]).__name__}, expected a string")
    try:
        record[field].encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} has half a surrogate pair (character {error.start})") from error
    return record[field]


def parse_record(line: bytes) -> dict[str, Any]:
    """The JSON object in a line.

    Raises:
      ValueError: says what is wrong with the line.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start})") from error
    try:
        record = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg.removesuffix(' at')} at column {error.colno})") from error
    except _Twice as error:
        raise ValueError(f"has the key {error} twice") from error
    except ValueError as error:  # a number with too many digits
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError('is not an object such as {"prompt": ..., "completion": ...}')
    return record


class _Twice(ValueError):
    """An object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Twice(repr(key))
            seen.add(key)
    return record
