"""The errors that end a run with one line instead of a traceback."""

import contextlib
import os
from collections.abc import Iterator


class InputError(ValueError):
    """The user's input cannot work; the message names the thing, its value and what was expected."""


@contextlib.contextmanager
def writing(place: str | os.PathLike) -> Iterator[None]:
    """Turns an OSError inside the block into an `InputError` that names the file or folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{place} can't be written ({error.strerror or error}): make room, or name another place"
        ) from error


class CheckpointError(OSError):
    """A checkpoint can't be written or read."""


class Interrupted(Exception):
    """A run was asked to stop, and has saved its state."""


class NonFiniteScore(FloatingPointError):
    """A metric is not finite.

    Attributes:
      score: protocol, metric and value, in words.
      seed: index of the seed.
      row: index of the task after whose training it was measured.
      column: index of the task on which it was measured.
    """

    def __init__(self, score: str, seed: int, row: int, column: int):
        super().__init__(f"{score} for seed {seed} of task {column} after task {row}")
        self.score, self.seed, self.row, self.column = score, seed, row, column


class NonFiniteLoss(FloatingPointError):
    """A training loss is not finite.

    Attributes:
      loss: its value.
      seed: index of the seed.
      task: index of the task.
      step: step within the task, from 1.
      first: first step of the chunk that was computed at once, from 0.
    """

    def __init__(self, loss: float, seed: int, task: int, step: int, first: int):
        super().__init__(f"loss is {loss} for seed {seed} of task {task} at step {step}")
        self.loss, self.seed, self.task, self.step, self.first = loss, seed, task, step, first
