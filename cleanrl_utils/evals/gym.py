"""Gymnasium environments with vector observations: making, checking, evaluating and filming them, for every script."""

from __future__ import annotations

import difflib
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from cleanrl_utils.errors import BadInput, CannotGoOn, first_line
from cleanrl_utils.evals.history import History
from cleanrl_utils.evals.play import Act, evaluate
from cleanrl_utils.evals.video import Screen, Show, film
from cleanrl_utils.seeds import EVALUATION, env_seeds

EXTRAS = {"flappy_bird_gymnasium": "flappy"}
"""The extra of this project that installs the package of an environment."""
PACKAGES = {"FlappyBird": "flappy_bird_gymnasium", "MiniGrid": "minigrid", "highway": "highway_env"}
"""The package of environments, by the beginning of their names."""

THUMBNAIL = 20
"""Pixels per side from which an array of numbers counts as a picture."""

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory: no screen is needed
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


class EnvFlags(Protocol):
    """The flags of a script that choose its environment."""

    env_id: str
    env_kwargs: dict[str, Any]
    seed: int
    capture_video: bool


class EvalFlags(EnvFlags, Protocol):
    """Also the flags on its evaluations."""

    eval_episodes: int
    eval_epsilon: float
    eval_max_steps: int


def vector_env(args: EnvFlags, render_mode: str | None = None) -> gym.Env:
    """Make environment `--env-id` with `--env-kwargs`: observations (D,) float32, flattened if needed; actions 0..A-1."""
    render = {} if render_mode is None else {"render_mode": render_mode}  # not every environment knows the keyword
    env = gym.make(args.env_id, **args.env_kwargs, **render)
    if not isinstance(env.observation_space, Box) or len(env.observation_space.shape) != 1:
        env = gym.wrappers.FlattenObservation(env)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*precision lowered")  # of the bounds of a float64 space
        return gym.wrappers.DtypeObservation(env, np.float32)


def sizes(args: EnvFlags) -> tuple[int, int]:
    """Return the number of values in an observation of the environment, and the number of actions."""
    env = vector_env(args)
    env.close()
    return env.observation_space.shape[0], int(env.action_space.n)


def require_vector_env(args: EnvFlags) -> None:
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
        hint = "" if args.env_id in gym.registry else _hint(args.env_id)
        raise BadInput("--env-id", args.env_id, f"cannot be made ({first_line(error)}){hint}") from None
    except Exception as error:  # whatever an environment raises for keywords that it does not know
        flags = f"{args.env_id} {args.env_kwargs}"
        raise BadInput("--env-id, --env-kwargs", flags, f"cannot be made ({first_line(error)})") from None
    observations, actions = env.observation_space, env.action_space
    if args.capture_video:
        require_picture(args, "--capture-video")
    if not isinstance(actions, Discrete):
        raise BadInput("--env-id", args.env_id, f"must have a finite set of actions (Discrete), not {actions}")
    if actions.start != 0:
        raise BadInput("--env-id", args.env_id, f"must number its actions from 0, not {actions}")
    if picture := _picture(observations):
        raise BadInput("--env-id", args.env_id, f"shows images {picture.shape}; for Atari there is dqn_atari.py")
    try:
        flattens = observations.is_np_flattenable and gym.spaces.flatten_space(observations) is not None
    except NotImplementedError:  # Gymnasium's, for a custom space that does not say whether it flattens
        flattens = False
    if not flattens:
        raise BadInput("--env-id", args.env_id, f"must have observations that flatten to a vector, not {observations}")
    _require_contract(env, args.env_id)
    env.close()


def _hint(env_id: str) -> str:
    """Suggest what an id that Gymnasium does not know may have meant."""
    if env_id.startswith("ALE/") or "NoFrameskip" in env_id:
        return "; Atari games are for cleanrl/dqn_atari.py"
    package = next((package for name, package in PACKAGES.items() if env_id.startswith(name)), None)
    if package is None and (close := difflib.get_close_matches(env_id, gym.registry, n=3)):
        return f"; closest: {', '.join(close)}"
    return "" if ":" in env_id else f"; if it comes from another package, name both: {package or 'PACKAGE'}:{env_id}"


def _require_contract(env: gym.Env, env_id: str) -> None:
    """Raise `BadInput` if the first step of an environment breaks the rules of Gymnasium's environments."""
    try:
        obs, reward, *_ = env.step(0)
    except Exception as error:  # whatever the environment, or Gymnasium's wrapper around it, raises
        raise BadInput("--env-id", env_id, f"breaks Gymnasium's rules in its first step ({first_line(error)})") from None
    if np.shape(reward) != () or not np.isreal(reward):
        raise BadInput("--env-id", env_id, f"must give a number for a reward, not {reward!r} of shape {np.shape(reward)}")
    shape = env.observation_space.shape
    if shape is not None and np.shape(obs) != shape:
        raise BadInput("--env-id", env_id, f"shows observations of shape {np.shape(obs)}, where its space has {shape}")


def _picture(space: gym.Space) -> Box | None:
    """Return the first space of images in a space, else None: two long axes or more, bytes or up to 1, 255 or infinity.

    A game board, which is small or has few values, does not count.
    """
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        inner = space.spaces.values() if isinstance(space, gym.spaces.Dict) else space.spaces
        return next(filter(None, map(_picture, inner)), None)
    if not isinstance(space, Box) or len(space.shape) < 2 or min(sorted(space.shape)[-2:]) < THUMBNAIL:
        return None
    return space if np.isin(space.high, (1, 255, np.inf)).all() or space.dtype == np.uint8 else None


