"""Reference methods that train on other tasks' examples, too: Replay keeps a few, Joint trains on all tasks at once.

Neither is a Functional Task Network. All components are trained, as in NoMask; only the training batches differ.
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
    """A task's training data with a buffer of examples of earlier tasks."""

    own: Any  # the task's data
    buffer: Any  # a batch with M examples of each of the N tasks, in their order; leaves [N M, ...]
    held: jax.Array  # int32[], how many of these are of earlier tasks; only they are drawn

    def batch(self, key: jax.Array, size: int) -> Any:
        """``size`` examples, half of them from the buffer if it holds any. The key is consumed."""
        return self.mix(key, self.own.batch(jax.random.fold_in(key, 0), size), size)

    def mix(self, key: jax.Array, own: Any, size: int) -> Any:
        """``size`` examples, half of them from the buffer if it holds any, the others the first of ``own`` [size]."""
        half = size // 2
        rows = jax.random.randint(jax.random.fold_in(key, 1), (half,), 0, jnp.maximum(self.held, 1))
        both = joined([own, jax.tree.map(lambda leaf: leaf[rows], self.buffer)])
        kept = jnp.arange(size)
        again = size + kept - (size - half)
        return jax.tree.map(lambda leaf: leaf[jnp.where((kept < size - half) | (self.held == 0), kept, again)], both)


@flax.struct.dataclass
class Joint:
    """The training data of all tasks together."""

    tasks: tuple[Any, ...]

    def batch(self, key: jax.Array, size: int) -> Any:
        """``size`` examples, each from a random task. The key is consumed."""
        count = len(self.tasks)
        keys = jax.random.split(key, count + 1)
        every = joined([task.batch(key, size) for task, key in zip(self.tasks, keys[1:], strict=True)])
        return self.mix(keys[0], every, size)

    def mix(self, key: jax.Array, every: Any, size: int) -> Any:
        """``size`` examples of ``every``, which holds as many of each task. The key is consumed."""
        rows = jax.random.choice(key, len(jax.tree.leaves(every)[0]), (size,), replace=False)
        return jax.tree.map(lambda leaf: leaf[rows], every)


def joined(batches: Sequence[Any], *, axis: int = 0, numpy: Any = jnp) -> Any:
    """Batches as one, whose examples are on ``axis``; shorter rows are padded with zeros, which are not scored."""

    def join(*leaves):
        after = axis + 1
        widest = [max(sizes) for sizes in zip(*(leaf.shape[after:] for leaf in leaves), strict=True)]
        whole = [(0, 0)] * after
        padding = [[*whole, *((0, w - s) for w, s in zip(widest, leaf.shape[after:], strict=True))] for leaf in leaves]
        return numpy.concatenate([numpy.pad(leaf, pad) for leaf, pad in zip(leaves, padding, strict=True)], axis)

    return jax.tree.map(join, *batches)


def replay(configurer: Configurer, *, examples: int = 64) -> Method:
    """Experience replay: half of each batch is drawn from a buffer of ``examples`` examples per earlier task.

    The buffer takes its examples from the training data, once per task; they are the same for all seeds
    if these share the stream's data.
    """

    def rehearse(tasks, index, axis):
        buffer, held = _buffer(tuple(tasks), np.int32(index), axis=axis, examples=examples, kind=kind_of(tasks))
        return Rehearsed(tasks[index], buffer, held)

    return dataclasses.replace(unmasked(configurer), rehearse=rehearse)


@functools.partial(jax.jit, static_argnames=("axis", "examples", "kind"))
def _buffer(tasks, index, *, axis, examples, kind):
    """The buffer of `Rehearsed`, and how many of its examples are of tasks before ``index``; [E, ...] if axis is 0."""

    def one(tasks):
        kept = [task.batch(jax.random.key(j), examples) for j, task in enumerate(tasks)]
        return joined(kept), index * examples

    return jax.vmap(one)(tasks) if axis == 0 else one(tasks)


def joint(configurer: Configurer) -> Method:
    """Joint training: in every block the batches have examples of all tasks of the stream.

    This is the usual upper bound, except where tasks contradict each other and an example does not tell its task.
    """

    def read(feed, tasks, first, steps, size):
        each = -(-size // tasks)
        return joined([feed(task, first, steps, each) for task in range(tasks)], axis=2, numpy=np)

    method = unmasked(configurer)
    return dataclasses.replace(method, rehearse=lambda tasks, index, axis: Joint(tuple(tasks)), read=read)
