"""The torus: distances, blocks that lie together, places on a wider one; smoothing is in test_configurer.py."""

import numpy as np
import pytest
import toys

from ftn_jax.core.torus import compact, distances, larger, side_of, widened


def test_sides():
    assert [side_of(size) for size in (1, 2, 9, 575, 576, 10**14)] == [1, None, 3, None, 24, 10**7]


def test_distances_are_the_shortest_of_nine_copies():
    side = 5
    y, x = np.divmod(np.arange(side**2), side)
    for shown in ([0, 4, 20, 24], range(25)):
        places = np.array(shown)
        shifts = [(i, j) for i in (-side, 0, side) for j in (-side, 0, side)]
        expected = [
            [min((y[a] - y[b] + i) ** 2 + (x[a] - x[b] + j) ** 2 for i, j in shifts) for b in places] for a in places
        ]
        np.testing.assert_array_equal(distances(places, side), expected)
    assert distances(np.array([0, 24]), side).max() == 2  # opposite corners are neighbours


def test_blocks_are_free_and_of_one_piece():
    taken = np.zeros(64, bool)
    sizes = []
    for _ in range(7):
        block = compact(np.flatnonzero(~taken), 9, 64)
        assert len(set(block.tolist())) == 9 and not taken[block].any() and (np.diff(block) > 0).all()
        sizes.append(toys.blob_sizes(block, 8)[0])
        taken[block] = True
    assert sizes[:4] == [9] * 4  # as long as there is room for it
    assert compact(np.arange(4, 10), 3, 10).tolist() == [4, 5, 6]


def test_places_on_a_wider_torus():
    expected = [[0, 1, 2], [5, 6, 7], [10, 11, 12]]
    np.testing.assert_array_equal(widened(3, 5).reshape(3, 3), expected)


@pytest.mark.parametrize(
    ("size", "least", "divisor", "expected"),
    [
        (16, 24, 1, 25),
        (16, 25, 1, 25),
        (16, 26, 1, 36),
        (16, 24, 4, 36),
        (576, 864, 1, 900),
        (12, 18, 1, 18),
        (12, 21, 4, 24),
    ],
)
def test_a_larger_pool_keeps_the_order_of_its_components(size, least, divisor, expected):
    found, places = larger(size, least, divisor)
    assert found == expected and found >= least
    assert len(set(places.tolist())) == size and (np.diff(places) > 0).all() and places[-1] < found
