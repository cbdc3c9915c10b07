"""Ctrl-C while a command imports what it needs, which takes seconds; imports nothing itself."""

import os
import signal
import sys


def end_at_once(number: int, frame: object) -> None:
    """A handler of signals for a process that has done nothing yet. An exception would get lost in what is imported."""
    print(f"ftn_jax: stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    os._exit(128 + number)


def watch() -> None:
    """Has the first signal end a process that is still importing; `ftn_jax.cli.command.run` then takes over."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_at_once)
