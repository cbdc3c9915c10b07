"""Reference methods that see other tasks' examples while they train: Replay keeps a few, Joint has all tasks at once.

Neither is a Functional Task Network. Every component is trained, as in NoMask; only the training batches differ.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.methods.base import Configurer, Method
from ftn_jax.methods.masked import unmasked
from ftn_jax.pools.base import kind_of


@flax.struct.dataclass
class Rehearsed:
    """A task's training data with a buffer of examples of the tasks before it."""

    own: Any  # the task's data
    buffer: Any  # a batch of all tasks' examples, leaves [N M, ...]
    held: jax.Array  # int32[], how many of them are of earlier tasks

    def batch(self, key: jax.Array, size: int) -> Any:
        """``size`` examples, half of them from the buffer as soon as it holds any. The key is consumed."""
        half = size // 2
        own = self.own.batch(jax.random.fold_in(key, 0), size)
        rows = jax.random.randint(jax.random.fold_in(key, 1), (half,), 0, jnp.maximum(self.held, 1))
        both = joined([own, jax.tree.map(lambda leaf: leaf[rows], self.buffer)])
        kept = jnp.arange(size)
        again = size + kept - (size - half)
        return jax.tree.map(lambda leaf: leaf[jnp.where((kept < size - half) | (self.held == 0), kept, again)], both)


@flax.struct.dataclass
class Joint:
    """The training data of all tasks as one."""

    tasks: tuple[Any, ...]

    def batch(self, key: jax.Array, size: int) -> Any:
        """``size`` examples, each of any task. The key is consumed."""
        count = len(self.tasks)
        keys = jax.random.split(key, count + 1)
        every = joined([task.batch(key, size) for task, key in zip(self.tasks, keys[1:], strict=True)])
        rows = jax.random.choice(keys[0], count * size, (size,), replace=False)
        return jax.tree.map(lambda leaf: leaf[rows], every)


def joined(batches: Sequence[Any]) -> Any:
    """Batches as one, row after row; rows of a shorter kind are padded with zeros, which nothing scores."""

    def join(*leaves):
        widest = [max(sizes) for sizes in zip(*(leaf.shape[1:] for leaf in leaves), strict=True)]
        padding = [[(0, 0), *((0, w - s) for w, s in zip(widest, leaf.shape[1:], strict=True))] for leaf in leaves]
        return jnp.concatenate([jnp.pad(leaf, pad) for leaf, pad in zip(leaves, padding, strict=True)])

    return jax.tree.map(join, *batches)


def replay(configurer: Configurer, *, examples: int = 64) -> Method:
    """Experience replay: half of each batch comes from ``examples`` of each earlier task, kept when it was trained.

    They are drawn once and are the same for all seeds of a stream whose data seeds share.
    """

    def rehearse(tasks, index, axis):
        buffer, held = _buffer(tuple(tasks), np.int32(index), axis=axis, examples=examples, kind=kind_of(tasks))
        return Rehearsed(tasks[index], buffer, held)

    return dataclasses.replace(unmasked(configurer), rehearse=rehearse)


@functools.partial(jax.jit, static_argnames=("axis", "examples", "kind"))
def _buffer(tasks, index, *, axis, examples, kind):
    """``examples`` of every task, leaves [N M, ...], and how many are of tasks before ``index``; [E, ...] of each."""

    def one(tasks):
        kept = [task.batch(jax.random.key(j), examples) for j, task in enumerate(tasks)]
        return joined(kept), index * examples

    return jax.vmap(one)(tasks) if axis == 0 else one(tasks)


def joint(configurer: Configurer) -> Method:
    """Joint training: every batch has examples of all tasks of the stream, in every block.

    The usual upper bound, but none where tasks contradict each other and the examples do not say which is meant.
    """
    return dataclasses.replace(unmasked(configurer), rehearse=lambda tasks, index, axis: Joint(tuple(tasks)))
