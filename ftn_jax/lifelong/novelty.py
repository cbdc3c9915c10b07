"""Two calibrated tests: whether examples belong to a task that the pool has learned, and when a stream's data change.

Both are set by their rate of false alarms; none of their constants is tuned to a stream.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special

LEVEL = 1e-3  # the largest probability that a mask rejects examples of its own task
RUN_LENGTH = 1e4  # mean number of steps between false alarms while the data don't change

_KEPT = 2  # samples of its own task kept for each mask
_LAG = 1  # the newest samples, not counted when judging: the data may have changed unnoticed
_DRIFT = 1.0  # of the CUSUM, in standard deviations: best for shifts of twice that size
_LEVEL_MEMORY = 20  # steps over which the loss is averaged
_MEMORY = 100  # steps over which its variance is averaged
_WARM_UP = 20  # steps before the first alarm is possible

Moments = list[float]  # a sample's count, mean, and sum of squared deviations
Sample = list[Moments]  # one entry for each measure of `ftn_jax.training.evaluation.remains`


def log_losses(losses: Any) -> np.ndarray:
    """The logarithms of losses, whose spread over batches is similar for tasks learned well and badly."""
    return np.log(np.maximum(np.asarray(losses, float), np.finfo(np.float32).tiny))


def moments(values: Any) -> Moments:
    """The `Moments` of a sample."""
    sample = np.asarray(values, float)
    return [float(sample.size), float(sample.mean()), float(((sample - sample.mean()) ** 2).sum())]


def upper_bound(own: Sequence[Moments], count: int, level: float = LEVEL) -> float:
    """The bound that the mean of ``count`` further values exceeds with probability ``level``.

    It is the one-sided prediction bound of normal values with unknown mean and variance (Student's t).

    Args:
      own: earlier samples of the values.
      count: how many further values there are.
      level: a probability.

    Returns:
      The bound; infinite if there are fewer than two earlier values.
    """
    n = sum(size for size, _, _ in own)
    if n < 2:
        return math.inf
    mean = sum(size * mean for size, mean, _ in own) / n
    freedom = n - len(own)  # each sample has its own mean: between samples training improves the task
    spread = math.sqrt(sum(square for *_, square in own) / freedom)
    return mean + float(scipy.special.stdtrit(freedom, 1 - level)) * spread * math.sqrt(1 / count + 1 / n)


def at_home(remains: Any, own: Sequence[Sequence[Sample]]) -> int | None:
    """The mask with the least loss among those whose own task the examples may belong to; None if there is none.

    A mask rejects the examples if either measure is too large; each is tested at half of `LEVEL`.

    Args:
      remains: `ftn_jax.training.evaluation.remains` of n examples under each mask, [M, 2, n].
      own: for each mask, samples from its own task.
    """
    rows = [np.asarray(measures, float) for measures in remains]  # [2, n] of each mask

    def fits(measures: np.ndarray, samples: Sequence[Sample]) -> bool:
        count, level = measures.shape[1], LEVEL / len(measures)
        bounds = (upper_bound([sample[d] for sample in samples], count, level) for d in range(len(measures)))
        return all(row.mean() <= bound for row, bound in zip(measures, bounds, strict=True))

    fitting = [m for m, measures in enumerate(rows) if fits(measures, own[m])]
    return min(fitting, key=lambda m: rows[m][0].mean(), default=None)


@functools.cache
def cusum_threshold(run_length: float, drift: float) -> float:
    """The threshold at which a one-sided CUSUM of standard normal numbers has this mean time between false alarms.

    Siegmund's approximation: with b = h + 1.166, run length = (exp(2 d b) - 2 d b - 1) / (2 d^2).
    """
    low, high = 0.0, 100.0
    for _ in range(100):
        b = (low + high) / 2
        low, high = (
            (b, high) if (math.exp(2 * drift * b) - 2 * drift * b - 1) / (2 * drift**2) < run_length else (low, b)
        )
    return low - 1.166


@dataclasses.dataclass
class Changes:
    """A CUSUM of one seed's log losses, which detects that they rise above their recent level.

    Training lowers the loss, so its level is a mean over few steps. Its variance is half the mean squared difference
    between successive steps (von Neumann), which a slow decrease hardly affects.
    """

    level: float = 0.0
    variance: float = 0.0
    last: float = 0.0
    seen: int = 0
    total: float = 0.0

    def update(self, losses: Sequence[float]) -> int | None:
        """Adds losses until an alarm; returns the index of the loss that raises it, or None if there is no alarm."""
        for i, loss in enumerate(log_losses(losses).tolist()):
            if self.seen >= _WARM_UP:
                score = (loss - self.level) / math.sqrt(max(self.variance, 1e-12))
                self.total = max(0.0, self.total + score - _DRIFT)
                if self.total > cusum_threshold(RUN_LENGTH, _DRIFT):
                    return i
            if self.seen:
                weight = max(1 / self.seen, 1 / _MEMORY)
                self.variance += weight * (0.5 * (loss - self.last) ** 2 - self.variance)
            self.seen += 1
            self.level += max(1 / self.seen, 1 / _LEVEL_MEMORY) * (loss - self.level)
            self.last = loss
        return None


@dataclasses.dataclass
class Memory:
    """One seed's statistics of its masks, by their indices in `ftn_jax.lifelong.progress.Progress.masks`."""

    own: list[list[Sample]] = dataclasses.field(default_factory=list)  # for each mask, samples from its own task
    current: int = -1  # the mask in use
    changes: Changes = dataclasses.field(default_factory=Changes)
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(self) -> None:
        """Adds a newly installed mask, and makes it the one in use."""
        self.own.append([])
        self.use(len(self.own) - 1)

    def renew(self, mask: int) -> None:
        """Drops the samples of a mask that has changed since they were taken, and makes it the one in use."""
        self.own[mask] = []
        self.use(mask)

    def use(self, mask: int) -> None:
        """Switches to another mask, and restarts the detection of changes: its losses are on another level."""
        self.current, self.changes = mask, Changes()

    def note(self, remains: Any) -> None:
        """Adds a sample of the mask in use: the `remains` [2, n] of n current examples under it."""
        self.own[self.current] = [*self.own[self.current], [moments(row) for row in remains]][-_KEPT - _LAG :]

    def settled(self, mask: int) -> list[Sample]:
        """A mask's samples from its own task; for the mask in use, without the newest: the data may have changed."""
        return self.own[mask][:-_LAG] if mask == self.current else self.own[mask]

    def decide(self, remains: Any) -> int | None:
        """After an alarm, the mask to whose task the current examples belong; None if the task is new.

        Args:
          remains: of n current examples under each mask, [M, 2, n].
        """
        chosen = at_home(remains, [self.settled(mask) for mask in range(len(self.own))])
        if chosen != self.current:
            self.own[self.current] = self.settled(self.current)
        return chosen

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Memory":
        """Reverses `dataclasses.asdict`."""
        return cls(**{**plain, "changes": Changes(**plain["changes"])})


def judge(events: Sequence[dict[str, Any]], blocks: Sequence[str]) -> dict[str, Any]:
    """Compares one seed's decisions with the true tasks, which it was not told.

    Args:
      events: of a `Memory`.
      blocks: the true task of each block.

    Returns:
      The numbers of "right" and "wrong" decisions, where a change that is not detected in its block counts as wrong and
      also as "missed"; of "false_alarms", when the task had not changed; of "masks" installed, and of different
      "tasks"; and "delays", the steps from each change to its alarm.
    """
    origin: dict[int, str] = {}
    found: dict[str, Any] = {"right": 0, "wrong": 0, "missed": 0, "false_alarms": 0, "delays": []}
    for block, task in enumerate(blocks):
        changed = block == 0 or task != blocks[block - 1]
        own = [event for event in events if event["block"] == block]
        for number, event in enumerate(own):
            right = task not in origin.values() if event["new"] else origin[event["mask"]] == task
            origin.setdefault(event["mask"], task)
            found["right" if right else "wrong"] += 1
            if number or not changed:
                found["false_alarms"] += 1
            elif block:
                found["delays"].append(event["step"])
        if changed and not own:
            found["missed"] += 1
            found["wrong"] += 1
    return found | {"masks": len(origin), "tasks": len(set(blocks))}
