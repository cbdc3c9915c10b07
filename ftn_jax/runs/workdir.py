"""A run's folder and its `results.json`: opens it, checks it against the config, writes it atomically."""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from ftn_jax.core.errors import InputError
from ftn_jax.core.files import whole
from ftn_jax.core.mesh import AXES
from ftn_jax.core.rules import Config, flatten
from ftn_jax.models.pretrained import hash_at
from ftn_jax.report.results import BASE_MODEL, SPEC, Form, hold
from ftn_jax.runs.build import Problem, describe, experiment_of, fill_in, seeds_of, tasks_of
from ftn_jax.streams import STREAMS

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "transformers", "numpy")
_LOCK = ".lock"
FORMAT = 2
"""The format version of a workdir, in its `results.json`. Older folders have no number, and are read too."""

_OTHERWISE = "name another --workdir, or add --fresh to set this one aside"


@contextlib.contextmanager
def lock(workdir: pathlib.Path, *, fresh: bool = False) -> Iterator[None]:
    """Creates a workdir and locks other runs out of it; ``fresh`` sets aside what it holds.

    The system releases the lock when the process ends, however it ends.

    Raises:
      InputError: another run is using the workdir, or it can't be written.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_lock(workdir))
            if fresh and any(path.name != _LOCK for path in workdir.iterdir()):
                _set_aside(workdir)
                held.enter_context(_lock(workdir))
        except OSError as error:
            raise InputError(f"workdir {workdir} can't be used ({error}): name another --workdir") from error
        yield


def _lock(workdir: pathlib.Path) -> TextIO:
    """The lock file, locked while it is open. (The package filelock empties the file, so can't name the owner.)"""
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / _LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            owner = file.read() or "another run"
        raise InputError(f"workdir {workdir} is in use by {owner}: wait for it, or name another --workdir") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file


def open_results(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """The results that the workdir holds for this config; if it has none, writes and returns some without methods.

    A workdir without a finished method or a checkpoint belongs to no config yet.

    Raises:
      InputError: the workdir belongs to another config, or can't be read or written.
    """
    try:
        held = _read(workdir)
    except OSError as error:
        raise InputError(f"workdir {workdir} can't be used ({error}): name another --workdir") from error
    if held:
        kind, names = STREAMS[config.stream.name], list(tasks_of(config))
        trained = {*held["methods"], *(folder.name for folder in workdir.glob("checkpoints/*"))}
        older = {"supsup", "supsup_wide"} & trained
        if older and "proposal" not in held["config"]["configurer"]:
            raise InputError(
                f"workdir {workdir} has {' and '.join(sorted(older))} of an older version, with masks over weights; "
                f"these methods are now called supsup_weights and supsup_weights_wide: {_OTHERWISE}"
            )
        longer = kind.tasks if kind.grows else None
        _compare(held["config"], _plain(config), workdir, tasks=longer, trained=trained, pinned=held["base_model"])
        if len(names) > len(held["task_names"]):
            # The methods continue from their checkpoints.
            held |= {"task_names": names, "methods": {}}
        return held
    results = {
        "format": FORMAT,
        "experiment": experiment_of(config),
        "base_model": None,
        "config": None,
        "environment": _environment(),
        "task_names": list(tasks_of(config)),
        "metric": None,
        "seeds": list(seeds_of(config)),
        "facts": {},
        "task_facts": {},
        "contents": {},
        "methods": {},
    }
    save_results(results, config, workdir)
    return results


def read_results(workdir: pathlib.Path) -> dict[str, Any]:
    """The results of a workdir in which a method has finished or saved a checkpoint.

    Raises:
      InputError: there is no such workdir, or its results can't be read.
    """
    held = _read(workdir) if workdir.is_dir() else None
    if not held:
        raise InputError(f"{workdir} holds no run that has saved anything: expected the workdir of ftn_jax.main")
    held["config"] = _whole(held["config"])
    return held


def _read(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The workdir's results; None if no method has finished or saved a checkpoint."""
    path = workdir / "results.json"
    if not path.exists():
        for foreign in ("metrics.csv", "tensorboard"):
            if (workdir / foreign).exists():
                raise InputError(f"workdir {workdir} holds {foreign} but no results.json: {_OTHERWISE}")
        return None
    try:
        held = json.loads(path.read_text())
        missing = {"config", "methods", "base_model", "task_names"} - held.keys()
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}): {_OTHERWISE}") from error
    if missing:
        raise InputError(f"{path} has no {', '.join(sorted(missing))}: {_OTHERWISE}")
    try:
        hold(held, _HELD, "")
    except InputError as error:
        raise InputError(f"{path} is damaged ({error}): {_OTHERWISE}") from error
    if held.get("format", 0) not in range(FORMAT + 1):
        raise InputError(
            f"{path} has format {held['format']!r}, expected at most {FORMAT}: a later version of ftn_jax wrote it: "
            f"use that version, {_OTHERWISE}"
        )
    begun = any((workdir / "checkpoints").glob("*/[0-9]*"))
    return _upgraded(held) if held["methods"] or begun else None


def _is_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _is_seeds(value: object) -> bool:
    return (type(value) is int and value > 0) or (isinstance(value, list) and bool(value))


_OBJECT: Form = (lambda value: isinstance(value, dict), "an object")
_NAMES: Form = (_is_names, "a list of names")
_HELD: Form = {
    "methods": _OBJECT,
    "task_names": _NAMES,
    "base_model": BASE_MODEL,
    "spec?": SPEC,
    "config": {
        **dict.fromkeys(("pool", "stream", "configurer", "variants"), _OBJECT),
        "methods": _NAMES,
        "seeds": (_is_seeds, "a count or a list"),
    },
}
"""The form that a workdir's results must have for a run to continue from them; the report requires more."""


def _upgraded(held: dict[str, Any]) -> dict[str, Any]:
    """Results that an older version wrote, converted to this version's format."""
    config, written = held["config"], held.get("format", 0)
    if written < 1 and config["pool"].get("modules") == [r"attn\.c_attn"]:
        config["pool"]["modules"] = ["qkv"]  # the same modules: every base was a GPT-2
    if written < 2:
        experiment, kind = config.pop("experiment", None), STREAMS.get(str(config["stream"].get("name")))
        if kind and kind.experiment in kind.settings:
            config["stream"].setdefault(kind.experiment.removeprefix("stream."), experiment)
    config.setdefault("optimizer", {}).setdefault("max_grad_norm", 0.0)  # there was no such setting, nor a limit
    return held | {"format": FORMAT}


def save_results(results: dict[str, Any], config: Config, workdir: pathlib.Path) -> None:
    """Writes `results.json` atomically: a reader sees the old file or the new one.

    Methods are in the config's order, followed by those that only an earlier config of this workdir asked for.

    Raises:
      InputError: the file can't be written.
    """
    done = results["methods"]
    order = dict.fromkeys(name for name in (*config.methods, *done) if name in done)
    results |= {"config": _plain(config), "methods": {name: done[name] for name in order}}
    with whole(workdir / "results.json") as file:
        file.write_text(json.dumps(results, allow_nan=False) + "\n")


def changes(results: dict[str, Any], contents: Mapping[str, Any], workdir: pathlib.Path) -> list[str]:
    """A warning for each task whose data have changed since the workdir's runs read them."""
    held = results.get("contents", {})
    return [
        f"{task}: its data have changed since a run in workdir {workdir} read them; methods and tasks that are trained "
        "already keep their results, and those still to be trained use the new data; to train the task further on "
        "them, add its file once more as FILE#2; to train all anew, name another --workdir or add --fresh"
        for task, content in contents.items()
        if task in held and held[task] != content
    ]


def pin_problem(results: dict[str, Any], problem: Problem, workdir: pathlib.Path) -> None:
    """Records the resolved base and the facts of the stream in ``results``.

    Raises:
      InputError: the workdir was begun with another base.
    """
    base, pinned = describe(problem.base), results["base_model"]
    if pinned is not None:
        for key in ("hash", "chat_template"):
            if base is None or pinned.get(key) != base.get(key):
                raise InputError(f"workdir {workdir} was begun with base {pinned}, it is now {base}: {_OTHERWISE}")
    stream = problem.stream
    results |= {"base_model": base, "metric": stream.metric, "facts": {k: list(v) for k, v in stream.facts.items()}}
    results["spec"] = stream.spec and stream.spec._asdict()
    results["task_facts"] = {k: list(v) for k, v in stream.task_facts.items()}


def _set_aside(workdir: pathlib.Path) -> None:
    number = 1
    while (aside := workdir.with_name(f"{workdir.name}.{number}")).exists():
        number += 1
    workdir.rename(aside)
    (aside / _LOCK).unlink()
    logging.getLogger("ftn_jax").info(f"what {workdir} held is now in {aside}")


def _compare(
    held: dict, asked: dict, workdir: pathlib.Path, *, tasks: str | None, trained: set[str], pinned: dict | None
) -> None:
    """Raises InputError unless a run of config ``asked`` can continue a run of config ``held``.

    The configs may differ in the methods, the devices, how often checkpoints are saved, the variants of methods that
    are not ``trained`` yet, the place of the base if its weights are those ``pinned``, and tasks that are appended to
    the setting ``tasks`` of config.stream.
    """
    named = {*held["methods"], *asked["methods"]}
    before, now = flatten(_whole(held, named)), flatten(_whole(asked, named))
    free = ["config.methods", "config.checkpoint.every_steps", *(f"config.mesh.{axis}" for axis in AXES)]
    listed = f"config.stream.{tasks}"
    if tasks and now.get(listed, [])[: len(before.get(listed, []))] == before.get(listed, []):
        free.append(listed)
    fixed = trained | {held["variants"].get(name, {}).get("method") for name in trained}
    base = now.get("config.base")
    if base != before.get("config.base") and pinned and base and hash_at(base) == pinned["hash"]:
        free.append("config.base")  # the base has moved
    free += [key for key in before | now if key.startswith("config.variants.") and key.split(".")[2] not in fixed]
    differing = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key not in free]
    if differing:
        listed = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in differing)
        raise InputError(f"workdir {workdir} belongs to another config ({listed}): {_OTHERWISE}")


def _plain(config: Config) -> dict:
    """The config as it is after writing it to JSON and reading it again."""
    return json.loads(json.dumps(config.to_dict()))


def _whole(held: dict, methods: Iterable[str] = ()) -> dict:
    """The config of a workdir, with defaults for the settings that it lacks, including those of ``methods``."""
    return _plain(fill_in(ConfigDict(held), methods))


def _environment() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "cores": os.cpu_count(),
        "git_commit": _git_commit(pathlib.Path(__file__).parents[2]),
    }


def _git_commit(root: pathlib.Path) -> str | None:
    """The commit of the repository at ``root``; None if the package does not run from a checkout."""
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
