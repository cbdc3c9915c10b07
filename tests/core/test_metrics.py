"""Metrics against values worked out by hand."""

import json

import numpy as np
import pytest

from ftn_jax.core import metrics

NAN = float("nan")

# Column 0 is best after task 1, column 1 after its own training.
ACCURACY = [
    [0.75, 0.50, 0.25],
    [0.875, 0.75, 0.50],
    [0.50, 0.625, 1.00],
]
# Column 0: 1.0 -> 0.5 -> 3.0; column 1: 2.0 -> 1.5. The 9.0 is above the diagonal and must not count.
ERROR = [
    [1.0, 9.0, 9.0],
    [0.5, 2.0, 9.0],
    [3.0, 1.5, 0.25],
]


def test_final_is_the_mean_of_the_last_row():
    assert metrics.final(ACCURACY) == pytest.approx((0.50 + 0.625 + 1.00) / 3)


def test_accuracy():
    # Falls since the best: 0.875 - 0.50 and 0.75 - 0.625.
    assert metrics.fm(ACCURACY, "accuracy") == pytest.approx((0.375 + 0.125) / 2)
    assert metrics.fm_rise(ACCURACY, "accuracy") == pytest.approx((0.375 + 0.125) / 2)
    # 0.50 - 0.75 and 0.625 - 0.75.
    assert metrics.bwt(ACCURACY, "accuracy") == pytest.approx((-0.25 - 0.125) / 2)


# R[0, 1] and R[1, 2] against b[1] and b[2]; of the first task b does not count.
@pytest.mark.parametrize(
    "matrix, untrained, metric, gain",
    [
        (ACCURACY, [9.0, 0.25, 0.625], "accuracy", ((0.50 - 0.25) + (0.50 - 0.625)) / 2),
        (ERROR, [NAN, 10.0, 8.5], "mse", ((10.0 - 9.0) + (8.5 - 9.0)) / 2),
        (ERROR, [NAN, 10.0, 8.5], "cross_entropy", ((10.0 - 9.0) + (8.5 - 9.0)) / 2),
    ],
)
def test_forward_transfer_is_the_gain_before_a_task_s_own_training(matrix, untrained, metric, gain):
    assert metrics.fwt(matrix, untrained, metric) == pytest.approx(gain)
    rest = np.array(matrix)
    rest[0, 2], rest[np.tril_indices(3)] = 7.0, 7.0  # nothing but the two cells above the diagonal counts
    assert metrics.fwt(rest, untrained, metric) == pytest.approx(gain)


def test_forward_transfer_is_undefined_where_a_score_is_missing():
    b = [0.5, 0.5, 0.5]
    assert metrics.fwt(ACCURACY, None, "accuracy") is None
    one_of_two = [[1.0, NAN, NAN], [0.5, 0.5, 0.75], [1.0, 1.0, 1.0]]
    seen = [[1.0, None, None], [0.5, 0.5, None], [1.0, 1.0, 1.0]]
    assert metrics.fwt(one_of_two, b, "accuracy") is None and metrics.fwt(seen, b, "accuracy") is None
    assert metrics.fwt(ACCURACY, [0.5, 0.5, NAN], "accuracy") is None
    assert metrics.fwt([[0.5]], [0.25], "accuracy") is None


def test_anytime_is_the_mean_of_the_means_over_tasks_seen():
    rows = 0.75, (0.875 + 0.75) / 2, (0.50 + 0.625 + 1.00) / 3
    assert metrics.anytime(ACCURACY) == pytest.approx(sum(rows) / 3)
    rows = 1.0, (0.5 + 2.0) / 2, (3.0 + 1.5 + 0.25) / 3
    assert metrics.anytime(ERROR) == pytest.approx(sum(rows) / 3)
    assert metrics.anytime([[1.0, None, NAN], [0.5, 2.0, None], [3.0, 1.5, 0.25]]) == metrics.anytime(ERROR)
    assert metrics.anytime([[0.5]]) == 0.5
    assert metrics.anytime([[0.5, NAN], [NAN, 0.5]]) is None


