"""Checks pairs and prompts that a user hands in, and turns them into one form."""

from collections.abc import Mapping, Sequence
from typing import Any

from ftn_jax.core.errors import InputError
from ftn_jax.models.chat import Chat
from ftn_jax.models.tokens import Text
from ftn_jax.streams.text.records import prompt_of, string, text_of

_EXAMPLES = "(prompt, completion) or a record with prompt and completion, text, or messages"


def texts_of(examples: Any) -> list[Text]:
    """Examples as pairs and conversations; they may be pairs, records as in a task's file, or a single one of these.

    Raises:
      InputError: there are no examples, or one is of another kind; the message names its number.
    """
    if isinstance(examples, Mapping) or _is_pair(examples):
        examples = [examples]
    found = [_one(i, example, _pair, _EXAMPLES) for i, example in enumerate(_items(examples, "examples"))]
    if not found:
        raise InputError("no examples are given, expected at least one")
    return found


def prompts_of(prompts: Any) -> list[str | Chat]:
    """Prompts as texts and conversations.

    They may be texts, records with a prompt or messages, lists of messages, or a single one of these.

    Raises:
      InputError: there are no prompts, or one is of another kind; the message names its number.
    """
    if isinstance(prompts, str | Mapping) or _is_conversation(prompts):
        prompts = [prompts]
    expected = "a text, a record with a prompt or messages, or a list of messages"
    found = [_one(i, prompt, _prompt, expected) for i, prompt in enumerate(_items(prompts, "prompts"))]
    if not found:
        raise InputError("no prompts are given, expected at least one")
    return found


def _items(given: Any, what: str) -> list[Any]:
    if isinstance(given, str | bytes) or not hasattr(given, "__iter__"):
        raise InputError(f"{what} are {type(given).__name__}, expected a list")
    return list(given)


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(text, str) for text in given)


def _is_conversation(given: Any) -> bool:
    return (
        isinstance(given, list | tuple) and bool(given) and all(isinstance(m, Mapping) and "role" in m for m in given)
    )


def _one(i: int, given: Any, read: Any, expected: str) -> Any:
    try:
        return read(given)
    except (ValueError, TypeError) as error:
        hint = "" if "expected" in str(error) else f", expected {expected}"
        raise InputError(f"item {i} {error}{hint}") from error


def _pair(given: Any) -> Text:
    if isinstance(given, Chat):
        return given
    if isinstance(given, Mapping):
        return text_of(given)
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
        raise TypeError(f"is {shown(given)}")
    prompt, completion = map(_text, given)
    return prompt, completion


def _prompt(given: Any) -> str | Chat:
    if _is_conversation(given):
        return prompt_of({"messages": given})
    if isinstance(given, Chat):
        return given
    return prompt_of(given) if isinstance(given, Mapping) else _text(given)


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise TypeError(f"has {shown(given)} in place of a text")
    return string({"text": given}, "text")


def shown(given: Any) -> str:
    """A value for a message: its type and its repr, cut after 60 characters."""
    text = " ".join(repr(given).split())
    return f"{type(given).__name__} {text if len(text) < 60 else text[:57] + '...'}"
