"""A method's progress through the stream: everything that a run needs to continue, and the only store of its masks."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from ftn_jax.core.mesh import over_seeds, to_host
from ftn_jax.lifelong.novelty import Memory
from ftn_jax.lifelong.touched import Touched
from ftn_jax.methods import Selection
from ftn_jax.training.evaluation import Row
from ftn_jax.training.state import State


@dataclasses.dataclass
class Progress:
    """A method's progress through the stream.

    Attributes:
      state: the state of training.
      touched: which components moving masks have touched.
      task: the number of blocks that are trained to their end.
      step: the number of steps done in the next block.
      masks: the masks in the order of their installation, leaves [E, ...]. If seeds decide for themselves, a seed with
        fewer masks than others has H in the place of components.
      used: for each block, also one that has only begun, the index in ``masks`` of each seed's mask, int[E].
      imported: masks of imported adapters, by name; no block trains or uses their components.
      rows: the rows of the matrices R so far.
      memories: one per seed, if the method reserves components: its statistics for recognizing tasks.
      seconds: the time that the run has taken.
      validated: the validations so far, in their order: [task, step, loss of each seed].
      pace: the number of training steps that were timed, and the seconds that they took together, without compiling.
    """

    state: State
    touched: Touched
    task: int = 0
    step: int = 0
    masks: list[Selection] = dataclasses.field(default_factory=list)
    used: list[np.ndarray] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)
    memories: list[Memory] = dataclasses.field(default_factory=list)
    imported: dict[str, Selection] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: {"compile": 0.0, "run": 0.0})
    validated: list[list] = dataclasses.field(default_factory=list)
    pace: dict[str, float] = dataclasses.field(default_factory=lambda: {"steps": 0, "seconds": 0.0})

    @property
    def size(self) -> int:
        """H, which is more than the config's if the pool has grown."""
        return self.touched.counts.shape[-1]

    @property
    def held(self) -> list[Selection]:
        """All masks, whose components are not free; those of imported adapters come last."""
        return [*self.masks, *self.imported.values()]

    @property
    def selections(self) -> list[Selection]:
        """The selections of all blocks, also of one that has only begun."""
        return [self.selection(block) for block in range(len(self.used))]

    def selection(self, block: int) -> Selection:
        """The selection, leaves [E, ...], with which a block is trained."""
        numbers = self.used[block]
        if (numbers == numbers[0]).all():
            return self.masks[numbers[0]]
        seeds, masks = np.arange(len(numbers)), to_host(self.masks)
        return place(jax.tree.map(lambda *leaves: self._stacked(leaves)[numbers, seeds], *masks))

    def _stacked(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """Stacks M leaves [E] or [E, m] to [M, E] or [M, E, m]; m may differ in ``frozen``, and is padded with H."""
        longest = max(leaf.shape[-1] for leaf in leaves)
        padding = [[(0, 0)] * (leaf.ndim - 1) + [(0, longest - leaf.shape[-1])] for leaf in leaves]
        return np.stack(
            [np.pad(leaf, pad, constant_values=self.size) for leaf, pad in zip(leaves, padding, strict=True)]
        )

    def begin(self, selection: Selection, earlier: int | None = None) -> None:
        """Stores the current block's selection as every seed's newest mask; another call in the block replaces it.

        A block that continues an ``earlier`` one has its mask.
        """
        if earlier is not None:
            self.used[self.task :] = [self.used[earlier]]
            return
        begun = len(self.used) > self.task
        self.masks[len(self.masks) - begun :] = [selection]
        self.used[self.task :] = [np.full(len(selection.active), len(self.masks) - 1)]


@jax.jit
def place(selection: Selection) -> Selection:
    """Puts a selection from the host, leaves [E, ...], on the devices of its seeds."""
    return over_seeds(lambda selection: selection, (0,))(selection)
