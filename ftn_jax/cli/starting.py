"""Handles Ctrl-C while a command is still importing, which takes seconds; imports nothing of the package itself."""

import os
import signal
import sys


def end_at_once(number: int, frame: object) -> None:
    """A signal handler for a process that has done nothing yet. An exception would get lost in the imports."""
    print(f"ftn_jax: stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    os._exit(128 + number)


def watch() -> None:
    """Makes the first signal end the process while it is importing; `ftn_jax.cli.command.run` replaces this."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_at_once)
