"""A game whose values are known, in the place of an Atari script's `Games`: a chain of five screens.

| screen | reward | then |
|---|---|---|
| 0 | 7 for action 1, else 0 | a life is lost in the next step |
| 1 | 0 | a life is lost: the return ends, the game goes on; in evaluation nothing ends |
| 2 | 0 | |
| 3 | -3 | in every second environment the game is cut here, and screen 4 is the last that is seen |
| 4 | 1 | the game is over |

After its end the next step is the reset. Learned by their signs with gamma 0.5, the values are those of `VALUES`, whatever
the number of steps, since a cut game is bootstrapped from screen 4 as one that goes on.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cleanrl_utils.seeds import EVALUATION

VALUES = np.array([[0.0, 1.0], [0.0, 0.0], [-0.25, -0.25], [-0.5, -0.5], [1.0, 1.0]])
REWARDS = np.array([0, 0, 0, -3, 1])


def screens() -> np.ndarray:
    """The five screens, (5, 84, 84) uint8: noise, so that a network tells them apart at once."""
    return np.random.default_rng(0).integers(0, 256, (5, 84, 84)).astype(np.uint8)


def stacks() -> np.ndarray:
    """The five observations, (5, 4, 84, 84)."""
    padded = np.concatenate([np.zeros((3, 84, 84), np.uint8), screens()])
    return np.stack([padded[i : i + 4] for i in range(5)])


class Chain:
    """N games of the chain. `history` lists what was played and seen."""

    KEPT = ()
    num_actions = 2

    def __init__(self, step: type, purpose: int, num_games: int) -> None:
        self.step, self.purpose, self.num_games = step, purpose, num_games
        self.screens, self.at, self.over = stacks(), np.zeros(num_games, dtype=int), np.zeros(num_games, dtype=bool)
        self.cut = np.arange(num_games) % 2 == 0
        self.returns, self.lengths = np.zeros(num_games), np.zeros(num_games, dtype=int)
        self.history: list[tuple[np.ndarray, np.ndarray, Any]] = []

    @property
    def obs(self) -> np.ndarray:
        return self.screens[self.at]

    def send(self, actions: np.ndarray) -> np.ndarray:
        self.actions = actions
        return actions

    def recv(self) -> Any:
        at, resets = self.at, self.over
        rewards = np.where(at == 0, 7 * self.actions, REWARDS[at]) * ~resets
        truncations = ~resets & (at == 3) & self.cut
        lost = (at == 1) & (self.purpose != EVALUATION)
        terminations = ~resets & (lost | (at == 4))
        self.returns, self.lengths = self.returns + rewards, self.lengths + ~resets
        finished = [(float(self.returns[i]), int(self.lengths[i])) for i in np.flatnonzero(resets)]
        self.returns, self.lengths = np.where(resets, 0, self.returns), np.where(resets, 0, self.lengths)
        self.at, self.over = np.where(resets, 0, np.minimum(at + 1, 4)), ~resets & (truncations | (at == 4))
        step = self.step(rewards.astype(float), terminations, truncations, resets, finished)
        self.history.append((at, self.actions, step))
        return step

    def close(self) -> None:
        """Nothing runs."""


def play_chain(monkeypatch: pytest.MonkeyPatch, script: ModuleType) -> list[Chain]:
    """Let an Atari script play the chain; returns the games that it makes."""
    made: list[Chain] = []

    def make(_: Any, purpose: int, num_games: int) -> Chain:
        made.append(Chain(script.Step, purpose, num_games))
        return made[-1]

    monkeypatch.setattr(script, "Games", make)
    monkeypatch.setattr(script, "count_actions", lambda _: 2)
    return made
