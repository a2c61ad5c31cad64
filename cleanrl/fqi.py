# /// script
# requires-python = ">=3.11"
# dependencies = ["qdagger[fqi]"]
# tool.uv.sources.qdagger = { path = "..", editable = true }
# ///
"""Fitted Q-Iteration (Ernst et al. 2005, https://jmlr.org/papers/v6/ernst05a.html) with any regressor of scikit-learn.

Learns offline, from transitions of a random policy. Documentation: docs/rl-algorithms/fqi.md; tutorial from FQI to DQN:
docs/tutorial/from-q-learning-to-dqn.md. Start reading at `main`: collect, fit on rewards, then fit on targets repeatedly.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.base import RegressorMixin, clone
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils import all_estimators

from cleanrl_utils import flags
from cleanrl_utils.console import working
from cleanrl_utils.errors import BadInput, first_line
from cleanrl_utils.evals.gym import Episodes, film_episode, protocol, require_finite, require_vector_env, sizes, vector_env
from cleanrl_utils.evals.play import Evaluation, evaluate, require_video
from cleanrl_utils.files import replacing
from cleanrl_utils.models.files import ModelError
from cleanrl_utils.ranges import FileName, NotNegative, Positive, Probability, Seed
from cleanrl_utils.run.args import RunArgs
from cleanrl_utils.run.run import Run
from cleanrl_utils.seeds import EVALUATION, TRAINING, env_seeds

REGRESSORS = {
    "knn": functools.partial(KNeighborsRegressor, n_neighbors=30),
    "linear": LinearRegression,
    "tree": DecisionTreeRegressor,
    "forest": RandomForestRegressor,
    "gradient-boosting": GradientBoostingRegressor,
    "mlp": MLPRegressor,
}
"""Regressors by short name; any other regressor of scikit-learn is chosen by its class name."""


@dataclass
class Args(RunArgs):
    """Flags of this script; all scripts share others, such as `--track`: cleanrl_utils/run/args.py."""

    exp_name: FileName = "fqi"
    """name of this experiment, in the run folder"""
    seed: Seed = 1
    """seed of the run: environment, random policy, regressor"""
    save_model: bool = False
    """write dataset.npz and targets.npz to the run folder; `load_run` refits the last regressor from them"""

    env_id: str = "CartPole-v1"
    """environment with vector observations (others are flattened) and a finite set of actions, such as CartPole-v1 or
    package:Name-v0"""
    env_kwargs: flags.Json = field(default_factory=dict)
    """keyword arguments of the environment, such as '{"use_lidar": false}'"""
    n_steps: Positive = 50_000
    """transitions that the random policy collects, unless `--dataset` provides them"""
    dataset: str | None = None
    """file of transitions (.npz) to learn from, written if it does not exist; default: collect new transitions"""
    eval_frequency: NotNegative = 2
    """iterations between evaluations; 0: at the end only"""
    eval_episodes: Positive = 10
    """whole episodes per evaluation"""
    eval_epsilon: Probability = 0.0
    """exploration rate in evaluation"""
    eval_max_steps: Positive = 27_000
    """steps after which an evaluation episode is cut, unless the environment cuts it earlier"""

    n_iterations: Positive = 20
    """number of fits on targets, after the first fit on rewards"""
    gamma: Probability = 0.99
    """discount per step"""
    regressor: str = "knn"
    """knn, linear, tree, forest, gradient-boosting, mlp, or the class name of any regressor in scikit-learn"""
    regressor_kwargs: flags.Json = field(default_factory=dict)
    """keyword arguments of the regressor, such as '{"n_neighbors": 10}'; the default for knn is 30 neighbours"""


def check(args: Args) -> None:
    """Raise `BadInput` for a flag out of range."""
    flags.check_ranges(args)
    require_vector_env(args)
    if args.capture_video:
        require_video(atari=False)


# --- Data ---


class Dataset(NamedTuple):
    """Transitions (n, ...) of one environment."""

    obs: np.ndarray
    """(n, D) float32"""
    actions: np.ndarray
    rewards: np.ndarray
    next_obs: np.ndarray
    """(n, D) float32"""
    terminations: np.ndarray
    """where the task ended; an episode that was cut (truncated) does not count as ended"""
    num_actions: np.ndarray
    """(), of the environment"""
    env: np.ndarray
    """(), name and keywords of the environment, as text"""


def describe_env(args: Args) -> str:
    """Return the name and keywords of the environment."""
    return f"{args.env_id} {json.dumps(args.env_kwargs, sort_keys=True)}"


def collect(args: Args) -> Dataset:
    """Collect `n_steps` transitions with the uniformly random policy, episode after episode."""
    env, rng = vector_env(args), np.random.default_rng([args.seed, 1])
    num_actions, steps = int(env.action_space.n), []

    def seen(obs: np.ndarray, where: str) -> np.ndarray:
        require_finite(args.env_id, "an observation", obs, where)
        return obs.copy()  # an environment may go on writing into its array

    obs = seen(env.reset(seed=int(env_seeds(args.seed, TRAINING, np.zeros(1, dtype=int))[0]))[0], "the first reset")
    for step in range(1, args.n_steps + 1):
        action = int(rng.integers(num_actions))
        next_obs, reward, terminated, truncated, _ = env.step(action)
        require_finite(args.env_id, "a reward", reward, f"step {step}")
        next_obs = seen(next_obs, f"step {step}")
        steps.append((obs, action, reward, next_obs, bool(terminated)))
        obs = seen(env.reset()[0], f"the reset after step {step}") if terminated or truncated else next_obs
    env.close()
    obs, actions, rewards, next_obs, terminations = (np.array(column) for column in zip(*steps, strict=True))
    return Dataset(
        obs, actions, rewards.astype(np.float64), next_obs, terminations, np.array(num_actions), np.array(describe_env(args))
    )


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to an .npz file, whole or not at all."""
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def load_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Load arrays of an .npz file by name, without unpickling. Raises ValueError, whatever is wrong with the file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except Exception as error:  # zipfile and NumPy raise whatever the damage leads to
        raise ValueError(f"is no file of fqi.py ({first_line(error)})") from None


