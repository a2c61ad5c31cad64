"""Evaluation on Atari by whole games, the same for every framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from ale_py.env import AtariEnv
from ale_py.vector_env import AtariVectorEnv

from cleanrl_utils.atari import MAX_FRAMES, FireAfterLifeLoss, game_settings, num_threads, waits_for_fire
from cleanrl_utils.evals import Act, Evaluation, play
from cleanrl_utils.seeds import EVALUATION, env_seeds
from cleanrl_utils.video import Film, Screen, Show


def evaluate(
    act: Act,
    env_id: str,
    episodes: int,
    seed: int,
    epsilon: float,
    sticky_actions: float | None = None,
    max_frames: int = MAX_FRAMES,
) -> Evaluation:
    """Play one whole game in each of `episodes` environments, epsilon-greedily, as `evals.play` does.

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
