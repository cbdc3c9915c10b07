"""Counts the programs that XLA compiles while some code runs."""

import contextlib
from collections.abc import Callable, Iterator

import jax


@contextlib.contextmanager
def counted_compilations() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the number of programs compiled inside the ``with`` block so far."""
    count = 0

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: count
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
