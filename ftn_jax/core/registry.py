"""The entries of the registries of pools, streams and methods, and how one is added."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import Rule


class Kind(NamedTuple):
    """A registered pool, stream or method: what builds it, and the settings that it adds.

    ``defaults`` are the values of settings that a config leaves out: of those that the kind adds, and, of a pool or
    stream, of others that suit it, as "stream.steps". Settings of a pool or stream have their full names; those of a
    method stand in ``config.variants.<name>``.

    Of a stream: ``tasks`` is the setting of ``config.stream`` that lists its tasks, ``names`` gives their names; it
    ``grows`` if earlier tasks stay what they are when others are appended; ``contents`` gives what identifies the data
    that each task is read from: task -> anything that JSON has; ``experiment`` names the experiment in `results.json`,
    or is the setting that does; the stream's name unless given.
    """

    build: Callable[..., Any]
    settings: Mapping[str, Rule]
    grows: bool = False
    tasks: str | None = None
    names: Callable[[Any], tuple[str, ...]] = tuple
    contents: Callable[[Any], dict[str, Any]] = lambda tasks: {}
    defaults: Mapping[str, Any] = {}
    experiment: str = ""


def register(registry: dict[str, Kind], what: str, name: str, entry: Kind) -> None:
    """Adds an entry to a registry; the same code run again, as a cell of a notebook is, replaces its own.

    Raises:
      InputError: the name is taken.
    """
    if name in registry and _places(registry[name].build).isdisjoint(_places(entry.build)):
        raise InputError(f"{what} {name!r} is registered already")
    registry[name] = entry


def _places(build: Callable[..., Any]) -> set[tuple[str, str]]:
    """Where a function stands: its name in its module, and in its file."""
    code = getattr(build, "__code__", None)
    if code is None or code.co_name == "<lambda>":  # two of these may stand side by side
        return set()
    return {(build.__module__, build.__qualname__), (code.co_filename, build.__qualname__)}
