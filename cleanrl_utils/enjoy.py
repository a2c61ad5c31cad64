"""Play a saved agent: `python -m cleanrl_utils.enjoy --exp-name dqn_atari --env-id PongNoFrameskip-v4`.

With no source, the model in the box. Prints each episode, then one line of statistics; can film a game, or show it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from cleanrl_utils import config, models, players
from cleanrl_utils.config import BadInput, WriteError, notice, output
from cleanrl_utils.evals import require_video
from cleanrl_utils.video import Film, Window


@dataclass
class Args:
    """Play a saved agent, and say how well it plays."""

    exp_name: str | None = None
    """script that the agent is of, as dqn_atari; default: the run's, or dqn_atari"""
    env_id: str | None = None
    """environment; default: the run's, or PongNoFrameskip-v4"""
    hf_repository: str | None = None
    """repository on the Hugging Face Hub, as cleanrl/PongNoFrameskip-v4-dqn_atari-seed1 or sb3/dqn-PongNoFrameskip-v4, or
    a local folder of that layout"""
    revision: str | None = None
    """branch, tag or commit of that repository"""
    run: str | None = None
    """run folder, of training with --save-model"""
    weights: players.Weights = "last"
    """of a run: its last weights, those of its best evaluation, or those before the online phase"""
    eval_episodes: int = 10
    """whole episodes to play"""
    epsilon: float | None = None
    """exploration rate; default: that of the run's evaluations"""
    seed: int = 1
    """seed of the episodes and of the exploration"""
    render: bool = False
    """show the episodes in a window, one after the other; needs the extra `video`"""
    video: str | None = None
    """film one more episode to FILE.mp4 or FILE.gif (under 5 MB); needs the extra `video`"""


def load(args: Args) -> players.Player:
    """The agent that the flags name. Raises `BadInput`."""
    if args.run is not None and args.hf_repository is not None:
        raise BadInput("--run", args.run, "excludes --hf-repository: one source at a time")
    if args.run is not None:
        if args.env_id is not None:
            raise BadInput("--env-id", args.env_id, "is the run's own under --run: leave it")
        return players.from_folder(args.run, "--run", args.exp_name, args.weights)
    exp_name, env_id = args.exp_name or "dqn_atari", args.env_id or "PongNoFrameskip-v4"
    if args.hf_repository is not None:
        return players.from_hub(args.hf_repository, env_id, args.exp_name, args.weights, args.revision)
    if exp_name not in players.SCRIPTS:
        raise BadInput("--exp-name", exp_name, f"must be a script: {', '.join(players.SCRIPTS)}")
    folder = models.boxed(env_id, exp_name)
    if folder is None:
        there = ", ".join(sorted(path.parent.name for path in models.ZOO.glob("*/config.json")))
        source = f"give --run, or --hf-repository cleanrl/{models.atari_id(env_id)}-{exp_name}-seed1"
        raise BadInput("--env-id", env_id, f"has no model of {exp_name} in the box ({there}); {source}")
    return players.from_folder(str(folder), "--exp-name", exp_name, args.weights)


def main(args: Args) -> None:
    """Play, film and show. Raises `BadInput` before the first episode."""
    config.require_positive(args, "eval_episodes")
    config.require_probability(args, "epsilon")
    config.require_seed(args)
    film = Film(Path(args.video)) if args.video is not None else None  # refuses other kinds of file
    player = load(args)
    for wanted, flag in ((args.render, "--render"), (film, "--video")):
        if wanted:
            require_video(player.is_atari, flag)

    with contextlib.ExitStack() as stack:
        if film is not None:
            try:
                stack.enter_context(film)
            except WriteError as error:
                raise BadInput("--video", args.video, f"cannot be written ({error.strerror})") from None
            score = player.show(film, args.epsilon, args.seed)
    if film is not None:
        notice(f"video: {args.video}, an episode of its own, return {score:g}")
    if args.render:
        render(player, args)

    result = player.evaluate(args.eval_episodes, args.epsilon, args.seed)
    for episode, (score, length) in enumerate(zip(result.returns, result.lengths, strict=True), 1):
        output(f"episode={episode} return={score:g} length={length}")
    low, high = min(result.returns), max(result.returns)
    output(f"episodes={args.eval_episodes} mean={result.mean:.2f} std={result.std:.2f} min={low:g} max={high:g}")


def render(player: players.Player, args: Args) -> None:
    """Show episodes in a window until it is closed, or all have been played. Raises `BadInput` where there is no screen."""
    if os.environ.get("SDL_VIDEODRIVER") == "dummy" and "DISPLAY" in os.environ:
        del os.environ["SDL_VIDEODRIVER"]  # set where environments are drawn into memory
    try:
        window = Window(f"{player.name}: {player.args.env_id}")
    except Exception as error:  # pygame's own
        raise BadInput("--render", "on", f"finds no screen ({config.first_line(error)}); --video films instead") from None
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(window):
        for episode in range(args.eval_episodes):
            score = player.show(window, args.epsilon, args.seed + episode)
            notice(f"episode {episode + 1}: {score:g}")


if __name__ == "__main__":
    config.run(main, Args)
