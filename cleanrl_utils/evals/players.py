"""Load saved agents of every script to play them: from a run folder, the Hugging Face Hub or the box."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput, missing
from cleanrl_utils.evals.play import Act, Evaluation, evaluate, require_video
from cleanrl_utils.evals.video import Show
from cleanrl_utils.flag_files import checked
from cleanrl_utils.models.files import FQI_FILES, SUFFIX, activation, hidden_units
from cleanrl_utils.models.source import explained, fetch, fetch_optional, public_name
from cleanrl_utils.record import read_run
from cleanrl_utils.seeds import EVALUATION

SCRIPTS = tuple(sorted(path.stem for path in Path(__file__).parents[2].joinpath("cleanrl").glob("[a-z]*.py")))
"""Names of the scripts. A script is imported by name when one of its agents is to be played."""
KNOWN_PACKAGES = ("ale_py", "flappy_bird_gymnasium")
"""Packages that the id of an environment may name in a file."""

Weights = Literal["last", "best", "offline"]


@dataclass(frozen=True)
class Player:
    """A greedy policy and the flags that it was trained with."""

    name: str
    """where it is from, without local folders"""
    script: str
    args: Any
    act: Act

    @property
    def is_atari(self) -> bool:
        """Whether it sees the screen of an Atari game."""
        return "atari" in self.script

    def settings(self, episodes: int, epsilon: float | None, seed: int) -> Any:
        """Return the flags with those of an evaluation; `epsilon` None means the run's."""
        epsilon = self.args.eval_epsilon if epsilon is None else epsilon
        return dataclasses.replace(self.args, eval_episodes=episodes, eval_epsilon=epsilon, seed=seed)

    def require_picture(self, flag: str) -> None:
        """Raise `BadInput` for a flag that shows the game, unless it can be drawn, with the packages installed here."""
        require_video(self.is_atari, flag)
        if not self.is_atari:
            from cleanrl_utils.evals import gym  # noqa: PLC0415 - needs another extra than Atari

            gym.require_picture(self.args, flag)

    def evaluate(self, episodes: int, epsilon: float | None, seed: int) -> Evaluation:
        """Play whole episodes by the run's protocol, as its own evaluations do."""
        args = self.settings(episodes, epsilon, seed)
        if self.is_atari:
            games = importlib.import_module(f"cleanrl.{self.script}").Games(args, EVALUATION, episodes)
            return evaluate(self.act, games, seed, args.eval_epsilon)
        from cleanrl_utils.evals import gym  # noqa: PLC0415 - as above

        return evaluate(self.act, gym.Episodes(args, EVALUATION, episodes), seed, args.eval_epsilon, args.eval_max_steps)

    def show(self, show: Show, epsilon: float | None, seed: int) -> float:
        """Play one episode and show it picture by picture; returns its score."""
        args = self.settings(1, epsilon, seed)
        if not self.is_atari:
            from cleanrl_utils.evals import gym  # noqa: PLC0415 - as above

            return gym.show_episode(self.act, args, show)
        from cleanrl_utils.evals import atari  # noqa: PLC0415 - as above

        return atari.show_game(self.act, args, show)


def import_script(name: str, flag: str) -> ModuleType:
    """Import a script by its name. Raises `BadInput` if the name is unknown or its packages are not installed."""
    if name not in SCRIPTS:
        raise BadInput(flag, name, f"must be a script: {', '.join(SCRIPTS)}")
    try:
        return importlib.import_module(f"cleanrl.{name}")
    except ImportError as error:
        extras = [e for e, part in (("atari", "atari"), ("jax", "jax"), ("fqi", "fqi")) if part in name]
        raise BadInput(flag, name, missing(error, ",".join(extras))) from None


def require_env(name: str, env_id: str) -> None:
    """Raise `BadInput` for an environment that does not exist, or that a script cannot play."""
    if "atari" in name:
        from cleanrl_utils.evals import atari  # noqa: PLC0415 - needs an extra

        atari.game_settings(env_id)
    else:
        from cleanrl_utils.evals import gym  # noqa: PLC0415 - as above

        gym.require_vector_env(import_script(name, "--exp-name").Args(env_id=env_id))


