"""Saved agents of every script, ready to be played: from a run folder, the Hugging Face Hub or the box."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from cleanrl_utils import models
from cleanrl_utils.config import BadInput, checked, read_run
from cleanrl_utils.evals import Act, Evaluation
from cleanrl_utils.video import Show

SCRIPTS = tuple(sorted(path.stem for path in Path(__file__).parents[1].joinpath("cleanrl").glob("[a-z]*.py")))
"""The scripts by name. They are imported by name, when an agent of theirs is to be played."""
FQI_FILES = ("dataset.npz", "targets.npz")
"""What `fqi.py` saves in place of weights."""

Weights = Literal["last", "best", "offline"]


@dataclass(frozen=True)
class Player:
    """A greedy policy and the flags that it was trained with."""

    name: str
    """where it is from, without local folders"""
    script: str
    args: Any
    act: Act
    steps: int | None
    """environment steps, or iterations, that it was trained for, where that is known"""

    @property
    def is_atari(self) -> bool:
        """Whether it sees the screen of an Atari game."""
        return "atari" in self.script

    def settings(self, episodes: int, epsilon: float | None, seed: int) -> Any:
        """The flags with those of an evaluation; `epsilon` None takes the run's."""
        epsilon = self.args.eval_epsilon if epsilon is None else epsilon
        return dataclasses.replace(self.args, eval_episodes=episodes, eval_epsilon=epsilon, seed=seed)

    def evaluate(self, episodes: int, epsilon: float | None, seed: int) -> Evaluation:
        """Play whole episodes by the run's protocol, as its own evaluations do."""
        args = self.settings(episodes, epsilon, seed)
        if not self.is_atari:
            from cleanrl_utils import gym_envs  # noqa: PLC0415 - needs another extra than Atari

            return gym_envs.evaluate(self.act, args)
        from cleanrl_utils import evals_atari  # noqa: PLC0415 - as above

        return evals_atari.evaluate(
            self.act, args.env_id, episodes, seed, args.eval_epsilon, args.sticky_actions, args.eval_max_frames
        )

    def show(self, show: Show, epsilon: float | None, seed: int) -> float:
        """Play one episode picture by picture; returns its score."""
        args = self.settings(1, epsilon, seed)
        if not self.is_atari:
            from cleanrl_utils import gym_envs  # noqa: PLC0415 - as above

            return gym_envs.show_episode(self.act, args, show)
        from cleanrl_utils import evals_atari  # noqa: PLC0415 - as above

        return evals_atari.show_game(self.act, args, show)


def import_script(name: str, flag: str) -> ModuleType:
    """A script by its name. Raises `BadInput` for an unknown one, and for one whose packages are not installed."""
    if name not in SCRIPTS:
        raise BadInput(flag, name, f"must be a script: {', '.join(SCRIPTS)}")
    try:
        return importlib.import_module(f"cleanrl.{name}")
    except ModuleNotFoundError as error:
        extras = [e for e, part in (("atari", "atari"), ("jax", "jax"), ("fqi", "fqi")) if part in name]
        raise BadInput(flag, name, f"needs `{error.name}`: pip install -e .[{','.join(extras)}]") from None


def from_folder(folder: str, flag: str, exp_name: str | None = None, weights: Weights = "last") -> Player:
    """The agent of a run folder, or of a folder in the box. Raises `BadInput`."""
    run = read_run(Path(folder) / "config.json", flag, folder)
    return _load(folder, flag, run, exp_name, str(run["flags"].get("env_id")), weights, None)


def from_hub(repository: str, env_id: str, exp_name: str | None, weights: Weights, revision: str | None) -> Player:
    """The agent in a repository on the Hub; one without our config.json plays with the script's defaults.

    The environment is the caller's: what a repository names is not imported. Raises `BadInput`.
    """
    flag, run = "--hf-repository", None
    with models.explained(flag, repository, "--exp-name"):
        path = models.fetch_optional(repository, "config.json", revision)
    if path is not None:
        run = read_run(path, flag, repository)
        if run["flags"].get("env_id") != env_id:
            there = f"plays {run['flags'].get('env_id')}: give that as --env-id"
            raise BadInput(flag, repository, there)
    return _load(repository, flag, run, exp_name, env_id, weights, revision)


def _load(
    source: str, flag: str, run: dict[str, Any] | None, exp_name: str | None, env_id: str, weights: Weights, revision: Any
) -> Player:
    """The agent at a source, with the flags in its config.json, if it has one."""
    flags = run["flags"] if run else {"env_id": env_id}
    saved_by = (run["script"] if run else None) or str(flags.get("exp_name", exp_name))
    name = exp_name or saved_by
    script = import_script(name, "--exp-name" if exp_name else flag)
    known = {field.name for field in dataclasses.fields(script.Args)} - {"exp_name", "resume"}
    args = script.Args(**checked({k: v for k, v in flags.items() if k in known}, script.Args, flag, source))
    require_env(args, name)
    stem = str(flags.get("exp_name", name)) + ("" if weights == "last" else f"-{weights}")
    with models.explained(flag, source, "--exp-name" if weights == "last" else "--weights"):
        if name == "fqi":
            path = [models.fetch(source, file, revision, exact=True) for file in FQI_FILES][-1]
        else:
            path = models.fetch(source, f"{stem}{models.SUFFIX}", revision, exact=weights != "last")
        if run is None and hasattr(args, "hidden_units"):  # of another project: the file says how large it is
            args.hidden_units = models.hidden_units(path)
        act = script.load_player(args, path)
    steps = (run or {}).get("steps", (run or {}).get("iterations"))
    return Player(models.public_name(source), name, args, act, steps)


def require_env(args: Any, script: str) -> None:
    """Raise `BadInput` unless the environment can be made, and suits the script."""
    if "atari" in script:
        from cleanrl_utils.atari import game_settings  # noqa: PLC0415 - an extra

        game_settings(args.env_id)
    else:
        from cleanrl_utils.gym_envs import require_vector_env  # noqa: PLC0415 - as above

        args.capture_video = False  # of the run, not of this
        require_vector_env(args)
