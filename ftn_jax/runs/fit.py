"""Trains tasks from Python, with no file of one's own: pairs, records, or rows of a table, one task after another."""

import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import rich.console
from ml_collections import ConfigDict

from ftn_jax.core.elsewhere import what_is_known
from ftn_jax.core.errors import InputError, writing
from ftn_jax.core.files import whole
from ftn_jax.core.rules import flatten
from ftn_jax.runs.build import fill_in
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.load import load
from ftn_jax.runs.trained_language import LanguageModel
from ftn_jax.runs.workdir import read_results
from ftn_jax.streams.files import task_names
from ftn_jax.streams.text.pairs import texts_of
from ftn_jax.streams.text.records import line_of

_NEW = {"methods": ("lora_ftn_reserve",), "stream": {"name": "jsonl", "files": ()}, "pool": {"name": "lora"}}
_NAME = re.compile(r"[^\W_][\w.+-]{0,99}")  # a file's name on every system


def fit(
    tasks: Mapping[str, Any],
    *,
    workdir: str | os.PathLike,
    base: str | None = None,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> LanguageModel:
    """Trains a stream of tasks in a workdir, as the command line does with a file for each, and loads the model.

    A workdir that holds tasks already goes on: new names are trained after them, and nothing else is trained again. An
    interrupted call goes on in the same way. The workdir has all that a run writes, and the tasks in its folder tasks.

    Args:
      tasks: name -> the task's examples, in the order of training: pairs (prompt, completion), records as in a task's
        file, anything that can be iterated over and gives such records (as a `datasets.Dataset` does), or the path of a
        JSONL file. "NAME#2" trains the task NAME further on its own components, for as many steps, with these examples
        beside its earlier ones; None adds no examples.
      workdir: the run's folder.
      base: as ``config.base``; None: that of the workdir, or "auto" for a new one.
      method: the name of a method; None: that of the workdir, or "lora_ftn_reserve" for a new one.
      settings: other settings of the config by full name, such as {"stream.steps": 100}; see docs/settings.md.
      progress: whether progress and the main table are shown.
      stop: as in `ftn_jax.train_and_evaluate`.
      on_event: as there.

    Returns:
      The model of the run's first seed.

    Raises:
      InputError: tasks that can't be read, a task that the workdir holds with other examples, a setting that does not
        exist or can't work, or settings that are not those of the workdir.
      Interrupted: ``stop`` returned True; the same call goes on.
    """
    workdir = pathlib.Path(workdir)
    if not isinstance(tasks, Mapping) or not tasks:
        raise InputError(f"tasks are {type(tasks).__name__} {tasks!r:.40}, expected a mapping from names to examples")
    begun = (workdir / "results.json").exists()
    config = ConfigDict(read_results(workdir)["config"]) if begun else ConfigDict(_NEW)
    if config.stream.name != "jsonl":
        raise InputError(f"workdir {workdir} holds a stream of {config.stream.name!r}, expected one of files")
    known = dict(zip(task_names(config.stream.files), config.stream.files, strict=True)) if begun else {}
    folder = workdir.absolute() / "tasks"
    files = dict(known)
    for name, examples in tasks.items():
        further = isinstance(name, str) and "#" in name
        files[name] = _further(name, examples, files, folder) if further else _file(name, examples, files, folder)
    every = tuple(files.values())
    given = {"base": base, "methods": None if method is None else (method,), "stream.files": every}
    _set(config, {name: value for name, value in given.items() if value is not None} | dict(settings or {}))
    console = rich.console.Console() if progress else None
    train_and_evaluate(config, workdir, console=console, stop=stop, on_event=on_event)
    model = load(workdir)
    assert isinstance(model, LanguageModel)  # the pool of a stream of text
    return model


def _set(config: ConfigDict, settings: Mapping[str, Any]) -> None:
    """Sets settings by full name.

    Raises:
      InputError: a setting that does not exist.
    """
    fill_in(config, config.methods)
    known = flatten(config)
    for name in settings:
        if f"config.{name}" not in known:
            raise InputError(f"settings: {name!r} is not a setting, {what_is_known(f'config.{name}', sorted(known))}")
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(dict(settings))


def _file(name: Any, examples: Any, others: Mapping[str, str], folder: pathlib.Path) -> str:
    """A task's file; examples in memory are written to one in ``folder``, unless they are there.

    Raises:
      InputError: a name that no file can have, examples that can't be read, or others than the workdir has.
    """
    known = others.get(name)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"task {name!r}: expected a name of letters, digits, _, ., + and -, that begins with a letter")
    if isinstance(examples, str | os.PathLike):
        file = pathlib.Path(examples).absolute()
        if file.stem != name:
            raise InputError(
                f"task {name!r} is in {examples}, expected a file of the task's name: name it {file.stem!r}"
            )
        if known is not None and pathlib.Path(known).absolute() != file:
            raise InputError(f"task {name!r} was trained from {known}, expected that file, or another name")
        return known or str(file)
    content = _content(name, examples)
    file = pathlib.Path(known) if known else folder / f"{name}.jsonl"
    grown = any(other.startswith(f"{name}#") for other in others)
    with writing(file):
        if not file.exists():
            _write(file, content)
        elif not (file.read_bytes().startswith(content) if grown else file.read_bytes() == content):
            raise InputError(
                f"task {name!r} has other examples in {file}: give it another name, name another workdir, or train it "
                f"further with more examples as {name + '#2'!r}"
            )
    return str(file)


def _further(name: str, examples: Any, known: Mapping[str, str], folder: pathlib.Path) -> str:
    """The entry FILE#n of a task that is trained further; new examples are appended to its file.

    Raises:
      InputError: there is no such task, its file is the user's own, or the examples can't be read.
    """
    task, _, number = name.partition("#")
    if task not in known or not re.fullmatch(r"[2-9]|[1-9][0-9]+", number):
        named = ", ".join(known) or "-"
        raise InputError(f"task {name!r}: expected the name of an earlier task and #2, #3, ...; earlier: {named}")
    file = pathlib.Path(known[task])
    if examples is not None:
        if file.parent != folder:
            raise InputError(
                f"task {name!r} has its examples in your file {file}: add the new ones there, and give None"
            )
        content = _content(name, examples)
        with writing(file):
            before = file.read_bytes()
            if name in known and content not in before:
                raise InputError(f"task {name!r} was trained with other examples, expected these, or a higher number")
            if content not in before:
                _write(file, before + content)
    return f"{file}#{number}"


def _write(file: pathlib.Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as partial:
        partial.write_bytes(content)


def _content(name: str, examples: Any) -> bytes:
    """The lines of a task's examples.

    Raises:
      InputError: they can't be read.
    """
    try:
        texts = texts_of(examples)
    except InputError as error:
        raise InputError(f"task {name!r}: {error}") from error
    return b"".join(line_of(text) + b"\n" for text in texts)
