"""What is the same in every Atari script and no part of a learning rule: game names, seeds, FIRE, episodes."""

from __future__ import annotations

import difflib
import re
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv

from cleanrl_utils.config import BadInput
from cleanrl_utils.devices import num_cores

gym.register_envs(ale_py)

MAX_FRAMES = 108_000
"""Raw frames (60 per second, so 30 minutes) after which a game is cut: the field's custom, and Gymnasium's for v4 and v5."""


def game_settings(env_id: str) -> tuple[str, float]:
    """ROM name and sticky-action probability of a registered id: PongNoFrameskip-v4 is `pong`, 0.0.

    Raises `BadInput`, with the closest names, for an id that is no Atari game played from its screen.
    """
    spec = gym.registry.get(env_id)
    if spec is None or not _is_atari(spec):
        suffix = "NoFrameskip-v4"
        games = [name.removesuffix(suffix) for name, s in gym.registry.items() if _is_atari(s) and name.endswith(suffix)]
        close = difflib.get_close_matches(re.sub(r"^ALE/|(NoFrameskip|Deterministic)?(-.*)?$", "", env_id), games, n=3)
        hint = f"; closest: {', '.join(game + suffix for game in close)}" if close else ""
        raise BadInput("--env-id", env_id, f"must be an Atari game like PongNoFrameskip-v4 or ALE/Pong-v5{hint}")
    return spec.kwargs["game"], spec.kwargs["repeat_action_probability"]


def count_actions(env_id: str) -> int:
    """Size of the game's minimal action set."""
    envs = AtariVectorEnv(game_settings(env_id)[0], 1, num_threads=1)
    envs.close()
    return int(envs.single_action_space.n)


def protocol(args: Any) -> dict[str, Any]:
    """What a run's scores mean, from its flags: stored with them."""
    _, sticky = game_settings(args.env_id)
    return {
        "frame_skip": 4,
        "max_noops": 30,
        "sticky_actions": sticky if args.sticky_actions is None else args.sticky_actions,
        "life_loss": args.life_loss,
        "learned_rewards": "sign",
        "evaluation": f"{args.eval_episodes} whole games, epsilon {args.eval_epsilon}, cut at {args.eval_max_frames} frames",
    }


def _is_atari(spec: gym.envs.registration.EnvSpec) -> bool:
    return "game" in spec.kwargs and spec.kwargs.get("obs_type", "rgb") == "rgb"


def num_threads(num_envs: int) -> int:
    """Threads that step `num_envs` games: one each, at most one per core this process may use."""
    return min(num_envs, num_cores())


def waits_for_fire(meanings: list[str]) -> bool:
    """Whether a game waits for FIRE, by the rule of the classic wrappers: it is action 1 of the minimal set."""
    return len(meanings) >= 3 and meanings[1] == "FIRE"


class FireAfterLifeLoss:
    """Presses FIRE after a lost life in games that wait for it, as the classic wrappers do."""

    def __init__(self, envs: AtariVectorEnv, infos: dict[str, np.ndarray]) -> None:
        self.needed = waits_for_fire([action.name for action in envs.ale.get_action_set()])
        self.lives = infos["lives"]
        self.lost = np.zeros(envs.num_envs, dtype=bool)

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """`actions` (N,), with FIRE where a life was lost in the step before."""
        return np.where(self.lost, 1, actions) if self.needed else actions

    def observe(self, infos: dict[str, np.ndarray]) -> None:
        """Take in the infos of a step."""
        self.lost = infos["lives"] < self.lives
        self.lives = infos["lives"]


class Episodes:
    """Whole games of N environments: when they are reset, and their raw returns and lengths.

    A game's end is not a termination flag (a lost life sets it too): an environment was reset in a step
    exactly when its `episode_frame_number` fell.
    """

    def __init__(self, infos: dict[str, np.ndarray]) -> None:
        self.frame_numbers = infos["episode_frame_number"]
        self.returns = np.zeros(len(self.frame_numbers))
        self.lengths = np.zeros(len(self.frame_numbers), dtype=np.int64)

    def step(self, rewards: np.ndarray, infos: dict[str, np.ndarray]) -> tuple[np.ndarray, list[tuple[float, int]]]:
        """Take in a step: `resets` (N,) bool, and (undiscounted raw return, steps) of each game that ended."""
        resets = infos["episode_frame_number"] < self.frame_numbers
        self.frame_numbers = infos["episode_frame_number"]
        finished = [(float(self.returns[i]), int(self.lengths[i])) for i in np.flatnonzero(resets)]
        self.returns = np.where(resets, 0, self.returns + rewards)
        self.lengths = np.where(resets, 0, self.lengths + 1)
        return resets, finished
