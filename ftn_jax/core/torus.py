"""The torus on which components lie: D x D of them, row by row, each edge joined to the opposite one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def side_of(size: int) -> int | None:
    """D of H = D^2 components; None where H is no square, and there is no torus."""
    side = math.isqrt(size)
    return side if side * side == size else None


@functools.cache
def _lateral_operator(side: int, kernel: int, steps: int) -> np.ndarray:
    """C float64[D, D]: T circular box blurs of one axis as one circulant matrix."""
    blur = np.zeros((side, side))
    for offset in range(-(kernel // 2), kernel // 2 + 1):
        blur += np.roll(np.eye(side), offset, axis=0) / kernel
    return np.linalg.matrix_power(blur, steps)


def smooth(values: jax.Array, *, kernel: int, lateral_steps: int) -> jax.Array:
    """T circular convolutions of the D x D torus with a uniform s x s kernel (Algorithm 1, line 6).

    A uniform kernel is separable and T blurs of a circle are one circulant matrix C, so the whole is C M C^T.
    A kernel that is wider than the torus wraps around.

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
    """int[n, n]: the squared distance between each two components int[n] of a torus, the shorter way round."""
    y, x = (np.abs(axis[:, None] - axis[None]) for axis in np.divmod(places, side))
    return np.minimum(y, side - y) ** 2 + np.minimum(x, side - x) ** 2


def compact(free: np.ndarray, k: int, size: int) -> np.ndarray:
    """The k of the components ``free`` int[n >= k] that lie closest together, int32[k] sorted.

    They are those nearest to the component whose k nearest are nearest; where H is no square, the first k.
    """
    side = side_of(size)
    if side is None:
        return free[:k].astype(np.int32)
    found = distances(free, side)
    centre = np.sort(found, axis=1)[:, :k].sum(1).argmin()
    return np.sort(free[np.argsort(found[centre], kind="stable")[:k]]).astype(np.int32)


def widened(side: int, wider: int) -> np.ndarray:
    """int[side^2]: where each component of a torus lies on a wider one: in its row and its column.

    Neighbours stay neighbours but across the old edges, which the new rows and columns part.
    """
    rows, columns = np.divmod(np.arange(side * side), side)
    return rows * wider + columns


def larger(size: int, least: int, divisor: int = 1) -> tuple[int, np.ndarray]:
    """The size of a pool that has grown, and the places int[size] of its old components.

    Args:
      size: H; a torus stays one.
      least: components that it has to have.
      divisor: the new size is a multiple of it.
    """
    side = side_of(size)
    if side is None:
        return math.ceil(least / divisor) * divisor, np.arange(size)
    wider = math.isqrt(least - 1) + 1
    while wider * wider % divisor:
        wider += 1
    return wider * wider, widened(side, wider)
