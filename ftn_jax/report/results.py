"""Reads and checks `results.json`: a malformed file gives a one-line error that names the place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ftn_jax.core import metrics
from ftn_jax.core.errors import InputError

# The form of a value: a test and its description; or, for an object, the forms of its keys ("key?" may be missing); or,
# for a list, the form of its entries and optionally their number.
Form = tuple[Callable[[object], bool], str] | dict | list


def load_results(workdir: str | os.PathLike) -> dict:
    """Reads and checks `results.json`.

    Args:
        workdir: folder that holds the file.

    Returns:
        The results, as described in docs/house.md.

    Raises:
        InputError: the file is missing, is not JSON, holds NaN, lacks a key, or has an entry of another form.
    """
    path = Path(workdir) / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"), parse_constant=_reject_constant)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: expected the workdir of a run; set --workdir") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read: {error}") from None
    try:
        _check(results)
    except InputError as error:
        raise InputError(f"{path} is malformed: {error}") from None
    if not results["methods"]:
        raise InputError(f"{path} has no finished method yet: start the run's command again and let it finish")
    return results


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} in place of a number, expected null for an undefined value")


def hold(value: object, form: Form, place: str) -> None:
    """Checks that ``value``, found at ``place``, has the form ``form``.

    Raises:
        InputError: names the place of the first mismatch, what is there and what was expected.
    """
    if isinstance(form, dict):
        if not isinstance(value, dict):
            raise InputError(f"{place or 'the file'} is {_told(value)}, expected an object")
        missing = [key for key in form if not key.endswith("?") and key not in value]
        if missing:
            raise InputError(f"{place or 'the file'} has no key {', '.join(missing)}")
        for key, inner in form.items():
            name, optional = key.removesuffix("?"), key.endswith("?")
            if not optional or name in value:
                hold(value[name], inner, f"{place}.{name}".lstrip("."))
    elif isinstance(form, list):
        entry, *count = form
        if not isinstance(value, list) or (count and len(value) != count[0]):
            raise InputError(f"{place} is {_told(value)}, expected a list{f' of {count[0]}' if count else ''}")
        for index, one in enumerate(value):
            hold(one, entry, f"{place}[{index}]")
    elif not form[0](value):
        raise InputError(f"{place} is {_told(value)}, expected {form[1]}")


def _told(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _integer(value: object, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**53


def _array(value: object) -> np.ndarray:
    """``value`` as f64 of any shape, null as nan; empty if it is not an array of numbers."""
    try:
        return np.asarray(value, float) if isinstance(value, list) and "'" not in repr(value) else np.zeros(0)
    except (TypeError, ValueError):
        return np.zeros(0)


def _numbers(*shape: int) -> Form:
    return lambda value: _array(value).shape == shape, f"numbers of shape {shape}"


def _indices(size: int, *shape: int | None) -> Form:
    """The form of whole numbers below ``size``; None in ``shape`` is any length."""

    def fits(value: object) -> bool:
        found = _array(value)
        alike = found.ndim == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=True))
        return alike and bool((found >= 0).all() and (found < size).all() and (found % 1 == 0).all())

    return fits, f"indices below {size} of shape {shape}".replace("None", "k")


def _lists(size: int, seeds: int, tasks: int) -> Form:
    """The form of a list of different whole numbers below ``size`` for each seed and task."""

    def fits(value: object) -> bool:
        if not isinstance(value, list) or len(value) != seeds:
            return False
        if not all(isinstance(row, list) and len(row) == tasks for row in value):
            return False
        found = [one for row in value for one in row]
        return all(
            isinstance(one, list) and all(_integer(n) and n < size for n in one) and len(set(one)) == len(one)
            for one in found
        )

    return fits, f"indices below {size} of shape ({seeds}, {tasks}, k)"


def _is_spec(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"inputs", "classes", "tokens"}:
        return False
    return _integer(value["inputs"]) and _integer(value["classes"]) and type(value["tokens"]) is bool


_TEXT: Form = (lambda value: isinstance(value, str), "text")
_FLAG: Form = (lambda value: type(value) is bool, "true or false")
_OBJECT: Form = (lambda value: isinstance(value, dict), "an object")
_NUMBER: Form = (lambda value: type(value) in (int, float), "a number")
_NUMBER_OR_NULL: Form = (lambda value: value is None or type(value) in (int, float), "a number or null")
_POSITIVE: Form = (lambda value: _integer(value, 1), "a whole number from 1")
_COUNT: Form = (_integer, "a whole number from 0")
_STAT: Form = {"mean": _NUMBER_OR_NULL, "std": _NUMBER_OR_NULL}
_COST: Form = {
    **dict.fromkeys(("parameters", "bytes", "trained"), _NUMBER),
    "examples_per_second": _NUMBER_OR_NULL,
    "memory": {"bytes": _COUNT, "of": _TEXT, "at_most": _FLAG},
}
BASE_MODEL: Form = (
    lambda value: value is None or (isinstance(value, dict) and {"name", "hash"} <= value.keys()),
    "null, or an object with name and hash",
)
SPEC: Form = (lambda value: value is None or _is_spec(value), "null, or an object with inputs, classes and tokens")
_FILE: Form = {
    "experiment": _TEXT,
    "metric": (lambda value: value in list(metrics.METRICS), f"one of {', '.join(metrics.METRICS)}"),
    "task_names": (
        lambda value: isinstance(value, list) and value and all(isinstance(name, str) for name in value),
        "a list with at least one name",
    ),
    "seeds": (
        lambda value: isinstance(value, list) and value and all(_integer(seed) for seed in value),
        "a list with at least one whole number",
    ),
    "methods": _OBJECT,
    "base_model?": BASE_MODEL,
    "spec?": SPEC,
    "environment?": (lambda value: value is None or isinstance(value, dict), "an object"),
}


def _check(results: object) -> None:
    hold(results, _FILE, "")
    assert isinstance(results, dict)
    seeds, tasks = len(results["seeds"]), len(results["task_names"])
    for key, count in (("facts", seeds), ("task_facts", tasks)):
        facts = results.get(key) or {}
        hold(facts, _OBJECT, key)
        entry = _NUMBER if key == "facts" else (lambda value: True, "")
        hold(facts, {name: [entry, count] for name in facts}, key)
    for name, method in results["methods"].items():
        hold(method, {"size?": _POSITIVE, "wandering?": {"steps": [_COUNT]}}, f"methods.{name}")
        hold(method, _method(method, seeds, tasks), f"methods.{name}")


def _method(method: dict, seeds: int, tasks: int) -> Form:
    """The form of a method's entry. Older versions wrote only some keys, but all keys about masks or none of them."""
    size, wandering = method.get("size") or 0, method.get("wandering") or {"steps": []}
    square = _numbers(seeds, tasks, tasks)
    block = dict.fromkeys(("final", "fm", "fm_rise", "bwt"), _STAT)
    block |= {"matrix": square, "exact_match?": {"final": _STAT}, "fwt?": _STAT, "anytime?": _STAT}
    counts = dict.fromkeys(("missed", "false_alarms", "masks", "tasks", "right", "wrong"), _COUNT)
    later = [_numbers(3)[0]] * (tasks - 1)
    shares = (
        lambda value: (
            isinstance(value, list)
            and len(value) == tasks
            and all(fits(one) for fits, one in zip((lambda one: one is None, *later), value, strict=True))
        ),
        "null for the first task and three numbers for each other",
    )
    each = _lists(size, seeds, tasks)
    masks = {"size": _POSITIVE, "k": _COUNT, "masks": each, "overlap": square}
    if method.get("reuses") is not None:
        masks |= {"answering": each, "reuses": _lists(tasks, seeds, tasks)}
    told = any(method.get(key) is not None for key in ("masks", "overlap", "wandering"))
    return {
        **{f"{protocol}?": block for protocol in metrics.PROTOCOLS},
        **(masks if told else {}),
        "grid?": (
            lambda value: value is None or (_integer(value, 1) and value**2 == size),
            "the side of the pool's grid",
        ),
        "oracle?": _FLAG,
        "untrained?": (
            lambda value: value is None or _numbers(seeds, tasks)[0](value),
            f"null, or numbers of shape {seeds, tasks}",
        ),
        "cost?": _COST,
        "imported?": (
            lambda value: isinstance(value, dict) and all(map(_indices(size, seeds, None)[0], value.values())),
            "an object with indices for each adapter",
        ),
        "seconds?": {"compile": _NUMBER, "run": _NUMBER},
        "samples?": [dict.fromkeys(("task", "prompt", "target", "output"), _TEXT)],
        "boundaries?": [{**counts, "delays": [_COUNT]}, seeds],
        "wandering?": {
            "more_than": [_COUNT, 3],
            "touched": _numbers(seeds, tasks, 3),
            "earlier": [shares, seeds],
            "steps": [_COUNT],
            "path": [_indices(size, len(wandering["steps"]), None), tasks],
        },
    }
