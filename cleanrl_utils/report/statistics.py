"""Statistics of a few runs, as Agarwal et al. 2021 (https://arxiv.org/abs/2108.13264) recommend them.

`scores` is one array per task (environment), of its runs' scores; tasks may have different numbers of runs. Intervals are
from a stratified percentile bootstrap: runs are resampled within each task.
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
"""Resamples at a time, which limits the memory."""


def iqm(scores: Scores) -> float:
    """Return the interquartile mean: the mean of the middle half of all scores. Tasks with more runs weigh more."""
    return float(stats.trim_mean(np.concatenate(scores), 0.25))


def interval(scores: Scores, statistic: Callable[..., np.ndarray], seed: int = 0) -> np.ndarray:
    """Return the 95% interval of `statistic(*arrays, axis)`, (2, ...). Raises `ValueError` if a task has only one run."""
    if min(map(len, scores)) < 2:
        raise ValueError("one run says nothing of the spread of runs")
    result = stats.bootstrap(
        tuple(scores), statistic, n_resamples=RESAMPLES, batch=BATCH, confidence_level=CONFIDENCE,
        vectorized=True, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return np.array(result.confidence_interval)


def task_mean(*scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the mean over tasks of each task's mean: all tasks have equal weight, however many runs they have."""
    return np.mean([one.mean(axis=axis) for one in scores], axis=0)


def mean_interval(scores: Scores) -> np.ndarray:
    """Return the 95% interval of the mean over tasks."""
    return interval(scores, task_mean)


def iqm_interval(scores: Scores) -> np.ndarray:
    """Return the 95% interval of the interquartile mean."""
    return interval(scores, lambda *samples, axis: stats.trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis))


def difference_interval(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the 95% interval of the mean of A minus that of B, on one task."""
    return interval([a, b], lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis))


def profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Return the performance profile: the share of runs with a score above each threshold (T,), averaged over tasks."""
    return task_mean(*(np.greater.outer(one, thresholds) for one in scores))


def profile_interval(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Return the 95% interval of the performance profile at each threshold, (2, T)."""
    return interval([np.greater.outer(one, thresholds).astype(float) for one in scores], task_mean)


def improvement(a: Scores, b: Scores) -> float:
    """Return the probability that a run of A beats one of B on the same task, averaged over tasks; ties count half."""
    return float(np.mean([_beats(x, y) for x, y in zip(a, b, strict=True)]))


def improvement_interval(a: Scores, b: Scores) -> np.ndarray:
    """Return the 95% interval of the probability of improvement."""

    def averaged(*samples: np.ndarray, axis: int) -> np.ndarray:  # noqa: ARG001 - scipy has the runs in the last one
        return np.mean([_beats(x, y) for x, y in zip(samples[: len(a)], samples[len(a) :], strict=True)], axis=0)

    return interval([*a, *b], averaged)


def _beats(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the share of pairs in which x is above y, over the last axes."""
    difference = x[..., :, None] - y[..., None, :]
    return np.mean(0.5 + 0.5 * np.sign(difference), axis=(-2, -1))


def permutation_p(a: Scores, b: Scores, seed: int = 0) -> float:
    """Return a p-value: how often labels shuffled within each task give a probability of improvement as far from 1/2.

    With few runs the bootstrap's interval is too narrow; this test is safe: 3 runs against 3 on one task give 0.1 at least.
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
        """Whether A is better than B, worse, or not told apart, by both the interval and the p-value."""
        low, high = self.bounds
        if self.least_p >= 1 - CONFIDENCE:
            return "too few runs"
        if low <= 0.5 <= high or self.p >= 1 - CONFIDENCE:
            return "not told apart"
        return "better" if low > 0.5 else "worse"


def compare(a: Scores, b: Scores) -> Comparison:
    """Compare two settings. Raises `ValueError` if a task has only one run."""
    least = least_p([(len(x), len(y)) for x, y in zip(a, b, strict=True)])
    return Comparison(improvement(a, b), improvement_interval(a, b), permutation_p(a, b), least)


def held(x: np.ndarray, values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return the latest value at each point of `grid`; no point may be before x[0]."""
    return values[np.searchsorted(x, grid, side="right") - 1]
