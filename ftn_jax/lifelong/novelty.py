"""Whether examples are of a task that a pool has learned, and when a stream's data change: two calibrated tests.

Both are set by how often they may be wrong where nothing is the matter, not by what a stream looks like.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special

LEVEL = 1e-3  # how often a mask turns down examples of its own task, at most
RUN_LENGTH = 1e4  # steps from one false alarm to the next where nothing changes, on average

_KEPT = 2  # samples of its own task that a mask keeps
_LAG = 1  # the newest ones besides, which a change that is not noticed yet may have spoiled
_DRIFT = 1.0  # of the CUSUM, in standard deviations: best for shifts of twice that
_LEVEL_MEMORY = 20  # steps over which the loss is averaged
_MEMORY = 100  # and its variance
_WARM_UP = 20  # steps before the first alarm can come

Moments = list[float]  # of a sample: count, mean, sum of squared deviations
Sample = list[Moments]  # of each measure of `ftn_jax.training.evaluation.remains`


def log_losses(losses: Any) -> np.ndarray:
    """Losses on a scale on which those of batches are spread alike, whether a task is learned well or badly."""
    return np.log(np.maximum(np.asarray(losses, float), np.finfo(np.float32).tiny))


def moments(values: Any) -> Moments:
    """Of a sample."""
    sample = np.asarray(values, float)
    return [float(sample.size), float(sample.mean()), float(((sample - sample.mean()) ** 2).sum())]


def upper_bound(own: Sequence[Moments], count: int, level: float = LEVEL) -> float:
    """What the mean of ``count`` further values exceeds with probability ``level``.

    The one-sided prediction interval of a normal sample with unknown mean and variance (Student's t).

    Args:
      own: samples of the values.
      count: of the values that are judged.
      level: a probability.

    Returns:
      The bound; infinite where there is nothing to go by.
    """
    n = sum(size for size, _, _ in own)
    if n < 2:
        return math.inf
    mean = sum(size * mean for size, mean, _ in own) / n
    freedom = n - len(own)  # a task that is trained is better known at the second sample than at the first
    spread = math.sqrt(sum(square for *_, square in own) / freedom)
    return mean + float(scipy.special.stdtrit(freedom, 1 - level)) * spread * math.sqrt(1 / count + 1 / n)


def at_home(remains: Any, own: Sequence[Sequence[Sample]]) -> int | None:
    """The mask that leaves the least loss among those whose own task the examples may be of; None if there is none.

    A mask turns them down where it leaves too much by either measure, each judged at half of `LEVEL`.

    Args:
      remains: `ftn_jax.training.evaluation.remains` of n examples under each mask, [M, 2, n].
      own: samples of each mask on its own task.
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
    """The threshold of a one-sided CUSUM of standard normal numbers whose false alarms are so far apart.

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
    """CUSUM of one seed's log losses: notices that they rise above what they have been.

    The loss falls while it is trained on, so its level is a mean over few steps, and its variance is half of the mean
    squared difference of one step to the next (von Neumann), which a slow fall leaves as it is.
    """

    level: float = 0.0
    variance: float = 0.0
    last: float = 0.0
    seen: int = 0
    total: float = 0.0

    def update(self, losses: Sequence[float]) -> int | None:
        """The index of the loss at which the alarm is raised, which ends the update; None if it isn't."""
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
    """What one seed knows of its masks, by their numbers in `ftn_jax.lifelong.progress.Progress`."""

    own: list[list[Sample]] = dataclasses.field(default_factory=list)  # what each leaves of its own task
    current: int = -1  # the mask in use
    changes: Changes = dataclasses.field(default_factory=Changes)
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(self) -> None:
        """One more mask, which has just been installed; it is in use."""
        self.own.append([])
        self.use(len(self.own) - 1)

    def use(self, mask: int) -> None:
        """Another mask; what the loss was under the one before says nothing of this."""
        self.current, self.changes = mask, Changes()

    def note(self, remains: Any) -> None:
        """What the mask in use leaves of n examples at hand, [2, n]."""
        self.own[self.current] = [*self.own[self.current], [moments(row) for row in remains]][-_KEPT - _LAG :]

    def settled(self, mask: int) -> list[Sample]:
        """A mask's own samples, without those that an unnoticed change may have spoiled."""
        return self.own[mask][:-_LAG] if mask == self.current else self.own[mask]

    def decide(self, remains: Any) -> int | None:
        """After an alarm: which mask's own task the examples are of, None if they are new.

        Args:
          remains: of n examples at hand under each mask, [M, 2, n].
        """
        chosen = at_home(remains, [self.settled(mask) for mask in range(len(self.own))])
        if chosen != self.current:
            self.own[self.current] = self.settled(self.current)
        return chosen

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Memory":
        """From what `dataclasses.asdict` gave."""
        return cls(**{**plain, "changes": Changes(**plain["changes"])})


def judge(events: Sequence[dict[str, Any]], blocks: Sequence[str]) -> dict[str, Any]:
    """How one seed's decisions were, held to what nobody told it.

    Args:
      events: of a `Memory`.
      blocks: the task of each block.

    Returns:
      "right" and "wrong" decisions; a change that was not noticed in its block is a wrong one, counted as "missed" too;
      "false_alarms", after which the data were of the same task; "masks" installed, and "tasks" that there were;
      "delays", steps from each change to its alarm.
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
