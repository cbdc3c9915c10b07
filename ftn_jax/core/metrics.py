"""Means, forgetting, transfer and mask overlap, computed from matrices of results.

A matrix R is float [N, N]: R[i, j] is the metric on task j after training through task i. Only forward transfer reads
cells above the diagonal, so a matrix without these scores may hold None or nan there. Undefined results are None.

b is float [N]: b[j] is the metric on task j of the untrained model, in which no component answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

PROTOCOLS = ("stored", "reconfig")


class Metric(NamedTuple):
    """How a stream is measured: a sum over a task's examples divided by a count, both computed by the pool."""

    label: str  # in tables and figures
    lower_is_better: bool
    unit: str  # in words
    fm_note: str  # explains `fm` in the report
    fm_is_rise: bool = False  # whether `fm` is `fm_rise` rather than the peak minus the final value

    @property
    def heading(self) -> str:
        """The heading of a column, with an arrow that points up if higher is better, else down."""
        return f"{self.label} {'↓' if self.lower_is_better else '↑'}"


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        label="ACC",
        lower_is_better=False,
        unit="share of examples",
        fm_note="FM is the fall in accuracy on prior tasks since its highest value; fm_rise is the same.",
    ),
    "mse": Metric(
        label="MSE",
        lower_is_better=True,
        unit="squared error per example",
        fm_note="FM is the paper's, peak MSE minus final MSE on prior tasks, which is not forgetting; "
        "fm_rise is the rise above the lowest MSE.",
    ),
    "cross_entropy": Metric(
        label="CE",
        lower_is_better=True,
        unit="nats per target token",
        fm_note="CE in nats per target token. FM is the rise in CE on prior tasks above the lowest "
        "level they reached; fm_rise is the same.",
        fm_is_rise=True,
    ),
}
"""The metrics, by their names in `results.json`."""


def metric_of(name: str) -> Metric:
    """The metric of this name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in METRICS:
        raise ValueError(f"metric is {name!r}, expected one of {', '.join(METRICS)}")
    return METRICS[name]


def final(matrix: ArrayLike) -> float | None:
    """Mean over tasks of the last row of R [N, N], in the metric's unit."""
    return _mean(np.asarray(matrix, float)[-1])


def fm(matrix: ArrayLike, metric: str) -> float | None:
    """Forgetting FM as the paper's table for this metric defines it, mean over prior tasks j < N - 1.

    The best is over the rows in which a task was scored.

    Accuracy (Table 1) and mse (Table 2): max_{i>=j} R[i, j] - R[N-1, j]. For mse, where lower is better, this does not
    measure forgetting: read `fm_rise` beside it. Cross-entropy (Table 3): `fm_rise`.

    Args:
        matrix: R, [N, N].
        metric: a name in `METRICS`.

    Returns:
        FM, or None if there is only one task.

    Raises:
        ValueError: unknown metric.
    """
    if metric_of(metric).fm_is_rise:
        return fm_rise(matrix, metric)
    return _mean([np.fmax.reduce(column) - column[-1] for column in _prior(matrix)])


def fm_rise(matrix: ArrayLike, metric: str) -> float | None:
    """Drop in performance from the best of R[i>=j, j] to the last row, mean over prior tasks j < N - 1; at least 0.

    Higher is better: max_{i>=j} R[i, j] - R[N-1, j]. Lower is better: R[N-1, j] - min_{i>=j} R[i, j].
    Arguments, Returns and Raises as in `fm`.
    """
    if metric_of(metric).lower_is_better:
        return _mean([column[-1] - np.fmin.reduce(column) for column in _prior(matrix)])
    return _mean([np.fmax.reduce(column) - column[-1] for column in _prior(matrix)])


def bwt(matrix: ArrayLike, metric: str) -> float | None:
    """Backward transfer: mean over prior tasks of R[N-1, j] - R[j, j], negated for errors so that higher is better.

    Arguments, Returns and Raises as in `fm`.
    """
    sign = -1.0 if metric_of(metric).lower_is_better else 1.0
    return _mean([sign * (column[-1] - column[0]) for column in _prior(matrix)])


def fwt(matrix: ArrayLike, untrained: ArrayLike | None, metric: str) -> float | None:
    """Forward transfer (Lopez-Paz and Ranzato, 2017): mean over tasks j > 0 of R[j-1, j] - b[j].

    What a task gains from the earlier ones before it is trained itself. Negated for errors so that higher is better.

    Args:
        matrix: R, [N, N].
        untrained: b, [N]; None if nobody measured it.
        metric: a name in `METRICS`.

    Returns:
        FWT, or None if there is only one task, or if a task was not scored before its own training.

    Raises:
        ValueError: unknown metric.
    """
    sign = -1.0 if metric_of(metric).lower_is_better else 1.0
    if untrained is None:
        return None
    return _mean(sign * (np.diagonal(np.asarray(matrix, float), 1) - np.asarray(untrained, float)[1:]))


