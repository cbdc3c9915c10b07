"""Ctrl-C while a command imports what it needs, which takes seconds; imports nothing itself."""

import sys
from types import TracebackType


def say_stopped(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A `sys.excepthook` for which an interrupted import is no fault."""
    if issubclass(kind, KeyboardInterrupt):
        print("ftn_jax: stopped by SIGINT", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
