"""Assertions that say what was expected, and that also run under ``python -O``."""

from typing import Any

import jax
import numpy as np


def expect(fits: Any, otherwise: str) -> None:
    """Raises AssertionError with the message ``otherwise`` if ``fits`` is false."""
    if not fits:
        raise AssertionError(otherwise)


def expect_near(found: Any, wanted: Any, what: str, *, rtol: float = 1e-5, atol: float = 0.0) -> None:
    """Raises AssertionError if two arrays differ by more than rounding."""
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol, err_msg=what)


def expect_equal(found: Any, wanted: Any, what: str) -> None:
    """Raises AssertionError if two trees of arrays differ in structure or in any bit; nan equals nan."""
    expect_alike(found, wanted, what)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(_plain(one), _plain(other), err_msg=what)


def expect_alike(found: Any, wanted: Any, what: str) -> None:
    """Raises AssertionError if two trees of arrays differ in structure, shapes or dtypes."""
    structures = jax.tree.structure(found), jax.tree.structure(wanted)
    expect(structures[0] == structures[1], f"{what}: structure {structures[0]}, expected {structures[1]}")
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        kinds = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in (one, other)]
        expect(kinds[0] == kinds[1], f"{what}: {jax.tree_util.keystr(path)} is {kinds[0]}, expected {kinds[1]}")


def _plain(leaf: Any) -> np.ndarray:
    typed = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if typed else leaf)
