"""The errors that end a run with one line instead of a traceback."""

import contextlib
import os
from collections.abc import Iterator


class InputError(ValueError):
    """What the user gave cannot work; the message names the thing, its value and what was expected."""


@contextlib.contextmanager
def writing(place: str | os.PathLike) -> Iterator[None]:
    """Within it an OSError is an `InputError` that names the file or folder which can't be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{place} can't be written ({error.strerror or error}): make room, or name another place"
        ) from error


class CheckpointError(OSError):
    """Checkpoints that can't be written or read."""


class Interrupted(Exception):
    """A run that was asked to stop has saved where it stands."""


class NonFiniteScore(FloatingPointError):
    """A metric that is not finite.

    Attributes:
      score: protocol, metric and value.
      seed: index of the seed.
      row: index of the task after which it was measured.
      column: index of the task on which.
    """

    def __init__(self, score: str, seed: int, row: int, column: int):
        super().__init__(f"{score} for seed {seed} of task {column} after task {row}")
        self.score, self.seed, self.row, self.column = score, seed, row, column


class NonFiniteLoss(FloatingPointError):
    """A training loss that is not finite.

    Attributes:
      loss: its value.
      seed: index of the seed.
      task: index of the task.
      step: of the task, from 1.
      first: of the steps that were made at once, from 0.
    """

    def __init__(self, loss: float, seed: int, task: int, step: int, first: int):
        super().__init__(f"loss is {loss} for seed {seed} of task {task} at step {step}")
        self.loss, self.seed, self.task, self.step, self.first = loss, seed, task, step, first
