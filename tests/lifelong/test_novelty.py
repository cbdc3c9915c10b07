"""Is it one of mine, and has something changed: held to the error rates that the tests are designed for."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from ftn_jax.lifelong.novelty import (
    LEVEL,
    RUN_LENGTH,
    Changes,
    Memory,
    at_home,
    cusum_threshold,
    judge,
    moments,
    upper_bound,
)


@pytest.mark.parametrize(("sizes", "count"), [((16,), 16), ((16, 16), 16), ((16, 16), 4), ((16, 16), 64), ((4, 4), 4)])
def test_a_mask_turns_its_own_task_down_as_rarely_as_designed(sizes, count):
    """Examples of one task, many times: of the next ones ``LEVEL`` exceed the bound, whatever mean and spread."""
    rng, trials = np.random.default_rng(0), 20_000
    refused = 0
    for _ in range(trials):
        own = [moments(rng.normal(-1.7, 0.6, size)) for size in sizes]
        refused += rng.normal(-1.7, 0.6, count).mean() > upper_bound(own, count)
    assert LEVEL / 2 < refused / trials < 2 * LEVEL


def test_the_bound_is_students_prediction_interval():
    own = np.array([1.0, 1.2, 0.9, 1.1])
    expected = own.mean() + stats.t.ppf(1 - LEVEL, 3) * own.std(ddof=1) * np.sqrt(1 / 8 + 1 / 4)
    assert upper_bound([moments(own)], 8) == pytest.approx(expected)
    assert upper_bound([], 8) == upper_bound([moments([2.0])], 8) == np.inf


def remains(loss, share=0.0):
    """Of five examples, [2, 5]."""
    return np.array([loss, share])[:, None] + np.array([-0.3, 0.0, 0.3, 0.1, -0.1])


def sample(*levels):
    return [moments(row) for row in remains(*levels)]


def test_the_best_of_the_masks_that_fit_is_taken_and_none_if_none_does():
    own = [[sample(level)] * 2 for level in (0.0, 0.7, -2.3)]
    assert at_home([remains(0.0), remains(0.7), remains(1.1)], own) == 0
    assert at_home([remains(2.2), remains(0.7), remains(1.1)], own) == 1
    assert at_home([remains(2.2)] * 3, own) is None
    assert at_home([remains(2.2), remains(-0.9), remains(-1.2)], own) == 1  # the third has the least, far from its own
    assert at_home([], []) is None


def test_a_mask_turns_down_what_either_measure_does():
    own = [[sample(1.0, -1.0)] * 2]
    assert at_home([remains(1.0, -1.0)], own) == at_home([remains(-5.0, -5.0)], own) == 0
    assert at_home([remains(3.0, -1.0)], own) is at_home([remains(1.0, 1.0)], own) is None
    # Each at half the level: no more are turned down together than `LEVEL`.
    for measure in range(2):
        bound = upper_bound([moments(remains(0.0)[0])] * 2, 5, LEVEL / 2)
        for excess, expected in ((-1e-6, 0), (1e-6, None)):
            levels = np.array([1.0, -1.0])
            levels[measure] += bound - np.mean(remains(0.0)[0]) + excess
            assert at_home([remains(*levels)], own) is expected


def alarms(level: float, steps: int, trials: int, at: int = 10**9, rise: float = 0.0) -> list[int | None]:
    rng, found = np.random.default_rng(1), []
    for _ in range(trials):
        losses = np.exp(rng.normal(level, 0.4, steps) + rise * (np.arange(steps) >= at))
        changes, first = Changes(), None
        for start in range(0, steps, 10):
            alarm = changes.update(losses[start : start + 10])
            if alarm is not None:
                first = start + alarm
                break
        found.append(first)
    return found


def test_false_alarms_are_as_far_apart_as_designed():
    found = alarms(-2.0, 4000, 60)
    watched = sum(4000 if alarm is None else alarm for alarm in found)
    count = sum(alarm is not None for alarm in found)
    assert 0.4 * RUN_LENGTH < watched / count < 3 * RUN_LENGTH


@pytest.mark.parametrize(("rise", "longest"), [(4.0, 2), (1.5, 6), (1.0, 15)])
def test_a_change_is_noticed_soon(rise, longest):
    """A rise by 10, 4 and 2.5 standard deviations of the log loss."""
    found = alarms(-2.0, 400, 200, at=200, rise=rise)
    early = [alarm for alarm in found if alarm is not None and alarm < 200]
    assert len(early) <= 10
    delays = [alarm - 200 + 1 for alarm in found if alarm is not None and alarm >= 200]
    assert len(delays) + len(early) == 200 and np.quantile(delays, 0.95) <= longest


def test_a_falling_loss_raises_no_alarm():
    rng = np.random.default_rng(2)
    for _ in range(50):
        steps = np.arange(200)
        losses = np.exp(1.5 - 4 * (1 - np.exp(-steps / 40)) + rng.normal(0, 0.3, 200))
        assert Changes().update(losses) is None


@pytest.mark.parametrize(("drift", "threshold"), [(0.25, 8.01), (0.5, 4.77), (0.75, 3.34), (1.0, 2.52)])
def test_the_threshold_is_near_the_exact_one(drift, threshold):
    """Hawkins (1993), as in Montgomery: 370 steps between false alarms of either side are 740 between those of one."""
    assert cusum_threshold(740.0, drift) == pytest.approx(threshold, abs=0.05)


def test_an_alarm_drops_the_newest_losses_and_a_memory_outlives_json():
    memory, own = Memory(), sample(0.0)
    memory.add()
    for level in (2.2, 2.1, 0.0, 0.0, 0.0):
        memory.note(remains(level))
    assert memory.own[0] == [own] * 3 and memory.settled(0) == [own] * 2
    memory.add()
    assert memory.current == 1 and memory.changes == Changes() and memory.settled(0) == [own] * 3
    for level in (0.0, 0.0, 3.9):  # the change came just before the last
        memory.note(remains(level))
    assert memory.decide([remains(3.7), remains(0.0)]) == 1  # a false alarm: nothing is dropped
    assert memory.own[1][-1] == sample(3.9)
    assert memory.decide([remains(4.6), remains(3.7)]) is None
    assert memory.own[1] == [own] * 2
    memory.changes.update([1.0] * 25)
    again = Memory.of(json.loads(json.dumps(dataclasses.asdict(memory))))
    assert again == memory and isinstance(again.changes, Changes)


def test_decisions_are_held_to_the_stream():
    blocks = ["a", "b", "a", "a", "c", "b"]

    def event(block, step, mask, new=False):
        return {"block": block, "step": step, "mask": mask, "new": new}

    perfect = [event(0, 0, 0, True), event(1, 2, 1, True), event(2, 3, 0), event(4, 1, 2, True), event(5, 4, 1)]
    assert judge(perfect, blocks) == {
        "right": 5, "wrong": 0, "missed": 0, "false_alarms": 0, "delays": [2, 3, 1, 4], "masks": 3, "tasks": 3,
    }  # fmt: skip
    poor = [
        event(0, 0, 0, True),
        event(0, 30, 0),  # a false alarm, after which it stays: right
        event(1, 2, 0),  # wrong: b is not a
        event(2, 3, 1, True),  # wrong: a has a mask
        event(3, 9, 2, True),  # a false alarm, and wrong
        event(5, 4, 3, True),  # right; c was missed
    ]
    assert judge(poor, blocks) == {
        "right": 3, "wrong": 4, "missed": 1, "false_alarms": 2, "delays": [2, 3, 4], "masks": 4, "tasks": 3,
    }  # fmt: skip
