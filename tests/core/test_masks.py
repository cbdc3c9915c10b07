"""Masks that nobody searches for."""

import numpy as np

from ftn_jax.core.masks import all_ones, fixed_block


def test_fixed_blocks_part_the_pool():
    blocks = [fixed_block(task, 3) for task in range(4)]
    np.testing.assert_array_equal(blocks[2], [6, 7, 8])
    np.testing.assert_array_equal(np.concatenate(blocks), all_ones(12))
