"""Evaluation by whole episodes, the same for every framework and every kind of environment."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from cleanrl_utils.errors import BadInput
from cleanrl_utils.seeds import EVALUATION

Act = Callable[[np.ndarray], np.ndarray]
"""Greedy actions (E,) for observations (E, ...)."""


@dataclass(frozen=True)
class Evaluation:
    """Raw returns and lengths (in steps) of whole games, how many were cut by a limit, and returns of clipped rewards."""

    returns: list[float]
    lengths: list[int]
    capped: int
    clipped_returns: list[float] = field(default_factory=list)
    """sums of the signs of the rewards: what an Atari agent learns to maximise"""

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation over the games (population)."""
        return float(np.std(self.returns))

    def __str__(self) -> str:
        return f"{self.mean:.2f} +- {self.std:.2f}"


def play(
    act: Act,
    envs: gym.vector.VectorEnv,
    obs: np.ndarray,
    seed: int,
    epsilon: float,
    max_steps: float = math.inf,
    fire: Any = None,
) -> Evaluation:
    """Play one whole game in each environment, epsilon-greedily, from the observations `obs` (E, ...) of a reset.

    Taking the first games that finish would favour short ones. The random state belongs to the game, and is the
    evaluation's own: the training's stays untouched. A game is cut after `max_steps`. `fire` may override actions, as
    `atari.FireAfterLifeLoss` does.
    """
    rngs = [np.random.default_rng([seed, EVALUATION, game]) for game in range(envs.num_envs)]
    num_actions = int(envs.single_action_space.n)
    returns, clipped, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=np.int64)
    running, cut = np.ones(envs.num_envs, dtype=bool), np.zeros(envs.num_envs, dtype=bool)

    while running.any():
        explore = np.array([rng.random() for rng in rngs]) < epsilon
        random_actions = np.array([rng.integers(num_actions) for rng in rngs])
        actions = np.where(explore, random_actions, act(obs) if epsilon < 1 else 0)
        obs, rewards, terminations, truncations, infos = envs.step(actions if fire is None else fire(actions))
        if fire is not None:
            fire.observe(infos)
        returns += rewards * running
        clipped += np.sign(rewards) * running
        lengths += running
        truncations = truncations | (lengths >= max_steps)
        cut |= running & truncations & ~terminations
        running &= ~(terminations | truncations)
    return Evaluation(returns.tolist(), lengths.tolist(), int(cut.sum()), clipped.tolist())


def require_video(atari: bool = True, flag: str = "--capture-video") -> None:
    """Raise `BadInput` unless the packages are installed that draw a game, and write a film or show it (`--render`)."""
    for package in ("pygame" if flag == "--render" else "imageio_ffmpeg", "PIL", "cv2" if atari else "pygame"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            extras = "atari,video" if atari else "video"
            raise BadInput(flag, "on", f"needs `{error.name}`: pip install -e '.[{extras}]'") from None
