"""What a block's moving mask touched, by hand: two seeds, three tasks, eight components, two of them active."""

import json

import numpy as np

from ftn_jax.lifelong.touched import Touched

STORED = np.array([[[0, 1], [2, 3], [0, 2]], [[4, 5], [5, 6], [6, 7]]])  # [E, N, k]


def add(wandering, task, *spans):
    """``spans`` (steps, first seed's mask, second seed's mask), one after another, a chunk each; returns the steps."""
    done = 0
    for steps, *masks in spans:
        done += steps
        wandering.add(task, done, np.array([[mask] * steps for mask in masks]))
    return done


def test_components_are_counted_in_more_steps_than_each_limit():
    """20 and 100 steps are not more than 20 and 100."""
    wandering = Touched(2, 3, 8)
    add(wandering, 0, (20, [0, 1], [4, 5]), (1, [1, 2], [4, 5]))
    add(wandering, 1, (100, [2, 3], [4, 5]), (1, [3, 7], [6, 7]))
    add(wandering, 2, (1, [0, 2], [6, 7]))
    found = wandering.summary(STORED)
    assert found["more_than"] == [0, 20, 100]
    # Task 0: steps of the first seed 0: 20, 1: 21, 2: 1; of the second 4 and 5: 21.
    # Task 1: 2: 100, 3: 101, 7: 1; 4 and 5: 100, 6 and 7: 1. Task 2: two components once.
    assert found["touched"] == [
        [[3, 1, 0], [3, 2, 1], [2, 0, 0]],
        [[2, 2, 0], [4, 2, 0], [2, 0, 0]],
    ]


def test_the_share_of_earlier_masks_is_of_their_union():
    wandering = Touched(2, 3, 8)
    add(wandering, 0, (5, [0, 1], [4, 5]))
    add(wandering, 1, (30, [0, 6], [4, 6]), (5, [2, 3], [4, 5]))
    add(wandering, 2, (101, [1, 7], [0, 1]), (10, [0, 2], [6, 7]), (11, [2, 7], [6, 7]))
    # First seed. Task 1 against {0, 1}: 0 was active in 30 steps. Task 2 against {0, 1, 2, 3}: 1 in 101 steps, 0 in
    # 10, 2 in 21. Second seed. Task 1 against {4, 5}: 4 in 35, 5 in 5. Task 2 against {4, 5, 6}: 6 in 21.
    assert wandering.summary(STORED)["earlier"] == [
        [None, [0.5, 0.5, 0.0], [0.75, 0.5, 0.25]],
        [None, [1.0, 0.5, 0.0], [1 / 3, 1 / 3, 0.0]],
    ]


def test_the_path_is_the_first_seed_s_at_some_steps_whatever_the_chunks():
    """Step s has the mask {s mod 8, (s + 1) mod 8} in task 0, one more in task 1."""

    def masks(task, first, last):
        own = [sorted([(s + task) % 8, (s + task + 1) % 8]) for s in range(first, last + 1)]
        return np.array([own, [[0, 7]] * len(own)])

    shown = [1, 2, 5, 10, 20, 50, 100, 200]
    for ends in ([250], [1, 2, 49, 50, 51, 199, 250], range(50, 251, 50), range(1, 251)):
        wandering = Touched(2, 2, 8)
        for task in range(2):
            for first, last in zip([1, *[end + 1 for end in ends]], ends, strict=False):
                wandering.add(task, last, masks(task, first, last))
        found = wandering.summary(STORED[:, :2])
        assert found["steps"] == shown
        assert found["path"] == [[sorted([(s + t) % 8, (s + t + 1) % 8]) for s in shown] for t in range(2)]


def test_a_short_block_has_a_short_path():
    wandering = Touched(2, 1, 8)
    assert wandering.steps == []
    add(wandering, 0, (4, [0, 1], [2, 3]), (2, [5, 6], [2, 3]))
    assert wandering.steps == [1, 2, 5]
    assert wandering.summary(STORED[:, :1])["path"] == [[[0, 1], [0, 1], [5, 6]]]


def test_a_summary_is_ready_for_json():
    wandering = Touched(2, 3, 8)
    for task in range(3):
        add(wandering, task, (3, [0, 1], [4, 5]))
    found = wandering.summary(STORED)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