def from_folder(
    folder: str, flag: str, env_id: str | None = None, exp_name: str | None = None, weights: Weights = "last"
) -> Player:
    """Load the agent of a run folder, or of a folder in the box. Raises `BadInput`."""
    run = read_run(Path(folder) / "config.json", flag, folder)
    return _load(folder, flag, run, env_id, exp_name, weights, None)


def from_hub(repository: str, env_id: str | None, exp_name: str | None, weights: Weights, revision: str | None) -> Player:
    """Load the agent in a repository on the Hub; without a config.json of ours, it plays with the script's defaults.

    The repository's name then tells environment and script, unless the caller gives them. Raises `BadInput`.
    """
    flag, run = "--hf-repository", None
    with explained(flag, repository):
        path = fetch_optional(repository, "config.json", revision)
    if path is not None:
        with contextlib.suppress(BadInput):  # other projects have files of that name too
            run = read_run(path, flag, repository)
    return _load(repository, flag, run, env_id, exp_name, weights, revision)


def _load(
    source: str,
    flag: str,
    run: dict[str, Any] | None,
    env_id: str | None,
    exp_name: str | None,
    weights: Weights,
    revision: str | None,
) -> Player:
    """Load the agent at a source, with the flags in its config.json, if it has one; the caller's values override them."""
    named_env, named_script = named(public_name(source)) if run is None else (None, None)
    flags = run["flags"] if run else {"env_id": env_id or named_env}
    if flags["env_id"] is None:
        raise BadInput("--env-id", "(none)", f"say which environment: the name of {public_name(source)} does not tell")
    name = exp_name or (run and run["script"]) or str(flags.get("exp_name", named_script or "dqn_atari"))
    script = import_script(name, "--exp-name" if exp_name else flag)
    known = {field.name for field in dataclasses.fields(script.Args)} - {"exp_name", "resume", "dataset"}
    args = script.Args(**checked({k: v for k, v in flags.items() if k in known}, script.Args, flag, source))
    trained_on = named_env or args.env_id
    if env_id is None:
        require_known_package(trained_on, flag, source)
    else:
        args.env_id = env_id
    args.capture_video = args.upload_model = False  # they were for the run
    script.check(args)  # a file's values may be of the right type and out of range

    stem = str(flags.get("exp_name", name)) + ("" if weights == "last" else f"-{weights}")
    hint = "--exp-name names it" if flag == "--hf-repository" else "train with --save-model"
    if weights != "last":
        hint = "--weights names it"
    with explained(flag, source, hint):
        if name == "fqi":
            path = [fetch(source, file, revision, exact=True) for file in FQI_FILES][-1]
        else:
            path = fetch(source, f"{stem}{SUFFIX}", revision, exact=weights != "last")
        if run is None and hasattr(args, "hidden_units"):  # from another project: the file says how large the network is
            args.hidden_units, args.activation = hidden_units(path), activation(path)
        act = script.load_player(args, path)
    if args.env_id != trained_on:
        notice(f"{public_name(source)} was trained on {trained_on}")
    return Player(public_name(source), name, args, act)


def named(repository: str) -> tuple[str | None, str | None]:
    """Return environment and script from a repository's name, {env_id}-{script}-seed{n} or dqn-{env_id}; else None, None."""
    ours = re.fullmatch(r"(?:.*/)?(.+-v\d+)-(\w+)-seed\d+", repository)
    zoo = re.fullmatch(r"(?:.*/)?dqn-(.+-v\d+)", repository)  # of Stable-Baselines3
    env_id = (ours or zoo)[1] if ours or zoo else None
    if env_id is None:
        return None, None
    env_id = re.sub("^ALE-", "ALE/", env_id)
    of_atari = env_id.startswith("ALE/") or env_id.endswith("NoFrameskip-v4")
    script = ours[2] if ours and ours[2] in SCRIPTS else "dqn_atari" if of_atari else "dqn"
    return env_id, script


def require_known_package(env_id: str, flag: str, source: str) -> None:
    """Raise `BadInput` for an id like `package:Name-v0` from a file: only the user may have a package imported."""
    package, colon, _ = env_id.partition(":")
    if colon and package not in KNOWN_PACKAGES:
        raise BadInput(flag, source, f"plays {env_id}, which imports the package {package}: give this id with --env-id")
