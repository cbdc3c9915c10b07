"""The entries of the registries of pools, streams and methods, and a function that adds one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import Rule


class Kind(NamedTuple):
    """A registered pool, stream or method: the function that builds it, and the settings that it adds.

    ``defaults`` holds values for settings that a config leaves out: the settings that the kind adds and, for a pool or
    stream, others that suit it, such as "stream.steps"; those of a stream come before those of its pool. The settings
    of a pool or stream are given by full name; those of a method belong to ``config.variants.<name>``.

    The other fields are for streams. ``tasks`` is the setting of ``config.stream`` that lists the tasks, and ``names``
    turns its value into their names. ``grows`` says whether earlier tasks stay the same when others are appended.
    ``contents`` identifies the data of each task: it maps each task to any JSON value. ``experiment`` is the
    experiment's name in `results.json`, or the setting that has it; by default it is the stream's name.
    ``listing`` names settings of ``config.stream`` that only help to list the tasks; ``listed`` takes these and
    ``tasks``, and returns those that change when each task is listed: a folder becomes its files.
    """

    build: Callable[..., Any]
    settings: Mapping[str, Rule]
    grows: bool = False
    tasks: str | None = None
    names: Callable[[Any], tuple[str, ...]] = tuple
    contents: Callable[[Any], dict[str, Any]] = lambda tasks: {}
    defaults: Mapping[str, Any] = {}
    experiment: str = ""
    listing: tuple[str, ...] = ()
    listed: Callable[..., dict[str, Any]] = lambda **settings: {}


def register(registry: dict[str, Kind], what: str, name: str, entry: Kind) -> None:
    """Adds an entry to a registry. Running the same code again, as in a notebook, replaces the entry.

    Raises:
      InputError: the name is taken by other code.
    """
    if name in registry and _places(registry[name].build).isdisjoint(_places(entry.build)):
        raise InputError(f"{what} {name!r} is registered already")
    registry[name] = entry


def _places(build: Callable[..., Any]) -> set[tuple[str, str]]:
    """Where a function is defined: its module and its file, each with its qualified name."""
    code = getattr(build, "__code__", None)
    if code is None or code.co_name == "<lambda>":  # two lambdas of one module have the same name
        return set()
    return {(build.__module__, build.__qualname__), (code.co_filename, build.__qualname__)}
