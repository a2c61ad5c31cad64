"""Statistics of runs: on numbers worked by hand, against rliable, and as often right as they say."""

from __future__ import annotations

import numpy as np
import pytest

from cleanrl_utils.report import runs, statistics
from cleanrl_utils.report.power import enough_runs, least_p

A = [np.array([1.0, 2.0, 3.0, 10.0]), np.array([4.0, 5.0])]
B = [np.array([0.0, 2.0]), np.array([5.0, 6.0])]


def test_iqm_is_the_mean_of_the_middle_half():
    scores = [np.array([9.0, 1.0, 2.0, 100.0]), np.array([3.0, 4.0, -50.0, 5.0])]
    assert statistics.iqm(scores) == pytest.approx((2 + 3 + 4 + 5) / 4)  # of -50 1 [2 3 4 5] 9 100


def test_probability_of_improvement_counts_pairs_ties_half_and_tasks_alike():
    # Task 1: 1 beats 0 (of 0, 2); 2 beats 0 and ties 2; 3 and 10 beat both: (1 + 1.5 + 2 + 2) / 8. Task 2: 4 none, 5 ties 5.
    assert statistics.improvement(A, B) == pytest.approx((6.5 / 8 + 0.5 / 4) / 2)
    assert statistics.improvement(B, A) == pytest.approx(1 - (6.5 / 8 + 0.5 / 4) / 2)


def test_profile_is_the_share_of_runs_above_each_threshold_averaged_over_tasks():
    shares = [1, (2 / 4 + 1) / 2, (1 / 4 + 1 / 2) / 2, 0]
    assert statistics.profile(A, np.array([0.0, 2.0, 4.5, 10.0])).tolist() == pytest.approx(shares)


def test_tasks_weigh_alike_however_many_runs_they_have():
    scores = [np.array([1.0] * 10), np.array([0.0, 0.0])]
    assert statistics.task_mean(*scores) == 0.5
    assert statistics.profile(scores, np.array([0.5])).tolist() == [0.5]
    assert statistics.mean_interval(scores).tolist() == [0.5, 0.5]


def test_trailing_mean_takes_what_there_is():
    assert runs.trailing_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]
    assert runs.trailing_mean(np.array([1.0, 3.0]), 100).tolist() == [1, 2]


def test_a_curve_holds_its_latest_value():
    x, values = np.array([10, 20, 20, 40]), np.array([1.0, 2.0, 3.0, 4.0])
    assert statistics.held(x, values, np.array([10, 19, 20, 39, 40, 99])).tolist() == [1, 1, 3, 3, 4, 4]


def test_the_mean_of_two_runs_has_the_interval_of_its_four_resamples():
    assert statistics.mean_interval([np.array([0.0, 1.0])]).tolist() == [
        0,
        1,
    ]  # 0, 1/2, 1/2 and 1, each a quarter of the time


def test_resampling_is_within_tasks():
    far = [np.array([0.0, 0.0, 0.0]), np.array([100.0, 100.0, 100.0])]
    assert statistics.mean_interval(far).tolist() == [50, 50]  # over all runs it would be about 10 to 90


def test_the_interval_of_a_curve_is_that_of_each_of_its_points():
    runs = np.random.default_rng(1).normal(size=(5, 3))
    together = statistics.mean_interval([runs])
    assert together.shape == (2, 3)
    for point in range(3):
        assert together[:, point] == pytest.approx(statistics.mean_interval([runs[:, point]]), abs=0.05)


def test_the_interval_of_a_mean_covers_it_about_as_often_as_the_bootstrap_of_ten_runs_does(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        low, high = statistics.mean_interval([rng.normal(size=10)])
        covered += low <= 0 <= high
    assert 0.86 <= covered / 300 <= 0.96  # 90.6%: the percentile bootstrap of 10 normal numbers


def test_one_run_has_no_interval():
    with pytest.raises(ValueError, match="one run"):
        statistics.iqm_interval([np.array([1.0]), np.array([1.0, 2.0])])


@pytest.mark.parametrize(("runs", "least"), [(3, 2 / 20), (4, 2 / 70)])
def test_the_p_value_of_runs_that_do_not_overlap_is_that_of_two_among_all_ways_to_share_them_out(runs, least):
    p = statistics.permutation_p([np.arange(runs) + 100.0], [np.arange(runs) + 0.0])
    assert p == pytest.approx(least, abs=0.01)


def test_equal_settings_are_told_apart_in_one_of_twenty_cases_at_most(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng = np.random.default_rng(0)
    verdicts = [statistics.compare([rng.normal(size=5)], [rng.normal(size=5)]).verdict for _ in range(200)]
    assert verdicts.count("not told apart") >= 184  # 95% less two standard errors


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([(3, 3)], 2 / 20), ([(4, 4)], 2 / 70), ([(3, 3)] * 2, 2 / 400), ([(2, 5)], 2 / 21), ([(1, 1)], 1)],
)
def test_the_lowest_p_is_that_of_one_order_of_the_runs_and_its_mirror_image(sizes, expected):
    """Of all the ways to deal out the labels, within each task."""
    assert least_p(sizes) == pytest.approx(expected)


@pytest.mark.parametrize(("num_tasks", "expected"), [(1, 4), (2, 3), (5, 2)])
def test_the_fewest_runs_that_can_be_told_apart(num_tasks, expected):
    assert enough_runs(num_tasks) == expected
    assert least_p([(expected, expected)] * num_tasks) < 0.05


def test_verdicts():
    low, high = [np.arange(5.0)], [np.arange(5.0) + 10]
    assert statistics.compare(high, low).verdict == "better"
    assert statistics.compare(low, high).verdict == "worse"
    assert statistics.compare(low, [np.arange(5.0) + 0.5]).verdict == "not told apart"
    few = statistics.compare([np.array([9.0, 8.0, 7.0])], [np.array([1.0, 2.0, 3.0])])
    assert few.bounds.tolist() == [1, 1], "the bootstrap is sure"
    assert few.verdict == "too few runs"
    assert few.p >= few.least_p - 0.01


def test_points_and_intervals_are_those_of_rliable():
    library, metrics = pytest.importorskip("rliable.library"), pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(3)
    a, b = rng.gamma(2.0, size=(6, 4)), rng.gamma(2.2, size=(6, 4))  # runs, tasks
    ours = [list(a.T), list(b.T)]
    assert statistics.iqm(ours[0]) == pytest.approx(metrics.aggregate_iqm(a))
    assert statistics.improvement(*ours) == pytest.approx(metrics.probability_of_improvement(a, b))
    thresholds = np.linspace(0, 4, 9)
    profiles, bounds = library.create_performance_profile({"a": a}, thresholds, reps=1000)
    assert statistics.profile(ours[0], thresholds) == pytest.approx(profiles["a"])
    assert statistics.profile_interval(ours[0], thresholds) == pytest.approx(bounds["a"], abs=0.07)
    _, intervals = library.get_interval_estimates({"a": a}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=1000)
    assert statistics.iqm_interval(ours[0]) == pytest.approx(intervals["a"][:, 0], abs=0.08)
    _, intervals = library.get_interval_estimates(
        {"a,b": (a, b)}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=200
    )
    assert statistics.improvement_interval(*ours) == pytest.approx(intervals["a,b"][:, 0], abs=0.08)
