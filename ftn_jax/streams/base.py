"""What a stream of tasks is, and what there is to build one from.

A task's data is a pytree with ``batch(key, size)``, ``support(key, size)`` and ``test()``, each a batch that the
pool reads. The first two are pure functions of the key; the three never share an example.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Context(NamedTuple):
    """What a run has before it has a stream."""

    experiment: str
    seeds: tuple[int, ...]
    base: Any = None  # a `ftn_jax.models.pretrained.Base`, where the config names one


class Spec(NamedTuple):
    """What a stream's batches are: all that a pool has to know of them to build itself."""

    inputs: int = 0  # d of points
    classes: int = 0  # C of points; 0: regression
    tokens: bool = False  # text, in tokens of the base, and no points


TEXT = Spec(tokens=True)


class Stream(NamedTuple):
    """A stream of N tasks."""

    names: tuple[str, ...]
    tasks: list[Any]  # the data of each
    metric: str  # that results are matrices of: a name in `ftn_jax.core.metrics.METRICS`
    spec: Spec | None = None  # of the batches; a pool of your own may do without
    axis: int | None = None  # 0 where every seed has data of its own (leaves [E, ...])
    # Of each task: how many for "training", "recovery", and "installation" where that is fewer, if limited.
    examples: Sequence[Mapping[str, int]] = ()
    # (task, first step, steps, size) -> batches [E, steps, size, ...] that the host reads; None: `batch` draws.
    feed: Callable[[int, int, int, int], Any] | None = None
    pairs: Sequence[Sequence[tuple[str, str]]] = ()  # of each task of text: test pairs (prompt, completion)
    facts: Mapping[str, Sequence[float]] = {}  # what is known of each seed's data: name -> [E]
    task_facts: Mapping[str, Sequence[float]] = {}  # and of each task's: name -> [N]
    returns: Sequence[str] = ()  # of each block: the task that it is of, where one may come back; empty: its own


def task_of(block: str) -> str:
    """The task of a block: "upper" of "upper" and of "upper#2", which comes back to it."""
    return block.partition("#")[0]
