"""SIGTERM and Ctrl-C: as a question that a run asks between its steps, or as an exception that ends a command."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

_GRACE = 9.0  # seconds that a run has to save where it stands
_INTERRUPTED_GRACE = 1.0  # and a command to clean up that saves nothing


@contextlib.contextmanager
def asked_to_stop(farewell: Callable[[int], str], *, interrupt: bool = False) -> Iterator[Callable[[], int | None]]:
    """Within it the first SIGINT or SIGTERM makes the function that it gives return the signal's number.

    With ``interrupt`` it raises KeyboardInterrupt besides, and a second signal ends the process at once. A process that
    has not left it ``_GRACE`` seconds later, in the midst of a long step or compilation, or since a library has
    swallowed the exception, prints ``farewell`` of the signal and ends with 128 + the signal. To be entered from the
    main thread.
    """
    asked: list[int] = []
    left = threading.Event()
    grace = _INTERRUPTED_GRACE if interrupt else _GRACE
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    # Python runs handlers between its own instructions; the byte comes at once, compilation or not.
    def watch():
        signals = os.read(reader, 1)
        if signals:
            asked.append(signals[0])
            if not left.wait(grace):
                print(farewell(asked[0]), file=sys.stderr, flush=True)
                os._exit(128 + asked[0])
        os.close(reader)  # not before: Python would tell of a second signal that its byte finds no reader

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
