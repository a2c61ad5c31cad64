"""Seeds of environments, apart for every run, purpose and game."""

from __future__ import annotations

import numpy as np

EVALUATION = 1000
"""Purpose of evaluation: keeps its seeds apart from those of training, which count from 0."""


def env_seeds(seed: int, purpose: int, first: int, count: int) -> np.ndarray:
    """Seeds (count,) of games `first`, `first + 1`, ... of one purpose (training, evaluation, ...) of a run.

    Hashed, since consecutive integers would give neighbouring runs the same games; 31 bits, as the ALE takes.
    """
    games = range(first, first + count)
    return np.array([np.random.SeedSequence([seed, purpose, game]).generate_state(1)[0] >> 1 for game in games])
