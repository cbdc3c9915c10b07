"""SIGTERM and Ctrl-C: as a flag that a run checks between its steps, or as an exception that ends a command."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

_GRACE = 9.0  # seconds that a run has to save its state
_INTERRUPTED_GRACE = 1.0  # seconds that a command that saves nothing has to clean up


@contextlib.contextmanager
def asked_to_stop(
    farewell: Callable[[int, bool], str], *, interrupt: bool = False
) -> Iterator[Callable[[], int | None]]:
    """A context manager that yields a function: the number of the first SIGINT or SIGTERM, or None before one came.

    With ``interrupt``, the first signal also raises KeyboardInterrupt, and a second one ends the process at once. If
    the process has not left the context ``_GRACE`` seconds after a signal (``_INTERRUPTED_GRACE`` with ``interrupt``),
    because of a long step or compilation or because a library has swallowed the exception, it prints
    ``farewell(number, True)`` and ends with code 128 + number. Must be entered from the main thread.
    """
    asked: list[int] = []
    left = threading.Event()
    grace = _INTERRUPTED_GRACE if interrupt else _GRACE
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    # Python runs handlers only between its own instructions; the byte arrives at once, even during a compilation.
    def watch():
        signals = os.read(reader, 1)
        if signals:
            asked.append(signals[0])
            if not left.wait(grace):
                print(farewell(asked[0], True), file=sys.stderr, flush=True)
                os._exit(128 + asked[0])
        os.close(reader)  # only now: without a reader, Python would report an error at a second signal

    def handle(number: int, frame: object) -> None:
        if interrupt:
            asked.append(number)
            for each in handlers:
                signal.signal(each, signal.SIG_DFL)
            raise KeyboardInterrupt

    handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM))
    earlier = {number: signal.signal(number, handle) for number in handlers}
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield lambda: asked[0] if asked else None
    finally:
        signal.set_wakeup_fd(woken)
        left.set()
        if not (interrupt and asked):
            for number, handler in earlier.items():
                signal.signal(number, handler)
        os.close(writer)
