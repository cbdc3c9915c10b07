"""The errors that end a run with one line instead of a traceback (DESIGN.md section 8)."""


class InputError(ValueError):
    """What the user gave cannot work; the message names the thing, its value and what was expected."""


class NonFiniteLoss(FloatingPointError):
    """A training loss that is not finite.

    Attributes:
      loss: its value.
      seed: index of the seed.
      task: index of the task.
      step: of the task, from 1.
    """

    def __init__(self, loss: float, seed: int, task: int, step: int):
        super().__init__(f"loss is {loss} for seed {seed} of task {task} at step {step}")
        self.loss, self.seed, self.task, self.step = loss, seed, task, step
