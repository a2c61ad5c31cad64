"""Check whether the Q-values of a teacher (at a temperature) and of a student carry any information."""

from __future__ import annotations

import numpy as np

from cleanrl_utils.console import notice

FAINT = 0.02
"""A line is printed if the weight of the distillation times `sharpness` is below this number.

At temperature 0.1 and weight 3 the product is 0.4 on Pong and 0.08 on Space Invaders, with the teachers in the box. After
4,000 updates there, a student chose its teacher's action in 40% and 62% of the states, and in 19% and 21% without
distillation (docs/log.md, means of three seeds). At temperature 1 and weight 1 the product is 0.003 and 0.001.
"""


def sharpness(q_values: np.ndarray, temperature: float) -> float:
    """Return how far the policies softmax(Q / temperature) of values (B, A) are from uniform: 0 uniform, 1 deterministic.

    It is the mean KL divergence from the uniform policy, divided by its maximum log A.
    """
    scaled = q_values / temperature
    logits = scaled - scaled.max(1, keepdims=True)
    log_policy = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    entropy = -(np.exp(log_policy) * log_policy).sum(1).mean()
    return float(1 - entropy / np.log(q_values.shape[1]))


def fitting_temperature(q_values: np.ndarray) -> float:
    """Return the mean over states of best value minus mean over actions; as temperature: sharpness 0.1 (four games)."""
    return float((q_values.max(1) - q_values.mean(1)).mean())


def warn_if_faint(q_values: np.ndarray, temperature: float, weight: float) -> None:
    """Print a line if the distillation is on, but too weak to learn from."""
    sharp = sharpness(q_values, temperature) if len(q_values) else 1.0
    if 0 < weight * sharp < FAINT:
        fits = f"--temperature {fitting_temperature(q_values):.2g} would fit the gaps between its Q-values"
        notice(
            f"--temperature {temperature:g}: the teacher's policy is {1 - sharp:.1%} uniform, so it teaches little; {fits}"
        )


def warn_if_blind(q_values: np.ndarray) -> None:
    """Print a line if a student's values (B, A) do not depend on the observation: no gradient passes a dead layer."""
    if len(q_values) and np.allclose(q_values, q_values[0], rtol=1e-5, atol=1e-6):
        notice(
            "the student's Q-values are the same for every observation: a layer of its network is dead and can learn no "
            "more; begin again with another --seed"
        )
