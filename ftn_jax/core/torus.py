"""The torus of components: a D x D grid, numbered row by row, each edge joined to the opposite one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def side_of(size: int) -> int | None:
    """The side D of the torus of H = D^2 components; None if H is not a square, so that there is no torus."""
    side = math.isqrt(size)
    return side if side * side == size else None


@functools.cache
def _lateral_operator(side: int, kernel: int, steps: int) -> np.ndarray:
    """C float64[D, D]: T circular box blurs along one axis as one circulant matrix."""
    blur = np.zeros((side, side))
    for offset in range(-(kernel // 2), kernel // 2 + 1):
        blur += np.roll(np.eye(side), offset, axis=0) / kernel
    return np.linalg.matrix_power(blur, steps)


def smooth(values: jax.Array, *, kernel: int, lateral_steps: int) -> jax.Array:
    """T circular convolutions of the D x D torus with a uniform s x s kernel (Algorithm 1, line 6).

    A uniform kernel is separable, and T blurs of a circle are one circulant matrix C, so the result is C M C^T.
    A kernel wider than the torus wraps around.

    Args:
      values: [H], H = D^2 where ``lateral_steps`` > 0.
      kernel: s, odd.
      lateral_steps: T; 0 returns ``values``.

    Raises:
      ValueError: an even kernel, or H that is not a square.
    """
    if lateral_steps == 0:
        return values
    side = side_of(values.size)
    if side is None:
        raise ValueError(f"smoothing needs a square number of components, got {values.size}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"the smoothing kernel must be odd and positive, got {kernel}")
    operator = jnp.asarray(_lateral_operator(side, kernel, lateral_steps), values.dtype)
    matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return matmul(matmul(operator, values.reshape(side, side)), operator.T).reshape(-1)


def distances(places: np.ndarray, side: int) -> np.ndarray:
    """int[n, n]: the squared distances between components int[n] on a torus, the shorter way round."""
    y, x = (np.abs(axis[:, None] - axis[None]) for axis in np.divmod(places, side))
    return np.minimum(y, side - y) ** 2 + np.minimum(x, side - x) ** 2


def compact(free: np.ndarray, k: int, size: int) -> np.ndarray:
    """k components of ``free`` int[n >= k] that lie close together, int32[k] sorted.

    These are the k nearest to a centre: the free component with the least sum of squared distances to its k nearest.
    If H is not a square, they are the first k.
    """
    side = side_of(size)
    if side is None:
        return free[:k].astype(np.int32)
    found = distances(free, side)
    centre = np.sort(found, axis=1)[:, :k].sum(1).argmin()
    return np.sort(free[np.argsort(found[centre], kind="stable")[:k]]).astype(np.int32)


def widened(side: int, wider: int) -> np.ndarray:
    """int[side^2]: the index of each component of a torus on a wider torus, in the same row and column.

    Neighbours stay neighbours, except across the old edges, where the new rows and columns come between them.
    """
    rows, columns = np.divmod(np.arange(side * side), side)
    return rows * wider + columns


def larger(size: int, least: int, divisor: int = 1) -> tuple[int, np.ndarray]:
    """The size of a pool after growth, and the new indices int[size] of its old components.

    Args:
      size: H before growth; a square stays a square, so that the torus stays a torus.
      least: the least number of components after growth.
      divisor: the new size is a multiple of it.
    """
    side = side_of(size)
    if side is None:
        return math.ceil(least / divisor) * divisor, np.arange(size)
    wider = math.isqrt(least - 1) + 1
    while wider * wider % divisor:
        wider += 1
    return wider * wider, widened(side, wider)
