"""Functions that streams of files share: tasks are named after their files, and examples are split by their hash."""

import hashlib
import os
import pathlib
import random
import re
import stat
from collections.abc import Sequence
from typing import Any, NamedTuple

from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import TEXT, Rule

_AGAIN = re.compile(r"(.+)#(?:[2-9]|[1-9][0-9]+)")
SPLITS = ("train", "recovery", "test", "validation")
NEEDED = SPLITS[:3]
"""The splits of which every task has examples."""


class Shares(NamedTuple):
    """The shares of the splits; the rest of the examples is trained on."""

    recovery: float
    test: float
    validation: float = 0.0


OWN = "your own files"
"""The default of ``config.stream.source``."""


def _is_draw(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(type(number) is int and 0 <= number < 2**31 for number in value)
        and (value[0] > 0 or value[1] == 0)  # without a draw a seed has no effect
    )


LISTING: dict[str, Rule] = {
    "stream.drawn": (_is_draw, "a tuple (number of tasks, seed of their order); (0, 0) takes all in the given order"),
    "stream.source": (TEXT[0], "a text"),
}
"""The settings that say, beside ``config.stream.files``, which files are the tasks of a stream; see `listed`."""


def listed(*, files: Sequence[str], drawn: Sequence[int], source: str) -> dict[str, Any]:
    """The settings "files" and "drawn" of a stream with each task's file listed, in the order of training.

    Args:
      files: one file for each task; or a single folder, for all its files that end in .jsonl, in alphabetical order.
      drawn: (number of tasks, seed): so many of these, in an order drawn with the seed; with 0 tasks all, as they are.
      source: where the files can be had; for the message.

    Raises:
      InputError: a folder that does not exist or has no such file, or more tasks to be drawn than there are.
    """
    found = tuple(files)
    if len(found) == 1 and os.path.isdir(found[0]):
        found = tuple(sorted(str(path) for path in pathlib.Path(found[0]).glob("*.jsonl")))
    if not found or (len(found) == 1 and not found[0].endswith(".jsonl") and not os.path.exists(found[0])):
        what = f"folder {files[0]!r} has no .jsonl file" if not found else f"there is no file or folder {files[0]!r}"
        where = "" if source == OWN else f" ({source})"
        raise InputError(f"config.stream.files: {what}, expected a folder of .jsonl files, or a tuple of files{where}")
    count, seed = drawn
    if count > len(found):
        raise InputError(
            f"config.stream.drawn is {tuple(drawn)}, expected at most the {len(found)} tasks that there are"
        )
    return {"files": tuple(random.Random(seed).sample(found, count)) if count else found, "drawn": (0, 0)}


def earlier_of(files: Sequence[str]) -> list[int | None]:
    """For each entry FILE#n of ``config.stream.files`` the number of the entry FILE, whose task it trains further.

    None for a file of its own: there is no FILE before it.
    """
    plain = [_AGAIN.fullmatch(file) for file in files]
    found = [files.index(match[1]) if match and match[1] in files else None for match in plain]
    return [None if at is None or at > i else at for i, at in enumerate(found)]


def paths_of(files: Sequence[str]) -> list[str]:
    """The path of each entry of ``config.stream.files``; that of FILE#n is FILE (see `earlier_of`)."""
    return [file if at is None else files[at] for file, at in zip(files, earlier_of(files), strict=True)]


def blocks_of(files: Sequence[str]) -> dict[str, Any]:
    """What a stream says of blocks that train an earlier task further; nothing where each file is a task of its own."""
    earlier, names = earlier_of(files), task_names(files)
    if not any(at is not None for at in earlier):
        return {}
    return {
        "continues": earlier,
        "returns": [n if at is None else names[at] for n, at in zip(names, earlier, strict=True)],
    }


def task_names(files: Sequence[str]) -> tuple[str, ...]:
    """The tasks' names: those of the files, without folder and suffix; FILE#n has the name of FILE with #n.

    Raises:
      InputError: two files have the same name.
    """
    again = [file.rpartition("#")[2] for file in files]
    names = tuple(
        pathlib.Path(path).stem + ("" if path == file else f"#{number}")
        for file, path, number in zip(files, paths_of(files), again, strict=True)
    )
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"config.stream.files: two are named {name!r}, expected different names")
    return names


def contents(files: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The size in bytes and a hash of each task's file.

    Raises:
      InputError: a file can't be read.
    """
    found = {}
    for name, file in zip(task_names(files), paths_of(files), strict=True):
        digest, size = hashlib.blake2b(digest_size=16), 0
        try:
            check_regular(file)
            with open(file, "rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
                    size += len(block)
        except OSError as error:
            raise InputError(f"config.stream.files: {file} can't be read ({error.strerror or error})") from error
        found[name] = {"bytes": size, "hash": digest.hexdigest()}
    return found


def check_regular(file: str | os.PathLike) -> None:
    """Raises InputError for a file that can't be read, or can't be read repeatedly, such as a pipe."""
    try:
        regular = stat.S_ISREG(os.stat(file).st_mode)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"config.stream.files: {file} can't be read ({reason})") from error
    if not regular:
        raise InputError(f"config.stream.files: {file} is not a regular file, expected one that can be read repeatedly")


def check_shares(shares: Shares) -> None:
    """Raises InputError if the shares leave nothing to train on."""
    if sum(shares) >= 1:
        names = " + ".join(f"config.stream.{name}" for name, share in shares._asdict().items() if share)
        raise InputError(f"{names} is {sum(shares)}, expected less than 1")


def split_of(line: bytes, shares: Shares) -> str:
    """The split of a line or row: a function of its bytes only, so that adding others does not move it."""
    place = int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "big") / 2**64
    end = 0.0
    for name in ("test", "recovery", "validation"):  # the last takes its share from the examples that are trained on
        end += getattr(shares, name)
        if place < end:
            return name
    return "train"