def test_mse_fm_is_peak_minus_final_and_no_forgetting():
    assert metrics.fm(ERROR, "mse") == pytest.approx(((3.0 - 3.0) + (2.0 - 1.5)) / 2)
    assert metrics.fm_rise(ERROR, "mse") == pytest.approx(((3.0 - 0.5) + (1.5 - 1.5)) / 2)
    assert metrics.bwt(ERROR, "mse") == pytest.approx((-(3.0 - 1.0) - (1.5 - 2.0)) / 2)


def test_cross_entropy_fm_is_the_rise_above_the_lowest():
    assert metrics.fm(ERROR, "cross_entropy") == pytest.approx(((3.0 - 0.5) + (1.5 - 1.5)) / 2)
    assert metrics.fm_rise(ERROR, "cross_entropy") == metrics.fm(ERROR, "cross_entropy")
    assert metrics.bwt(ERROR, "cross_entropy") == metrics.bwt(ERROR, "mse")


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_an_unchanged_column_gives_exactly_zero(metric):
    matrix = [[0.1, NAN, NAN], [0.1, 0.7, NAN], [0.1, 0.7, 0.3]]
    assert metrics.fm(matrix, metric) == 0.0
    assert metrics.fm_rise(matrix, metric) == 0.0
    assert metrics.bwt(matrix, metric) == 0.0


def test_stored_matrices_may_be_undefined_above_the_diagonal():
    stored = [[1.0, None, None], [0.5, 2.0, None], [3.0, 1.5, 0.25]]
    for function in (metrics.fm, metrics.fm_rise, metrics.bwt):
        assert function(stored, "cross_entropy") == function(ERROR, "cross_entropy")
    assert metrics.final(stored) == metrics.final(ERROR)


def test_one_task_has_a_final_value_and_no_forgetting():
    summary = metrics.summarise([[[0.5]], [[0.25]]], "accuracy", [[0.5], [0.5]])
    assert summary["final"]["mean"] == summary["anytime"]["mean"] == pytest.approx(0.375)
    for key in ("fm", "fm_rise", "bwt", "fwt"):
        assert summary[key] == {"mean": None, "std": None}


def test_an_undefined_last_row_is_null():
    matrix = [[1.0, NAN], [NAN, 0.5]]
    assert metrics.final(matrix) is None
    assert metrics.fm(matrix, "mse") is None


def test_unknown_metric():
    for function in (metrics.fm, metrics.fm_rise, metrics.bwt):
        with pytest.raises(ValueError, match=r"'loss'.*accuracy, mse, cross_entropy"):
            function(ACCURACY, "loss")
    with pytest.raises(ValueError, match="'loss'"):
        metrics.fwt(ACCURACY, None, "loss")


def test_std_is_the_sample_std():
    # 1 and 4 around 2.5: sqrt((1.5**2 + 1.5**2) / (2 - 1)).
    assert metrics.mean_std([1.0, 4.0]) == {"mean": 2.5, "std": pytest.approx(4.5**0.5)}
    assert metrics.mean_std([3.0]) == {"mean": 3.0, "std": None}
    assert metrics.mean_std([3.0, None]) == {"mean": None, "std": None}


def test_summarise_over_seeds_is_ready_for_json():
    second = np.array(ERROR)
    second[2, 0] = 5.0  # final 6.75 / 3, rises 4.5 and 0, bwt -4 and 0.5
    first = np.array(ERROR)
    first[0, 2] = NAN
    b = [[NAN, 10.0, 8.5], [NAN, 9.0, 8.0]]  # gains before training 1 and -0.5, 0 and -1
    summary = json.loads(json.dumps(metrics.summarise([first, second], "cross_entropy", b), allow_nan=False))
    assert summary["matrix"][0] == [[1.0, 9.0, None], [0.5, 2.0, 9.0], [3.0, 1.5, 0.25]]
    assert summary["matrix"][1][2] == [5.0, 1.5, 0.25]
    finals, rises, bwts = (4.75 / 3, 6.75 / 3), (1.25, 2.25), (-0.75, -1.75)
    anytimes = (1 + 1.25 + 4.75 / 3) / 3, (1 + 1.25 + 6.75 / 3) / 3
    told = {"final": finals, "fm": rises, "fm_rise": rises, "bwt": bwts, "fwt": (0.25, -0.5), "anytime": anytimes}
    for key, (one, other) in told.items():
        assert summary[key]["mean"] == pytest.approx((one + other) / 2)
        assert summary[key]["std"] == pytest.approx(abs(one - other) / 2**0.5)


