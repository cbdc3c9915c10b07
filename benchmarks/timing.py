"""Times sides that take turns, so that a machine whose speed drifts is fair to all of them."""

import statistics
import time
from collections.abc import Callable
from typing import Any

Sides = dict[str, Callable[[], Any]]


def interleaved(sides: Sides, rounds: int, clock: Callable[[], float] = time.perf_counter):
    """Seconds and results of each side in each round, name -> list; a first round does not count as seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            start = clock()
            results[name].append(side())
            seconds[name].append(clock() - start)
    return {name: values[1:] for name, values in seconds.items()}, results


def median_ratio(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """Median, least and greatest of the rounds' ratios."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
