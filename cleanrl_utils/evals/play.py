"""Evaluation by whole episodes, the same for every framework and every kind of environment."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cleanrl_utils.errors import BadInput, missing
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


class Step(Protocol):
    """The result of one step, (E,) each."""

    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray


class Games(Protocol):
    """E games, or episodes of another environment, side by side."""

    obs: np.ndarray
    num_games: int
    num_actions: int

    def send(self, actions: np.ndarray) -> np.ndarray:
        """Send actions (E,); returns the actions that are really played."""

    def recv(self) -> Step:
        """Return the result of the step; `obs` then holds the observations after it."""

    def close(self) -> None:
        """End the games."""


def evaluate(act: Act, games: Games, seed: int, epsilon: float, max_steps: float = math.inf) -> Evaluation:
    """Play one whole game in each of `games`, epsilon-greedily, and close them.

    Taking the first games that finish would favour short ones. Each game has its own random state, separate from those of
    training. A game is cut after `max_steps`.
    """
    rngs = [np.random.default_rng([seed, EVALUATION, game]) for game in range(games.num_games)]
    returns, clipped, lengths = np.zeros(len(rngs)), np.zeros(len(rngs)), np.zeros(len(rngs), dtype=np.int64)
    running, cut = np.ones(len(rngs), dtype=bool), np.zeros(len(rngs), dtype=bool)

    while running.any():
        explore = np.array([rng.random() for rng in rngs]) < epsilon
        random_actions = np.array([rng.integers(games.num_actions) for rng in rngs])
        games.send(np.where(explore, random_actions, act(games.obs) if epsilon < 1 else 0))
        step = games.recv()
        returns += step.rewards * running
        clipped += np.sign(step.rewards) * running
        lengths += running
        truncations = step.truncations | (lengths >= max_steps)
        cut |= running & truncations & ~step.terminations
        running &= ~(step.terminations | truncations)
    games.close()
    return Evaluation(returns.tolist(), lengths.tolist(), int(cut.sum()), clipped.tolist())


def require_video(atari: bool = True, flag: str = "--capture-video") -> None:
    """Raise `BadInput` unless the packages that draw a game and film it (or show it: `--render`) are installed."""
    for package in ("pygame" if flag == "--render" else "imageio_ffmpeg", "PIL", "cv2" if atari else "pygame"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            extras = "atari,video" if atari else "video"
            raise BadInput(flag, "on", missing(error, extras)) from None
    if flag != "--render":
        from cleanrl_utils.evals.video import require_ffmpeg  # noqa: PLC0415 - needs the extra

        require_ffmpeg(flag)