def test_overlap_equals_set_intersections():
    masks = [[[0, 1, 2, 3], [2, 3, 4, 9], [5, 6, 7, 8]], [[7, 1, 2, 3], [1, 2, 3, 7], [3, 4, 5, 6]]]
    found = metrics.overlap(masks)
    assert found.shape == (2, 3, 3)
    for seed, tasks in enumerate(masks):
        for i, a in enumerate(tasks):
            for j, b in enumerate(tasks):
                assert found[seed, i, j] == len(set(a) & set(b)) / 4
    np.testing.assert_array_equal(metrics.overlap(masks[0]), found[0])


# Last rows of one seed; the numbers above them and the last task's column must not count.
STORED = [[9.0, NAN, NAN], [9.0, 9.0, NAN], [0.75, 0.625, 9.0]]
RECONFIG = [[9.0, 9.0, 9.0], [9.0, 9.0, 9.0], [0.5, 0.75, 9.0]]
REFERENCE = [[9.0, NAN, NAN], [9.0, 9.0, NAN], [1.0, 0.875, 5.0]]


def test_decomposition_by_hand():
    # Overlap: 1 - 0.75 and 0.875 - 0.625; recall: 0.75 - 0.5 and 0.625 - 0.75, where recovery beats the stored mask.
    found = metrics.decomposition([STORED], [RECONFIG], [REFERENCE], "accuracy")
    assert found == {"overlap": {"mean": 0.25, "std": None}, "recall": {"mean": 0.0625, "std": None}}


@pytest.mark.parametrize("metric", ["mse", "cross_entropy"])
def test_decomposition_of_an_error_counts_its_excess(metric):
    found = metrics.decomposition([STORED], [RECONFIG], [REFERENCE], metric)
    assert (found["overlap"]["mean"], found["recall"]["mean"]) == (-0.25, -0.0625)


@pytest.mark.parametrize("metric, sign", [("accuracy", 1), ("mse", -1)])
def test_the_parts_of_the_decomposition_add_up(metric, sign):
    """To what the reconfig protocol loses against the oracle on prior tasks; for each seed, so for mean and std."""
    stored, reconfig, reference = np.random.default_rng(0).uniform(size=(3, 4, 3, 3))
    parts = metrics.decomposition(stored, reconfig, reference, metric)
    losses = [
        sign * (np.mean(best[2][:2]) - np.mean(found[2][:2])) for best, found in zip(reference, reconfig, strict=True)
    ]
    assert parts["overlap"]["mean"] + parts["recall"]["mean"] == pytest.approx(np.mean(losses))
    overlaps = [
        sign * (np.mean(best[2][:2]) - np.mean(kept[2][:2])) for best, kept in zip(reference, stored, strict=True)
    ]
    assert parts["overlap"] == {
        "mean": pytest.approx(np.mean(overlaps)),
        "std": pytest.approx(np.std(overlaps, ddof=1)),
    }
    recalls = np.subtract(losses, overlaps)
    assert parts["recall"]["std"] == pytest.approx(np.std(recalls, ddof=1))


def test_an_oracle_against_itself_loses_nothing():
    found = metrics.decomposition([REFERENCE] * 2, [REFERENCE] * 2, [REFERENCE] * 2, "mse")
    assert found == {"overlap": {"mean": 0.0, "std": 0.0}, "recall": {"mean": 0.0, "std": 0.0}}


def test_decomposition_without_prior_tasks_or_of_an_unknown_metric():
    assert metrics.decomposition([[[0.5]]], [[[0.5]]], [[[0.5]]], "mse")["overlap"] == {"mean": None, "std": None}
    with pytest.raises(ValueError, match="'loss'"):
        metrics.decomposition([STORED], [RECONFIG], [REFERENCE], "loss")
