"""Functions that streams of files share: tasks are named after their files, and examples are split by their hash."""

import hashlib
import os
import pathlib
import stat
from collections.abc import Sequence
from typing import Any

from ftn_jax.core.errors import InputError

SPLITS = ("train", "recovery", "test")


def task_names(files: Sequence[str]) -> tuple[str, ...]:
    """The tasks' names: those of the files, without folder and suffix.

    Raises:
      InputError: two files have the same name.
    """
    names = tuple(pathlib.Path(file).stem for file in files)
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
    for name, file in zip(task_names(files), files, strict=True):
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


def check_shares(recovery: float, test: float) -> None:
    """Raises InputError if the shares leave nothing to train on."""
    if recovery + test >= 1:
        raise InputError(f"config.stream.recovery + config.stream.test is {recovery + test}, expected less than 1")


def split_of(line: bytes, recovery: float, test: float) -> str:
    """The split of a line or row: a function of its bytes only, so that adding others does not move it."""
    share = int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "big") / 2**64
    return "test" if share < test else "recovery" if share < test + recovery else "train"
