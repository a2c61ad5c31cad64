"""Statistics of a few runs, as Agarwal et al. 2021 (https://arxiv.org/abs/2108.13264) recommend them.

`scores` is one array per task (environment), of its runs' scores; tasks may have different numbers of runs. Intervals are
of the percentile bootstrap, stratified: runs are drawn again within each task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cleanrl_utils.report.power import CONFIDENCE, least_p

Scores = Sequence[np.ndarray]
RESAMPLES = 10_000
BATCH = 500
"""Resamples at a time: what bounds the memory."""


def iqm(scores: Scores) -> float:
    """Interquartile mean: of the middle half of all scores, where tasks with more runs weigh more."""
    return float(stats.trim_mean(np.concatenate(scores), 0.25))


def interval(scores: Scores, statistic: Callable[..., np.ndarray], seed: int = 0) -> np.ndarray:
    """The 95% interval of `statistic(*arrays, axis)`, shape (2, ...). Raises `ValueError` where a task has one run."""
    if min(map(len, scores)) < 2:
        raise ValueError("one run says nothing of the spread of runs")
    result = stats.bootstrap(
        tuple(scores), statistic, n_resamples=RESAMPLES, batch=BATCH, confidence_level=CONFIDENCE,
        vectorized=True, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return np.array(result.confidence_interval)


def task_mean(*scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean over tasks of each one's mean: all tasks weigh alike, however many runs they have."""
    return np.mean([one.mean(axis=axis) for one in scores], axis=0)


def mean_interval(scores: Scores) -> np.ndarray:
    """The 95% interval of the mean over tasks."""
    return interval(scores, task_mean)


def iqm_interval(scores: Scores) -> np.ndarray:
    """The 95% interval of the interquartile mean."""
    return interval(scores, lambda *samples, axis: stats.trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis))


def difference_interval(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The 95% interval of the mean of A less that of B, on one task."""
    return interval([a, b], lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis))


def profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Performance profile: the share of runs whose score is above each threshold (T,), averaged over tasks."""
    return task_mean(*(np.greater.outer(one, thresholds) for one in scores))


def profile_interval(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """The 95% interval of the performance profile at each threshold, (2, T)."""
    return interval([np.greater.outer(one, thresholds).astype(float) for one in scores], task_mean)


def improvement(a: Scores, b: Scores) -> float:
    """The probability that a run of A beats one of B on the same task, ties counting half, averaged over tasks."""
    return float(np.mean([_beats(x, y) for x, y in zip(a, b, strict=True)]))


def improvement_interval(a: Scores, b: Scores) -> np.ndarray:
    """The 95% interval of the probability of improvement."""

    def averaged(*samples: np.ndarray, axis: int) -> np.ndarray:  # noqa: ARG001 - scipy has the runs in the last one
        return np.mean([_beats(x, y) for x, y in zip(samples[: len(a)], samples[len(a) :], strict=True)], axis=0)

    return interval([*a, *b], averaged)


def _beats(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The share of pairs in which x is above y, over the last axes."""
    difference = x[..., :, None] - y[..., None, :]
    return np.mean(0.5 + 0.5 * np.sign(difference), axis=(-2, -1))


def permutation_p(a: Scores, b: Scores, seed: int = 0) -> float:
    """How often shuffled labels, within each task, are as far from a probability of improvement of 1/2: a p-value.

    The bootstrap's interval is too narrow for a few runs; this is not: 3 runs beside 3 of one task give 0.1 at the least.
    """
    rng = np.random.default_rng(seed)
    observed = abs(improvement(a, b) - 0.5)
    drawn = np.zeros(RESAMPLES)
    for x, y in zip(a, b, strict=True):
        runs = rng.permuted(np.tile(np.concatenate([x, y]), (RESAMPLES, 1)), axis=1)
        drawn += (_beats(runs[:, : len(x)], runs[:, len(x) :]) - 0.5) / len(a)
    return float((np.sum(np.abs(drawn) >= observed - 1e-9) + 1) / (RESAMPLES + 1))


@dataclass(frozen=True)
class Comparison:
    """How two settings compare, over the tasks that both have."""

    improvement: float
    """probability that a run of A beats one of B"""
    bounds: np.ndarray
    """its 95% interval"""
    p: float
    least_p: float
    """the lowest that so many runs can have"""

    @property
    def verdict(self) -> str:
        """Whether A is better than B, worse, or not told apart: by the interval and the p-value both."""
        low, high = self.bounds
        if self.least_p >= 1 - CONFIDENCE:
            return "too few runs"
        if low <= 0.5 <= high or self.p >= 1 - CONFIDENCE:
            return "not told apart"
        return "better" if low > 0.5 else "worse"


def compare(a: Scores, b: Scores) -> Comparison:
    """Compare two settings. Raises `ValueError` where a task has one run."""
    least = least_p([(len(x), len(y)) for x, y in zip(a, b, strict=True)])
    return Comparison(improvement(a, b), improvement_interval(a, b), permutation_p(a, b), least)


def held(x: np.ndarray, values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The latest value at each point of `grid`, none of which is before x[0]."""
    return values[np.searchsorted(x, grid, side="right") - 1]