def require_picture(args: EnvFlags, flag: str) -> None:
    """Raise `BadInput` for a flag that shows the environment, unless the environment can be drawn."""
    env = gym.make(args.env_id, **args.env_kwargs)
    env.close()
    if "rgb_array" not in env.metadata.get("render_modes", []):
        raise BadInput(flag, "on", f"{args.env_id} has no picture (render mode rgb_array)")


def protocol(args: EvalFlags) -> dict[str, Any]:
    """Describe, from a run's flags, what its scores mean; the text is stored with them."""
    cut = f"cut at {args.eval_max_steps} steps or by the environment"
    return {"evaluation": f"{args.eval_episodes} whole episodes, epsilon {args.eval_epsilon}, {cut}"}


def require_finite(env_id: str, name: str, values: np.ndarray | float, where: str) -> None:
    """Raise `CannotGoOn` if an environment gave a number that is not finite, from which nothing can be learned."""
    if not np.isfinite(values).all():
        raise CannotGoOn(f"{env_id} gave {name} that is not finite at {where}: {values}")


class Step(NamedTuple):
    """The result of one step; arrays are (N,)."""

    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    resets: np.ndarray
    """the step ignored its action and began a new episode: no transition starts there"""
    finished: list[tuple[float, int]]
    """return and length in steps of each episode that ended in this step"""


class Episodes:
    """N environments with vector observations, side by side in one process.

    `obs` (N, D) float32 is the current observation. The step after the end of an episode resets it (NEXT_STEP autoreset),
    so that the last observation is seen. Each episode has its own seed. If the environment has no other randomness, its
    actions lead to its current state again, so a checkpoint holds these actions.
    """

    def __init__(self, args: EnvFlags, purpose: int, num_games: int, make: Callable[[], gym.Env] | None = None) -> None:
        """Episodes with different values of `purpose` have different seeds; `make` replaces `vector_env(args)`."""
        self.env_id, self.seed, self.purpose, self.num_games = args.env_id, args.seed, purpose, num_games
        self.envs = gym.vector.SyncVectorEnv([make or (lambda: vector_env(args))] * num_games)
        self.num_actions = int(self.envs.single_action_space.n)
        self.history = History(num_games)
        self.returns, self.ended = np.zeros(num_games), np.zeros(num_games, dtype=bool)
        self.cut_at: np.ndarray | None = None  # the last observations, if a restore did not reproduce the episodes
        self._reset(np.ones(num_games, dtype=bool))

    def send(self, actions: np.ndarray) -> np.ndarray:
        """Set the actions (N,) of the next step; returns them."""
        self.actions = actions
        return actions

    def recv(self) -> Step:
        """Do the step and return its result; `obs` then holds the observations after it."""
        resets = self.ended
        self.history.add(self.actions)
        rewards, terminations, truncations = self._step(self.actions)
        finished = [(float(self.returns[i]), int(self.history.lengths[i])) for i in np.flatnonzero(self.ended)]
        if resets.any() and self.purpose != EVALUATION:
            self.history.begin(resets)
            self._reset(resets)  # again, with the episode's own seed, which autoreset does not know
        return Step(rewards, terminations, truncations, resets, finished)

    def _step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.obs, rewards, terminations, truncations, _ = self.envs.step(actions)
        self._require_finite("a reward", rewards)
        self._require_finite("an observation", self.obs)
        self.returns, self.ended = self.returns + rewards, terminations | truncations
        return rewards, terminations, truncations

    def _require_finite(self, name: str, values: np.ndarray) -> None:
        if np.isfinite(values).all():
            return
        for i in np.flatnonzero(~np.isfinite(values.reshape(self.num_games, -1)).all(1)):
            step = 0 if self.ended[i] else self.history.lengths[i]  # the step after an end is a reset
            require_finite(self.env_id, name, values[i], f"step {step} of an episode")

    def _reset(self, mask: np.ndarray) -> None:
        """Begin the episodes in `mask` (N,) bool; the others stay as they are."""
        seeds = env_seeds(self.seed, self.purpose, self.history.numbers)
        self.obs, _ = self.envs.reset(seed=seeds.tolist(), options={"reset_mask": mask})
        self.returns, self.ended = np.where(mask, 0, self.returns), self.ended & ~mask
        self._require_finite("an observation", self.obs)

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint holds: the actions of the running episodes, and what they led to."""
        return {name: getattr(self, name) for name in ("ended", "obs", "returns")} | {"history": self.history.saved()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Replay the running episodes. If that leads to something else, set `cut_at`: the caller then calls `begin_anew`."""
        self.history.restore(saved["history"])
        if self.history.whole:
            self.history.play_again(self._reset, self._step)
        came_back = (
            np.array_equal(getattr(self, name), saved[name], equal_nan=True) for name in ("ended", "obs", "returns")
        )
        if not (self.history.whole and all(came_back)):
            self.cut_at = saved["obs"]

    def begin_anew(self) -> None:
        """Begin new episodes everywhere, once the global random states, from which environments may draw, are restored."""
        everywhere = np.ones(self.num_games, dtype=bool)
        self.history.begin(everywhere)
        self._reset(everywhere)

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


def film_episode(act: Act, args: EvalFlags, run_name: str, name: str) -> None:
    """Play the evaluation's first episode again and write it to `videos/{run_name}/{name}.mp4`."""
    film(Path("videos") / run_name / f"{name}.mp4", functools.partial(show_episode, act, args))


def show_episode(act: Act, args: EvalFlags, show: Show) -> float:
    """Play the evaluation's first episode again and show it; returns its return."""
    env = vector_env(args, render_mode="rgb_array")
    screen = Screen(env, show, fps=env.metadata.get("render_fps", 30))
    evaluate(act, Episodes(args, EVALUATION, 1, lambda: screen), args.seed, args.eval_epsilon, args.eval_max_steps)
    return screen.score
