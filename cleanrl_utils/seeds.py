"""Seeds of environments, different for every run, purpose and game."""

from __future__ import annotations

import numpy as np

TRAINING, EVALUATION = 0, 1000
"""Purposes, which keep the seeds of training games and evaluation games apart. Those of training count from 0."""


def env_seeds(seed: int, purpose: int, numbers: np.ndarray) -> np.ndarray:
    """Return seeds (N,): seed number `numbers[i]` of environment i, for one purpose (training, evaluation, ...) of a run.

    They are hashed, since consecutive integers would give neighbouring runs the same games, and have 31 bits for the ALE.
    """
    words = [[seed, purpose, environment, number] for environment, number in enumerate(numbers.tolist())]
    return np.array([np.random.SeedSequence(entropy).generate_state(1)[0] >> 1 for entropy in words])
