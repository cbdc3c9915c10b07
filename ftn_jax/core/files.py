"""Atomic writing: a reader sees the old file or folder or the new one, even if the writer is killed."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from ftn_jax.core.errors import writing


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside ``path``, which replaces it at the end of the block; after a failure it is removed.

    Raises:
      InputError: the file can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    with writing(path):
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder beside ``path``, which replaces it at the end of the block; after a failure it is removed.

    Raises:
      OSError: the folder can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
