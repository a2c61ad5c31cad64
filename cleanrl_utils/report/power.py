"""How many runs it takes to tell two settings apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

CONFIDENCE = 0.95
"""Confidence of intervals and verdicts."""


def least_p(sizes: Sequence[tuple[int, int]]) -> float:
    """Return the lowest p-value that these numbers of runs, (A, B) by task, can have: if A is ahead of B in every pair."""
    return min(1.0, 2 / math.prod(math.comb(a + b, a) for a, b in sizes))


def enough_runs(num_tasks: int) -> int:
    """Return the fewest runs of A, and of B, on each task with which A and B can be told apart."""
    return next(n for n in itertools.count(2) if least_p([(n, n)] * num_tasks) < 1 - CONFIDENCE)