def anytime(matrix: ArrayLike) -> float | None:
    """Average anytime accuracy (Caccia et al.) or error: mean over i of the mean of R[i, j] over the tasks j <= i.

    In the metric's unit, as `final`, which is the last of these means.
    """
    array = np.asarray(matrix, float)
    return _mean([row[: i + 1].mean() for i, row in enumerate(array)])


def overlap(masks: ArrayLike, size: int | None = None) -> np.ndarray:
    """Pairwise overlap |m_i n m_j| / k of masks given as active indices (paper's Table 5).

    Args:
        masks: int [..., N, k]; each row has the distinct active indices of one task's mask.
        size: H; indices that are not below it are padding.

    Returns:
        float [..., N, N], 1 on the diagonal, less where there is padding.
    """
    active = np.asarray(masks)
    member = np.zeros((*active.shape[:-1], active.max() + 1))
    np.put_along_axis(member, active, 1.0, axis=-1)
    member = member[..., :size]
    return member @ member.swapaxes(-1, -2) / active.shape[-1]


def decomposition(stored: ArrayLike, reconfig: ArrayLike, reference: ArrayLike, metric: str) -> dict:
    """Splits a method's drop on prior tasks into mask overlap in training and failed recall (appendix B, Table 4).

    With p(j) the last row's metric on a prior task j < N - 1: overlap is reference p(j) - stored p(j), recall is
    stored p(j) - reconfig p(j), negated for errors so that higher is worse; both are means over prior tasks.

    Args:
        stored: the method's R under the stored protocol, [E, N, N].
        reconfig: its R under the reconfig protocol, [E, N, N].
        reference: the oracle's stored R, [E, N, N].
        metric: a name in `METRICS`.

    Returns:
        {"overlap": {"mean", "std"}, "recall": {"mean", "std"}} over seeds.

    Raises:
        ValueError: unknown metric.
    """
    sign = -1.0 if metric_of(metric).lower_is_better else 1.0
    best, kept, found = (np.asarray(m, float)[:, -1, :-1] for m in (reference, stored, reconfig))
    parts = {"overlap": sign * (best - kept), "recall": sign * (kept - found)}
    return {name: mean_std([_mean(seed) for seed in drops]) for name, drops in parts.items()}


def mean_std(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample std (ddof = 1) over E seeds, as {"mean", "std"}.

    Both are None if any value is None; std is None for one seed.
    """
    if any(value is None for value in values):
        return {"mean": None, "std": None}
    array = np.asarray(values, float)
    return {"mean": float(array.mean()), "std": float(array.std(ddof=1)) if len(array) > 1 else None}


def final_summary(matrices: ArrayLike) -> dict:
    """The matrices of all seeds and the mean of their last rows, ready for JSON.

    Args:
        matrices: [E, N, N], one R per seed.

    Returns:
        {"matrix": [E, N, N] with None for nan, "final": {"mean", "std"}}.
    """
    seeds = np.asarray(matrices, float)
    return {
        "matrix": plain(seeds),
        "final": mean_std([final(matrix) for matrix in seeds]),
    }


def plain(values: np.ndarray) -> list:
    """An array as nested lists, ready for JSON, with None for nan."""
    return [plain(row) if values.ndim > 1 else _defined(float(row)) for row in values]


def summarise(matrices: ArrayLike, metric: str, untrained: ArrayLike | None = None) -> dict:
    """The block of `results.json` for one method and protocol, ready for JSON.

    Args:
        matrices: [E, N, N], one R per seed.
        metric: a name in `METRICS`.
        untrained: [E, N], one b per seed, if it was measured; without it "fwt" is undefined.

    Returns:
        `final_summary`, plus "fm", "fm_rise", "bwt", "fwt" and "anytime", each {"mean", "std"}.

    Raises:
        ValueError: unknown metric.
    """
    seeds = np.asarray(matrices, float)
    before = [None] * len(seeds) if untrained is None else np.asarray(untrained, float)
    return final_summary(seeds) | {
        "fm": mean_std([fm(matrix, metric) for matrix in seeds]),
        "fm_rise": mean_std([fm_rise(matrix, metric) for matrix in seeds]),
        "bwt": mean_std([bwt(matrix, metric) for matrix in seeds]),
        "fwt": mean_std([fwt(matrix, b, metric) for matrix, b in zip(seeds, before, strict=True)]),
        "anytime": mean_std([anytime(matrix) for matrix in seeds]),
    }


def _prior(matrix: ArrayLike) -> list[np.ndarray]:
    """The columns R[j:, j] of the prior tasks j < N - 1."""
    array = np.asarray(matrix, float)
    return [array[j:, j] for j in range(len(array) - 1)]


def _mean(values: Sequence[float] | np.ndarray) -> float | None:
    return _defined(float(np.mean(values))) if len(values) else None


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value
