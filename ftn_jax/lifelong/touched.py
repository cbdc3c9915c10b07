"""Records which components a block's moving mask touched: Theorem 2.1 is about all masks of a block, not the last."""

from typing import Any

import numpy as np

MORE_THAN = (0, 20, 100)  # a component counts as touched if it was active in more steps than this
_SHOWN = (1, 2, 5, 10, 20, 50, 100, 200)  # steps whose masks are stored


class Touched:
    """Counts, for each seed and task, the steps in which each component was active; stores some of one seed's masks."""

    def __init__(self, seeds: int, tasks: int, size: int):
        self.counts = np.zeros((seeds, tasks, size), np.int64)
        self.path: list[list[list[int]]] = [[] for _ in range(tasks)]  # of each task: the first seed's masks
        self.steps: list[int] = []  # the steps of these masks; empty until `add` is called

    def add(self, task: int, step: int, masks: np.ndarray) -> None:
        """Adds the active indices int[E, n, k] of the last n steps of a task, up to ``step`` (from 1)."""
        size = self.counts.shape[-1]
        for counts, active in zip(self.counts[:, task], masks, strict=True):
            counts += np.bincount(active.ravel(), minlength=size)
        first = step - masks.shape[1] + 1
        for shown in _SHOWN:
            if first <= shown <= step:
                self.path[task].append(masks[0, shown - first].tolist())
                if shown not in self.steps:
                    self.steps.append(shown)

    def summary(self, masks: np.ndarray) -> dict[str, Any]:
        """Summarises what the blocks touched, ready for JSON.

        Args:
          masks: the stored masks, active indices int[E, N, k].

        Returns:
          "more_than" [3]: numbers of steps; "touched" [E, N, 3]: how many components were active in more steps than
          these; "earlier" [E, N, 3]: the share of the union of the earlier tasks' stored masks that was, None for the
          first task; "steps", and "path" [N, steps, k]: the first seed's masks at these steps.
        """
        touched, earlier = [], []
        for counts, stored in zip(self.counts, masks, strict=True):
            over = counts[:, None] > np.array(MORE_THAN)[:, None]  # [N, 3, H]
            touched.append(over.sum(-1).tolist())
            shares: list[list[float] | None] = [None]
            for task in range(1, len(stored)):
                shares.append(over[task][:, np.unique(stored[:task])].mean(-1).tolist())
            earlier.append(shares)
        return {
            "more_than": list(MORE_THAN),
            "touched": touched,
            "earlier": earlier,
            "steps": self.steps,
            "path": self.path,
        }
