"""Evaluation by whole games, the same for every framework."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ale_py.env import AtariEnv
from ale_py.vector_env import AtariVectorEnv

from cleanrl_utils.atari import MAX_FRAMES, FireAfterLifeLoss, env_seeds, game_settings, num_threads, waits_for_fire
from cleanrl_utils.config import BadInput

Act = Callable[[np.ndarray], np.ndarray]
"""Greedy actions (E,) for observations (E, 4, 84, 84) uint8."""

PURPOSE = 1000
"""Keeps the seeds of evaluation apart from those of training, which count from 0."""


@dataclass(frozen=True)
class Evaluation:
    """Raw returns and lengths (in steps) of whole games, and how many were cut by the frame cap."""

    returns: list[float]
    lengths: list[int]
    capped: int

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


def evaluate(
    act: Act,
    env_id: str,
    episodes: int,
    seed: int,
    epsilon: float,
    sticky_actions: float | None = None,
    max_frames: int = MAX_FRAMES,
) -> Evaluation:
    """Play one whole game in each of `episodes` environments, epsilon-greedily.

    Taking the first games that finish would favour short ones. A lost life ends nothing; FIRE as in training.
    Seeds belong to episodes, and the random state is the evaluation's own: the training's stays untouched.
    A game is cut `max_frames` raw frames after its reset; `sticky_actions` None takes the id's value.
    """
    game, sticky = game_settings(env_id)
    envs = AtariVectorEnv(
        game,
        episodes,
        num_threads=num_threads(episodes),
        max_num_frames_per_episode=max_frames,
        repeat_action_probability=sticky if sticky_actions is None else sticky_actions,
        reward_clipping=False,
    )
    rngs = [np.random.default_rng([seed, PURPOSE, episode]) for episode in range(episodes)]
    num_actions = int(envs.single_action_space.n)
    returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    running, cut = np.ones(episodes, dtype=bool), np.zeros(episodes, dtype=bool)

    obs, infos = envs.reset(seed=env_seeds(seed, PURPOSE, 0, episodes))
    fire = FireAfterLifeLoss(envs, infos)
    while running.any():
        explore = np.array([rng.random() for rng in rngs]) < epsilon
        random_actions = np.array([rng.integers(num_actions) for rng in rngs])
        actions = fire(np.where(explore, random_actions, act(obs) if epsilon < 1 else 0))
        obs, rewards, terminations, truncations, infos = envs.step(actions)
        fire.observe(infos)
        returns += rewards * running
        lengths += running
        cut |= running & truncations & ~terminations
        running &= ~(terminations | truncations)
    envs.close()
    return Evaluation(returns.tolist(), lengths.tolist(), int(cut.sum()))


def film_game(act: Act, args: Any, run_name: str, name: str) -> Path:
    """Play one more game by the flags' protocol and write its screen to `videos/{run_name}/{name}-episode-0.mp4`.

    The vector environment has no screen, so this is a single environment under Gymnasium's wrappers, seeded as the
    evaluation's first game; they draw their no-ops from another generator, so the game is another one.
    """
    import gymnasium as gym  # noqa: PLC0415 - its wrappers import cv2 and moviepy, needed under --capture-video only

    game, sticky = game_settings(args.env_id)
    env = AtariEnv(
        game,
        frameskip=1,
        repeat_action_probability=sticky if args.sticky_actions is None else args.sticky_actions,
        full_action_space=False,
        max_num_frames_per_episode=args.eval_max_frames,
        render_mode="rgb_array",
    )
    folder = Path("videos") / run_name
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Overwriting existing videos")  # one folder holds the games of all evaluations
        env = gym.wrappers.RecordVideo(
            env, str(folder), name_prefix=name, episode_trigger=lambda _: True, fps=60, disable_logger=True
        )
    env = gym.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4)
    env = gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")
    rng = np.random.default_rng([args.seed, PURPOSE, 0])
    needs_fire = waits_for_fire(env.unwrapped.get_action_meanings())
    obs, info = env.reset(seed=int(env_seeds(args.seed, PURPOSE, 0, 1)[0]))
    press_fire, done = needs_fire, False
    while not done:
        action = rng.integers(env.action_space.n) if rng.random() < args.eval_epsilon else act(obs[None])[0]
        lives = info["lives"]
        obs, _, terminated, truncated, info = env.step(1 if press_fire else int(action))
        press_fire = needs_fire and info["lives"] < lives
        done = terminated or truncated
    env.close()
    return folder / f"{name}-episode-0.mp4"


def require_video() -> None:
    """Raise `BadInput` unless the packages that write a video are installed."""
    try:
        import cv2  # noqa: F401, PLC0415
        import moviepy  # noqa: F401, PLC0415
    except ImportError as error:
        raise BadInput("--capture-video", "on", f"needs `{error.name}`: pip install -e .[atari,video]") from None
