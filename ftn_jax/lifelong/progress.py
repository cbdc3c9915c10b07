"""A method's way through the stream: what the library knows at each moment of a run."""

import dataclasses

from ftn_jax.lifelong.novelty import Memory
from ftn_jax.lifelong.touched import Wandering
from ftn_jax.methods import Selection
from ftn_jax.training.evaluation import Row
from ftn_jax.training.state import State


@dataclasses.dataclass
class Progress:
    """A method's way through the stream."""

    state: State
    wandering: Wandering
    task: int = 0  # blocks that are trained
    step: int = 0  # steps of the next block that are
    selections: list[Selection] = dataclasses.field(default_factory=list)  # of the blocks, one begun included
    rows: list[Row] = dataclasses.field(default_factory=list)  # of the matrices
    memories: list[Memory] = dataclasses.field(default_factory=list)  # of each seed, where a method keeps any
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: {"compile": 0.0, "run": 0.0})

    @property
    def size(self) -> int:
        """H, which may be more than the config's where the pool has grown."""
        return self.wandering.counts.shape[-1]
