"""SIGTERM and Ctrl-C: as a question that a run asks between its steps, or as an exception."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_GRACE = 9.0  # seconds that a run has to save where it stands


@contextlib.contextmanager
def asked_to_stop(farewell: Callable[[int], str]) -> Iterator[Callable[[], int | None]]:
    """Within it the first SIGINT or SIGTERM only makes the function that it gives return the signal's number.

    A process that has not left it ``_GRACE`` seconds later, in the midst of a long step or compilation, prints
    ``farewell`` of the signal and ends with 128 + the signal. To be entered from the main thread.
    """
    asked: list[int] = []
    left = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    # Python runs handlers between its own instructions; the byte comes at once, compilation or not.
    def watch():
        signals = os.read(reader, 1)
        os.close(reader)
        if signals:
            asked.append(signals[0])
            if not left.wait(_GRACE):
                print(farewell(asked[0]), file=sys.stderr, flush=True)
                os._exit(128 + asked[0])

    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    earlier = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield lambda: asked[0] if asked else None
    finally:
        left.set()
        signal.set_wakeup_fd(earlier)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writer)


@contextlib.contextmanager
def raised() -> Iterator[Callable[[], int | None]]:
    """Within it the first SIGINT or SIGTERM raises KeyboardInterrupt, a second one ends the process.

    It gives a function that says the number of the signal. To be entered from the main thread.
    """
    asked: list[int] = []
    handlers: dict[int, Any] = {}

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        for each in handlers:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    handlers |= {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked[0] if asked else None
    finally:
        if not asked:
            for number, handler in handlers.items():
                signal.signal(number, handler)
