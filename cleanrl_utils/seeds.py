"""Seeds of environments, apart for every run, purpose and game."""

from __future__ import annotations

import numpy as np

TRAINING, EVALUATION = 0, 1000
"""Purposes: they keep the seeds of training games, which count from 0, apart from those of evaluation."""


def env_seeds(seed: int, purpose: int, numbers: np.ndarray) -> np.ndarray:
    """Seeds (N,): number `numbers[i]` of environment i, for one purpose (training, evaluation, ...) of a run.

    Hashed, since consecutive integers would give neighbouring runs the same games; 31 bits, as the ALE takes.
    """
    words = [[seed, purpose, environment, number] for environment, number in enumerate(numbers.tolist())]
    return np.array([np.random.SeedSequence(entropy).generate_state(1)[0] >> 1 for entropy in words])
