"""What every Atari script has in common beside the learning rule: game names, FIRE, episodes, evaluation by whole games."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from ale_py.env import AtariEnv
from ale_py.vector_env import AtariVectorEnv

from cleanrl_utils.devices.common import num_cores
from cleanrl_utils.errors import BadInput
from cleanrl_utils.evals.play import Act, Evaluation, play
from cleanrl_utils.evals.video import Film, Screen, Show
from cleanrl_utils.seeds import EVALUATION, env_seeds

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


# --- Evaluation ---


def evaluate(
    act: Act,
    env_id: str,
    episodes: int,
    seed: int,
    epsilon: float,
    sticky_actions: float | None = None,
    max_frames: int = MAX_FRAMES,
) -> Evaluation:
    """Play one whole game in each of `episodes` environments, epsilon-greedily, as `play` does.

    `act` maps observations (E, 4, 84, 84) uint8 to actions (E,). A lost life ends nothing; FIRE as in training.
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
    obs, infos = envs.reset(seed=env_seeds(seed, EVALUATION, 0, episodes))
    result = play(act, envs, obs, seed, epsilon, fire=FireAfterLifeLoss(envs, infos))
    envs.close()
    return result


def film_game(act: Act, args: Any, run_name: str, name: str) -> None:
    """Play one more game by the flags' protocol and write its screen to `videos/{run_name}/{name}.mp4`."""
    with Film(Path("videos") / run_name / f"{name}.mp4") as film:
        show_game(act, args, film)


def show_game(act: Act, args: Any, show: Show) -> float:
    """Play one more game by the flags' protocol, all its raw frames shown at 60 per second; returns the score.

    The vector environment has no screen, so this is a single environment under Gymnasium's wrappers, seeded as the
    evaluation's first game; they draw their no-ops from another generator, so the game is another one.
    """
    game, sticky = game_settings(args.env_id)
    env = AtariEnv(
        game,
        frameskip=1,
        repeat_action_probability=sticky if args.sticky_actions is None else args.sticky_actions,
        full_action_space=False,
        max_num_frames_per_episode=args.eval_max_frames,
        render_mode="rgb_array",
    )
    screen = Screen(env, show, fps=60)
    env = gym.wrappers.AtariPreprocessing(screen, noop_max=30, frame_skip=4)
    env = gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")
    rng = np.random.default_rng([args.seed, EVALUATION, 0])
    needs_fire = waits_for_fire(env.unwrapped.get_action_meanings())
    obs, info = env.reset(seed=int(env_seeds(args.seed, EVALUATION, 0, 1)[0]))
    press_fire, done = needs_fire, False
    while not done:
        action = rng.integers(env.action_space.n) if rng.random() < args.eval_epsilon else act(obs[None])[0]
        lives = info["lives"]
        obs, _, terminated, truncated, info = env.step(1 if press_fire else int(action))
        press_fire = needs_fire and info["lives"] < lives
        done = terminated or truncated
    env.close()
    return screen.score
