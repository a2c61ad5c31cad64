"""Gymnasium environments with vectors for observations: made, checked, evaluated and filmed alike in every script."""

from __future__ import annotations

import difflib
import os
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from cleanrl_utils.errors import BadInput, first_line
from cleanrl_utils.evals.play import Act, Evaluation, play
from cleanrl_utils.evals.video import Film, Screen, Show
from cleanrl_utils.seeds import EVALUATION, env_seeds

EXTRAS = {"flappy_bird_gymnasium": "flappy"}
"""Which extra of this project brings the package of an environment."""

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory: no screen is needed
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


def vector_env(args: Any, render_mode: str | None = None) -> gym.Env:
    """The environment `--env-id` with `--env-kwargs`: observations (D,) float32, flattened if need be, actions 0 .. A-1."""
    render = {} if render_mode is None else {"render_mode": render_mode}  # not every environment knows the keyword
    env = gym.make(args.env_id, **args.env_kwargs, **render)
    if not isinstance(env.observation_space, Box) or len(env.observation_space.shape) != 1:
        env = gym.wrappers.FlattenObservation(env)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*precision lowered")  # of the bounds of a float64 space
        return gym.wrappers.DtypeObservation(env, np.float32)


def sizes(args: Any) -> tuple[int, int]:
    """How many numbers an observation of the environment has, and how many actions there are."""
    env = vector_env(args)
    env.close()
    return env.observation_space.shape[0], int(env.action_space.n)


def require_vector_env(args: Any) -> None:
    """Raise `BadInput` unless `vector_env` can be made and has a finite set of actions."""
    if "render_mode" in args.env_kwargs:
        raise BadInput("--env-kwargs", "render_mode", "is chosen by --capture-video")
    try:
        env = gym.make(args.env_id, **args.env_kwargs)
        env.reset()
    except ImportError as error:
        extra = EXTRAS.get(args.env_id.split(":")[0])
        how = f": pip install -e '.[{extra}]'" if extra else f" ({first_line(error)})"
        raise BadInput("--env-id", args.env_id, f"needs a package that is not installed{how}") from None
    except gym.error.Error as error:
        close = [] if args.env_id in gym.registry else difflib.get_close_matches(args.env_id, gym.registry, n=3)
        hint = f"; closest: {', '.join(close)}" if close else ""
        if args.env_id.startswith("ALE/") or "NoFrameskip" in args.env_id:
            hint = "; Atari games are for cleanrl/dqn_atari.py"
        raise BadInput("--env-id", args.env_id, f"cannot be made ({first_line(error)}){hint}") from None
    except Exception as error:  # whatever an environment says to keywords that it does not know
        flags = f"{args.env_id} {args.env_kwargs}"
        raise BadInput("--env-id, --env-kwargs", flags, f"cannot be made ({first_line(error)})") from None
    observations, actions = env.observation_space, env.action_space
    env.close()
    if args.capture_video:
        require_picture(args, "--capture-video")
    if not isinstance(actions, Discrete):
        raise BadInput("--env-id", args.env_id, f"must have a finite set of actions (Discrete), not {actions}")
    if actions.start != 0:
        raise BadInput("--env-id", args.env_id, f"must number its actions from 0, not {actions}")
    if isinstance(observations, Box) and len(observations.shape) >= (2 if observations.dtype == np.uint8 else 3):
        raise BadInput("--env-id", args.env_id, f"shows images {observations.shape}; for Atari there is dqn_atari.py")
    if not observations.is_np_flattenable:
        raise BadInput("--env-id", args.env_id, f"must have observations that flatten to a vector, not {observations}")


def require_picture(args: Any, flag: str) -> None:
    """Raise `BadInput`, of a flag that shows the environment, unless it can be drawn."""
    env = gym.make(args.env_id, **args.env_kwargs)
    env.close()
    if "rgb_array" not in env.metadata.get("render_modes", []):
        raise BadInput(flag, "on", f"{args.env_id} has no picture (render mode rgb_array)")


def protocol(args: Any) -> dict[str, Any]:
    """What a run's scores mean, from its flags: stored with them."""
    cut = f"cut at {args.eval_max_steps} steps or by the environment"
    return {"evaluation": f"{args.eval_episodes} whole episodes, epsilon {args.eval_epsilon}, {cut}"}


def finished_episodes(infos: dict[str, Any]) -> list[tuple[float, int]]:
    """(Return, length in steps) of each episode that ended in a step, from Gymnasium's `RecordEpisodeStatistics`."""
    ended = np.flatnonzero(infos.get("_episode", ()))
    return [(float(infos["episode"]["r"][i]), int(infos["episode"]["l"][i])) for i in ended]


def evaluate(act: Act, args: Any) -> Evaluation:
    """Play `--eval-episodes` whole episodes at `--eval-epsilon`, side by side, with seeds of their own."""
    envs = gym.vector.SyncVectorEnv([lambda: vector_env(args)] * args.eval_episodes)
    obs, _ = envs.reset(seed=env_seeds(args.seed, EVALUATION, 0, args.eval_episodes).tolist())
    result = play(act, envs, obs, args.seed, args.eval_epsilon, args.eval_max_steps)
    envs.close()
    return result


def film_episode(act: Act, args: Any, run_name: str, name: str) -> None:
    """Play the evaluation's first episode again and write it to `videos/{run_name}/{name}.mp4`."""
    with Film(Path("videos") / run_name / f"{name}.mp4") as film:
        show_episode(act, args, film)


def show_episode(act: Act, args: Any, show: Show) -> float:
    """Play the evaluation's first episode again and show it; returns its return."""
    env = vector_env(args, render_mode="rgb_array")
    screen = Screen(env, show, fps=env.metadata.get("render_fps", 30))
    envs = gym.vector.SyncVectorEnv([lambda: screen], autoreset_mode=gym.vector.AutoresetMode.DISABLED)
    obs, _ = envs.reset(seed=env_seeds(args.seed, EVALUATION, 0, 1).tolist())
    play(act, envs, obs, args.seed, args.eval_epsilon, args.eval_max_steps)
    envs.close()
    return screen.score
