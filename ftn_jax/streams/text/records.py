"""Records of text: ``{"prompt": ..., "completion": ...}`` (TRL's names) or ``{"text": ...}``, as JSON or mappings."""

import json
from collections.abc import Mapping
from typing import Any

from ftn_jax.models.tokens import Pair

_PAIR = "prompt and completion, or text"


def pair_of(record: Mapping[str, Any]) -> Pair:
    """A record's prompt and completion; the prompt of a text is empty. A field that is null counts as missing.

    Raises:
      ValueError: says what is wrong with the record.
    """
    if record.get("text") is not None:
        for other in ("prompt", "completion"):
            if record.get(other) is not None:
                raise ValueError(f"has text and {other}, expected prompt and completion, or text alone")
        prompt, scored = "", "text"
    else:
        prompt, scored = string(record, "prompt"), "completion"
    completion = string(record, scored)
    if not completion:
        raise ValueError(f"{scored} is empty")
    return prompt, completion


def line_of(pair: Pair) -> bytes:
    """The line of a pair in memory, without its end: what is hashed to choose its split, and what a file gets."""
    prompt, completion = pair
    return json.dumps({"prompt": prompt, "completion": completion}).encode()


def prompt_of(record: Mapping[str, Any]) -> str:
    """The prompt of a record, which may also have a completion.

    Raises:
      ValueError: says what is wrong with the record.
    """
    return string(record, "prompt", "a prompt")


def string(record: Mapping[str, Any], field: str, expected: str = _PAIR) -> str:
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
