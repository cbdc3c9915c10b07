"""Files that are written whole: a reader sees the old one or the new one, however the writer ends."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from ftn_jax.core.errors import writing


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A place beside ``path`` to write to, which takes its place at the end; nothing is left where that fails.

    Raises:
      InputError: it can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    with writing(path):
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
