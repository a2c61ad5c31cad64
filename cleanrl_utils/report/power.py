"""How many runs it takes to tell two settings apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

CONFIDENCE = 0.95
"""Of intervals and verdicts."""


def least_p(sizes: Sequence[tuple[int, int]]) -> float:
    """The lowest p-value that so many runs of A and of B can have, by task: that of A ahead of B in every pair."""
    return min(1.0, 2 / math.prod(math.comb(a + b, a) for a, b in sizes))


def enough_runs(num_tasks: int) -> int:
    """The fewest runs of A, and of B, on each task that can be told apart."""
    return next(n for n in itertools.count(2) if least_p([(n, n)] * num_tasks) < 1 - CONFIDENCE)
