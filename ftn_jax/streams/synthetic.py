"""The synthetic stream: tasks that share their inputs and conflict in their targets (section 3, Experiment 1).

    x ~ N(0, I_2),  h = x W_e [24],  y_t(x) = c sum_{j in block t} sin(8 h_j),  class_t(x) = y_t(x) > 0

The blocks are disjoint. y_t is odd and x symmetric, so classes are balanced exactly. Encoders and blocks are redrawn
until every two tasks agree on the class of nearly half of all inputs.
"""

import itertools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.pools.neurons import PointBatch
from ftn_jax.streams.base import Context, Spec, Stream, task_of

AGREEMENT = 0.02  # the largest distance of two tasks' label agreement from one half
_AMPLITUDE = 0.67  # of y, times sqrt 2 the standard deviation: the paper's regression errors imply 0.22 = 0.67^2 / 2
_GRID = 401  # points per side of the grid that integrates over x, from -4 to 4 standard deviations
_COARSE = 81  # points per side of the coarse grid that rejects most draws
_DRAWS = 1000
_BATCHES, _SUPPORT, _TEST = range(3)  # the purposes of keys


@flax.struct.dataclass
class SyntheticTask:
    """One task of one seed; with leaves [E, ...], of several seeds."""

    weights: jax.Array  # f32[d, n], the n latent features of the task's block
    key: jax.Array  # of the test set
    frequency: float = flax.struct.field(pytree_node=False)
    classify: bool = flax.struct.field(pytree_node=False)
    held_out: int = flax.struct.field(pytree_node=False)  # test examples

    def batch(self, key: jax.Array, size: int) -> PointBatch:
        """``size`` training examples. The key is consumed."""
        return self._draw(jax.random.fold_in(key, _BATCHES), size)

    def support(self, key: jax.Array, size: int) -> PointBatch:
        """``size`` examples for recovery. The key is consumed."""
        return self._draw(jax.random.fold_in(key, _SUPPORT), size)

    def test(self) -> PointBatch:
        """The test set, always the same."""
        return self._draw(jax.random.fold_in(self.key, _TEST), self.held_out)

    def _draw(self, key, size):
        x = jax.random.normal(key, (size, len(self.weights)))
        y = target(x, self.weights, self.frequency)
        return PointBatch(x, (y > 0).astype(jnp.int32) if self.classify else y)


def target(x: jax.Array, weights: jax.Array, frequency: float) -> jax.Array:
    """y [B] of inputs x [B, d] for a block's encoder columns [d, n]."""
    # Elementwise, since the rounding of a matrix product may depend on B, and the frequency amplifies it.
    latent = (x[:, :, None] * weights[None]).sum(1)
    return _AMPLITUDE * weights.shape[1] ** -0.5 * jnp.sin(frequency * latent).sum(1)


def label_statistics(weights: np.ndarray, frequency: float, points: int = _GRID) -> tuple[np.ndarray, np.ndarray]:
    """Shares of inputs by numerical integration: of the positive class [N], and with two tasks' agreement [N, N].

    Args:
      weights: the encoder's columns by task, [N, 2, n].
      frequency: of the sinusoid.
      points: per side of the grid.
    """
    axis = np.linspace(-4, 4, points)
    density = np.exp(-0.5 * axis**2)
    density = np.outer(density, density).ravel() / density.sum() ** 2
    # sin(a + b), with a and b each a function of one axis, as two products of matrices.
    phase = frequency * axis[:, None] * weights[:, :, None]  # [N, 2, points, n]
    sin, cos = np.sin(phase), np.cos(phase)
    y = sin[:, 0] @ cos[:, 1].swapaxes(1, 2) + cos[:, 0] @ sin[:, 1].swapaxes(1, 2)
    positive = (y > 0).reshape(len(y), -1).astype(float)
    both = (positive * density) @ positive.T
    share = both.diagonal()
    return share, 1 - share[:, None] - share + 2 * both


def draw_encoder(seed: int, *, tasks: int, block: int, scale: float, frequency: float) -> np.ndarray:
    """The columns of an encoder by task, [N, 2, n], such that all tasks' pairwise agreement is within `AGREEMENT`.

    Raises:
      InputError: no such encoder was found.
    """
    rng = np.random.default_rng((seed, tasks, block))
    off_diagonal = ~np.eye(tasks, dtype=bool)
    for _ in range(_DRAWS):
        weights = rng.normal(scale=scale, size=(tasks, 2, block))  # columns are i.i.d., so this is a random partition
        if all(
            np.all(np.abs(label_statistics(weights, frequency, points)[1] - 0.5)[off_diagonal] <= AGREEMENT)
            for points in (_COARSE, _GRID)
        ):
            return weights
    raise InputError(
        f"config.stream: no encoder in {_DRAWS} draws for seed {seed} gives {tasks} tasks of which every two agree on "
        f"{0.5 - AGREEMENT:.0%} to {0.5 + AGREEMENT:.0%} of the labels: raise config.stream.block or "
        "config.stream.scale (too large a scale loses precision), or take fewer config.stream.tasks"
    )


def synthetic(
    context: Context, names: Sequence[str], *, target: str, block: int, scale: float, frequency: float, test: int
) -> Stream:
    """The stream of points; each seed has its own encoder.

    Args:
      context: of the run.
      names: of the tasks; a task may come back, as "first#2".
      target: the target, the class of a point ("classification") or y itself ("regression").
      block: latent features of each task.
      scale: standard deviation of the encoder's weights.
      frequency: of the sinusoid.
      test: examples in each test set.

    Raises:
      InputError: no encoder was found with tasks that agree on nearly half of the labels.
    """
    returns = list(map(task_of, names))
    distinct = list(dict.fromkeys(returns))
    settings = {"tasks": len(distinct), "block": block, "scale": scale, "frequency": frequency}
    encoders = np.stack([draw_encoder(seed, **settings) for seed in context.seeds])
    classify = target == "classification"
    keys = jax.vmap(jax.random.key)(jnp.asarray(context.seeds))
    tasks = [
        SyntheticTask(
            jnp.asarray(encoders[:, i], jnp.float32),
            jax.vmap(jax.random.fold_in, (0, None))(keys, i),
            frequency,
            classify,
            test,
        )
        for i in map(distinct.index, returns)
    ]
    positive, agreement = (np.stack(s) for s in zip(*(label_statistics(e, frequency) for e in encoders), strict=True))
    facts = {f"positive, {name}": positive[:, i].tolist() for i, name in enumerate(distinct)} | {
        f"agree, {distinct[i]} / {distinct[j]}": agreement[:, i, j].tolist()
        for i, j in itertools.combinations(range(len(distinct)), 2)
    }
    metric, spec = ("accuracy", Spec(2, 2)) if classify else ("mse", Spec(2))
    return Stream(tuple(names), tasks, metric, spec, axis=0, facts=facts, returns=returns)
