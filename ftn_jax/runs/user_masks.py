"""Masks that a user hands to a trained pool, checked once and turned into active indices."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.streams.text.pairs import shown


def active_of(mask: Any, stored: Mapping[str, np.ndarray], size: int) -> np.ndarray:
    """The sorted active indices int32[k] of one mask.

    Args:
      mask: a recovery, a task's name, indices, or a binary mask [H] of bools or of zeros and ones.
      stored: task -> active indices.
      size: H.

    Raises:
      InputError: the mask is none of these, or has no components.
    """
    if hasattr(mask, "active"):
        mask = mask.active
    if isinstance(mask, str):
        if mask not in stored:
            raise InputError(f"no task is named {mask!r}, known: {', '.join(stored) or '-'}")
        mask = stored[mask]
    try:
        values = np.asarray(mask)
    except ValueError as error:  # rows of different length
        raise InputError(f"a mask is {shown(mask)}, expected indices or a mask of {size} components") from error
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        raise InputError(f"a mask is {shown(mask)}, expected indices or a mask of {size} components")
    binary = bool(np.isin(values, (0, 1)).all())
    if len(values) and (values.dtype.kind in "bf" or (len(values) == size > 2 and binary)):
        if len(values) != size:
            raise InputError(f"a mask has {len(values)} entries, expected {size}, one for each component")
        if not binary:
            raise InputError("a mask has entries that are neither 0 nor 1, expected a binary one")
        values = np.flatnonzero(values)
    if not len(values):
        raise InputError("a mask has no components, expected at least one (None is the base alone)")
    outside = values[(values < 0) | (values >= size)]
    if len(outside):
        raise InputError(f"a mask has component {outside[0]}, expected 0 to {size - 1}")
    if len(np.unique(values)) < len(values):
        raise InputError("a mask has a component twice, expected different ones")
    return np.sort(values).astype(np.int32)


def routing_of(mask: Any, stored: Mapping[str, np.ndarray], size: int, rows: int) -> np.ndarray:
    """Active indices int32[k] of one mask for all rows, or int32[B, k] of one mask for each row, padded with H.

    Args:
      mask: one mask as in `active_of`, or a sequence of them.
      stored: task -> active indices.
      size: H.
      rows: B.

    Raises:
      InputError: the number of masks is not B, or see `active_of`.
    """
    if not _is_rows(mask):
        return active_of(mask, stored, size)
    masks = [active_of(one, stored, size) for one in mask]
    if len(masks) != rows:
        raise InputError(f"{len(masks)} masks are given for {rows} rows, expected one, or one for each row")
    longest = max(map(len, masks))
    return np.stack([np.pad(one, (0, longest - len(one)), constant_values=size) for one in masks])


def variants_of(mask: Any, stored: Mapping[str, int]) -> int | list[int]:
    """The variant of the params that a mask belongs to; for several masks, a list of variants.

    Args:
      mask: as in `routing_of`, or None.
      stored: task -> its variant.

    Raises:
      InputError: a mask that is given by its components alone, if these do not determine the variant.
    """
    if mask is None:
        return 0
    if _is_rows(mask):
        return [variants_of(one, stored) for one in mask]  # pyright: ignore
    if hasattr(mask, "variant"):
        return mask.variant  # pyright: ignore
    if isinstance(mask, str):
        return stored.get(mask, 0)
    if len(set(stored.values())) > 1:
        raise InputError(
            "a mask is given by its components, which tasks share, expected the name of a task or a recovery"
        )
    return 0


def _is_rows(mask: Any) -> bool:
    """Whether these are several masks: a sequence of anything but numbers."""
    if isinstance(mask, str) or hasattr(mask, "active"):
        return False
    if isinstance(mask, np.ndarray | jax.Array):
        return mask.ndim > 1
    if not isinstance(mask, Sequence):
        return False
    return any(isinstance(one, str | Sequence) or hasattr(one, "active") or np.ndim(one) for one in mask)
