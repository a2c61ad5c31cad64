"""Play a saved agent: `python -m cleanrl_utils.enjoy --exp-name dqn_atari --env-id PongNoFrameskip-v4`.

Without a run or repository it plays the model in the box. It prints each episode, then one line of statistics, and can film
the games or show them.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from cleanrl_utils.console import notice, output, working
from cleanrl_utils.errors import BadInput, WriteError, first_line
from cleanrl_utils.evals import players
from cleanrl_utils.evals.video import Film, Window, show_grid
from cleanrl_utils.flags import check_ranges, run
from cleanrl_utils.models.source import ZOO, atari_id, boxed
from cleanrl_utils.ranges import GridSize, Positive, Probability, Seed


@dataclass
class Args:
    """Play a saved agent and print how well it plays."""

    exp_name: str | None = None
    """script for the agent, such as dqn_atari; default: the run's, or the one in the repository's name, or dqn_atari"""
    env_id: str | None = None
    """environment; default: the run's, or the one in the repository's name; if neither is given, PongNoFrameskip-v4"""
    hf_repository: str | None = None
    """repository on the Hugging Face Hub, such as cleanrl/PongNoFrameskip-v4-dqn_atari-seed1 or sb3/dqn-PongNoFrameskip-v4,
    or a local folder with the same layout"""
    revision: str | None = None
    """branch, tag or commit of that repository"""
    run: str | None = None
    """run folder of a training run with --save-model"""
    weights: players.Weights = "last"
    """which weights of a run to play: the last ones, those of its best evaluation, or those before the online phase"""
    eval_episodes: Positive = 10
    """whole episodes to play"""
    epsilon: Probability | None = None
    """exploration rate; default: the one used in the run's evaluations"""
    seed: Seed = 1
    """seed of the episodes and of the exploration"""
    render: bool = False
    """show the episodes in a window, one after the other; needs the extra `video`"""
    video: str | None = None
    """film one more episode to FILE.mp4 or FILE.gif (under 5 MB); needs the extra `video`"""
    grid: GridSize | None = None
    """with --video: film COLUMNSxROWS episodes side by side, 10x10 at most; 3x2 is two rows of three"""


def load(args: Args) -> players.Player:
    """Load the agent that the flags name. Raises `BadInput`."""
    if args.run is not None and args.hf_repository is not None:
        raise BadInput("--run", args.run, "excludes --hf-repository: one source at a time")
    if args.revision is not None and (args.hf_repository is None or Path(args.hf_repository).is_dir()):
        raise BadInput("--revision", args.revision, "is of a repository on the Hub: give --hf-repository")
    if args.run is not None:
        return players.from_folder(args.run, "--run", args.env_id, args.exp_name, args.weights)
    if args.hf_repository is not None:
        return players.from_hub(args.hf_repository, args.env_id, args.exp_name, args.weights, args.revision)
    exp_name, env_id = args.exp_name or "dqn_atari", args.env_id or "PongNoFrameskip-v4"
    players.import_script(exp_name, "--exp-name")
    folder = boxed(env_id, exp_name)
    if folder is None:
        players.require_env(exp_name, env_id)  # no repository has a model for an environment that does not exist
        there = ", ".join(sorted(path.parent.name for path in ZOO.glob("*/config.json")))
        source = f"give --run, or --hf-repository cleanrl/{atari_id(env_id)}-{exp_name}-seed1"
        raise BadInput("--env-id", env_id, f"has no model of {exp_name} in the box ({there}); {source}")
    return players.from_folder(str(folder), "--exp-name", env_id, exp_name, args.weights)


def main(args: Args) -> None:
    """Film, show and play. Raises `BadInput` before the first episode."""
    check_ranges(args)
    if args.grid is not None and args.video is None:
        raise BadInput("--grid", args.grid, "is the shape of a film: give --video FILE")
    if args.grid is not None and args.render:
        raise BadInput("--grid", args.grid, "excludes --render, which shows one episode after the other")
    film = Film(Path(args.video)) if args.video is not None else None  # refuses other kinds of file
    screen = os.environ.get("SDL_VIDEODRIVER")  # the user's own: drawing environments in memory sets another
    player = load(args)
    for wanted, flag in ((args.render, "--render"), (film, "--video")):
        if wanted:
            player.require_picture(flag)
    window = open_window(f"{player.name}: {player.args.env_id}", screen) if args.render else None

    if film is not None:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(film)
            except WriteError as error:
                raise BadInput("--video", args.video, f"cannot be written ({error.strerror})") from None
            about = film_episodes(film, player, args)
        notice(f"video: {args.video}, {about}")
    if window is not None:
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(window):  # until it is closed
            for episode in range(args.eval_episodes):
                score = player.show(window, args.epsilon, args.seed + episode)
                notice(f"shown: episode {episode + 1}, return {score:.10g}")

    number = "one episode" if args.eval_episodes == 1 else f"{args.eval_episodes} episodes side by side"
    with working(f"playing {number}"):
        result = player.evaluate(args.eval_episodes, args.epsilon, args.seed)
    for episode, (score, length) in enumerate(zip(result.returns, result.lengths, strict=True), 1):
        output(f"episode={episode} return={score:.10g} length={length}")
    low, high = min(result.returns), max(result.returns)
    scores = f"episodes={args.eval_episodes} mean={result.mean:.2f} std={result.std:.2f} min={low:.10g} max={high:.10g}"
    output(f"{scores} env_id={player.args.env_id} script={player.script}")


def film_episodes(film: Film, player: players.Player, args: Args) -> str:
    """Film one more episode, or a grid of them with a seed each; returns what the film shows."""
    if args.grid is None:
        return f"an episode of its own, return {player.show(film, args.epsilon, args.seed):.10g}"
    columns, rows = map(int, args.grid.split("x"))
    with working(f"filming {columns * rows} episodes"):
        scores = show_grid(film, columns, rows, lambda show, game: player.show(show, args.epsilon, args.seed + game))
    return f"{len(scores)} episodes of their own, mean return {sum(scores) / len(scores):.10g}"


def open_window(title: str, driver: str | None) -> Window:
    """Open a window with the user's own video driver. Raises `BadInput` if there is no screen."""
    os.environ.pop("SDL_VIDEODRIVER", None)
    if driver is not None:
        os.environ["SDL_VIDEODRIVER"] = driver
    try:
        window = Window(title)
    except Exception as error:  # pygame's own
        raise BadInput("--render", "on", f"finds no screen ({first_line(error)}); --video films instead") from None
    if driver is None and window.driver in ("dummy", "offscreen"):
        window.close()
        raise BadInput("--render", "on", "finds no screen; --video films instead")
    return window


if __name__ == "__main__":
    run(main, Args)
