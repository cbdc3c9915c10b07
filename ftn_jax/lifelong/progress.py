"""A method's way through the stream: all that is known at a moment of a run, and the one store of its masks."""

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
    """A method's way through the stream.

    Attributes:
      state: what is trained.
      touched: by moving masks.
      task: blocks that are trained.
      step: steps of the next block that are.
      masks: in the order in which they were installed, leaves [E, ...]. Where seeds decide for themselves, one that has
        fewer masks than others has H in the place of components.
      used: of each block, one begun included: which mask each seed trains it with, int[E].
      imported: adapters that were put into free components, by name: no block trains or uses them.
      rows: of the matrices.
      memories: of each seed, what it knows of its masks; where the method reserves components.
      seconds: that the run has taken.
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

    @property
    def size(self) -> int:
        """H, which may be more than the config's where the pool has grown."""
        return self.touched.counts.shape[-1]

    @property
    def held(self) -> list[Selection]:
        """All masks whose components are taken, those of imported adapters at the end."""
        return [*self.masks, *self.imported.values()]

    @property
    def selections(self) -> list[Selection]:
        """Of each block, one begun included."""
        return [self.selection(block) for block in range(len(self.used))]

    def selection(self, block: int) -> Selection:
        """The masks, leaves [E, ...], with which a block is trained."""
        numbers = self.used[block]
        if (numbers == numbers[0]).all():
            return self.masks[numbers[0]]
        seeds, masks = np.arange(len(numbers)), to_host(self.masks)
        return place(jax.tree.map(lambda *leaves: self._stacked(leaves)[numbers, seeds], *masks))

    def _stacked(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """Leaves [E] or [E, m], of which frozen components may be more where the pool was larger, as [M, E, m]."""
        longest = max(leaf.shape[-1] for leaf in leaves)
        padding = [[(0, 0)] * (leaf.ndim - 1) + [(0, longest - leaf.shape[-1])] for leaf in leaves]
        return np.stack(
            [np.pad(leaf, pad, constant_values=self.size) for leaf, pad in zip(leaves, padding, strict=True)]
        )

    def begin(self, selection: Selection) -> None:
        """Notes the masks of the block that is trained, for every seed its newest; again where they move."""
        begun = len(self.used) > self.task
        self.masks[len(self.masks) - begun :] = [selection]
        self.used[self.task :] = [np.full(len(selection.active), len(self.masks) - 1)]


@jax.jit
def place(selection: Selection) -> Selection:
    """Selections from the host, leaves [E, ...], on the devices that their seeds are on."""
    return over_seeds(lambda selection: selection, (0,))(selection)