def load_dataset(path: Path, args: Args) -> Dataset:
    """Load the transitions in an .npz file. Raises ValueError unless they are complete and of the flags' environment."""
    data = Dataset(*load_arrays(path, Dataset._fields))
    if str(data.env) != describe_env(args):
        raise ValueError(f"is of {data.env}, not of {describe_env(args)}")
    env, n = vector_env(args), data.actions.size
    vectors, num_actions = (n, env.observation_space.shape[0]), int(env.action_space.n)
    env.close()
    layout = {"obs": (vectors, "f"), "next_obs": (vectors, "f"), "actions": ((n,), "i"), "rewards": ((n,), "f")}
    layout |= {"terminations": ((n,), "b"), "num_actions": ((), "i")}
    for name, (shape, kind) in layout.items():
        values = getattr(data, name)
        if values.shape != shape or values.dtype.kind != kind:
            raise ValueError(f"has `{name}` of shape {values.shape} and type {values.dtype}, not {shape} {kind}")
        if n == 0 or not np.isfinite(values).all():
            raise ValueError(f"has no transitions, or `{name}` holds what is no finite number")
    if data.num_actions != num_actions or not (0 <= data.actions.min() <= data.actions.max() < num_actions):
        raise ValueError(f"has other actions than the {num_actions} of the environment")
    return data


# --- The maths ---


def features(obs: np.ndarray, actions: np.ndarray, num_actions: int) -> np.ndarray:
    """Return the regressor's input, (n, D + 1) or (n, D + A): observation and action, one-hot for three actions or more."""
    shown = actions[:, None] if num_actions <= 2 else np.eye(num_actions)[actions]
    return np.concatenate([obs, shown], 1)


def q_values(model: RegressorMixin, obs: np.ndarray, num_actions: int) -> np.ndarray:
    """Return Q(s, a) of all actions, (n, A), from one prediction."""
    every_action = np.tile(np.arange(num_actions), len(obs))
    inputs = features(np.repeat(obs, num_actions, 0), every_action, num_actions)
    return model.predict(inputs).reshape(len(obs), num_actions)


def td_targets(model: RegressorMixin, data: Dataset, gamma: float) -> np.ndarray:
    """Return the regression targets r + gamma max_a Q(s', a), (n,); only r after a termination."""
    next_values = q_values(model, data.next_obs, int(data.num_actions)).max(1)
    return data.rewards + gamma * next_values * ~data.terminations


# --- The regressor ---


def make_regressor(args: Args) -> RegressorMixin:
    """Make a regressor that is not fitted yet. Raises `BadInput` for an unknown name or keyword."""
    name, classes = args.regressor, REGRESSORS
    if name not in classes:
        classes = dict(all_estimators(type_filter="regressor"))  # imports all of scikit-learn
    if name not in classes:
        raise BadInput("--regressor", name, f"must be {', '.join(REGRESSORS)}, or a class of scikit-learn")
    known = inspect.signature(classes[name]).parameters
    unknown = sorted(args.regressor_kwargs.keys() - known.keys())
    if unknown:
        raise BadInput("--regressor-kwargs", unknown[0], f"{name} knows {', '.join(known)}")
    seed = {"random_state": args.seed} if "random_state" in known else {}
    try:
        return classes[name](**seed | args.regressor_kwargs)
    except TypeError as error:  # a required keyword is missing
        raise BadInput("--regressor", args.regressor, first_line(error)) from None


def load_run(folder: Path) -> tuple[RegressorMixin, Args]:
    """Refit the last regressor of a run with `--save-model`; returns it and the run's flags.

    Raises `BadInput` if the folder does not hold such a run.
    """
    try:
        args = Args(**json.loads((folder / "config.json").read_text(encoding="utf-8"))["flags"])
        return fit_again(args, folder), args
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput("RUN_FOLDER", str(folder), f"is no saved run of fqi.py ({first_line(error)})") from None


def fit_again(args: Args, folder: Path) -> RegressorMixin:
    """Refit the regressor of the flags on the last targets in a run folder. Raises ValueError or TypeError."""
    data = load_dataset(folder / "dataset.npz", args)
    (targets,) = load_arrays(folder / "targets.npz", ["targets"])
    return make_regressor(args).fit(features(data.obs, data.actions, int(data.num_actions)), targets)


# --- The run ---


def player(model: RegressorMixin, num_actions: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the greedy policy for evaluation: observations (E, D) to actions (E,)."""
    return lambda obs: q_values(model, obs, num_actions).argmax(1)


def load_player(args: Args, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Refit the greedy policy of a run from its `targets.npz`, for `cleanrl_utils.enjoy` to play. Raises `ModelError`."""
    try:
        return player(fit_again(args, path.parent), sizes(args)[1])
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"holds no saved run of fqi.py ({first_line(error)})") from None


def main(args: Args) -> Path:
    """Collect, fit, evaluate and save; returns the run folder. Raises `BadInput` before anything is written."""
    check(args)
    regressor = make_regressor(args)  # never fitted itself: each fit starts from a new clone
    known = args.dataset is not None and os.path.exists(args.dataset)
    with working("loading" if known else "collecting"):
        try:
            data = load_dataset(Path(args.dataset), args) if known else collect(args)
        except ValueError as error:
            raise BadInput("--dataset", args.dataset, str(error)) from None
    num_actions = int(data.num_actions)
    inputs = features(data.obs, data.actions, num_actions)
    with working("fitting"):
        try:
            model = clone(regressor).fit(inputs, data.rewards)  # Q over one step is the reward
            q_values(model, data.obs[:1], num_actions)
        except (TypeError, ValueError, MemoryError) as error:  # scikit-learn checks the values of keywords only now
            what = f"{args.regressor} {args.regressor_kwargs} on {len(inputs)} transitions"
            size = "--dataset" if known else "--n-steps"
            raise BadInput(f"--regressor, --regressor-kwargs, {size}", what, first_line(error)) from None

    if args.dataset is not None and not known:
        try:
            save_arrays(Path(args.dataset), data._asdict())
        except OSError as error:
            raise BadInput("--dataset", args.dataset, f"cannot be written ({error.strerror})") from None

    run = Run(args)
    with run.started(protocol(args) | {"transitions": len(inputs)}):

        def evaluate_model(iteration: int) -> Evaluation:
            policy = player(model, num_actions)
            episodes = Episodes(args, EVALUATION, args.eval_episodes)
            with run.evaluating():
                result = evaluate(policy, episodes, args.seed, args.eval_epsilon, args.eval_max_steps)
                if args.capture_video:
                    film_episode(policy, args, run.folder.name, f"iteration-{iteration}")
                score = model.score(inputs, targets)
            metrics = {"eval/episodic_return": result.mean, "charts/score": score, "charts/mean_target": targets.mean()}
            run.scalars(metrics, iteration)
            return result

        run.begin("fitting", args.n_iterations, unit="iterations")
        for iteration in range(1, args.n_iterations + 1):
            try:
                targets = td_targets(model, data, args.gamma)
                model = clone(regressor).fit(inputs, targets)
            except ValueError as error:  # such as targets that have grown beyond all numbers
                raise FloatingPointError(f"iteration {iteration} cannot be fitted ({first_line(error)})") from None
            run.advance(iteration)
            if args.eval_frequency and iteration % args.eval_frequency == 0 and iteration < args.n_iterations:
                evaluate_model(iteration)

        if args.save_model:
            save_arrays(run.folder / "dataset.npz", data._asdict())
            save_arrays(run.folder / "targets.npz", {"targets": targets})
        scores = {"agent": evaluate_model(args.n_iterations)}
        run.finish({"iterations": args.n_iterations}, scores)
    return run.folder


if __name__ == "__main__":
    flags.run(main, Args)
