"""Tables that compare how well several models play: `python -m cleanrl_utils.evals RUN_FOLDER...`."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from cleanrl_utils.console import notice, output, working
from cleanrl_utils.errors import BadInput
from cleanrl_utils.evals import players
from cleanrl_utils.evals.human import human_normalised
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.files import replacing
from cleanrl_utils.flags import check_ranges, run
from cleanrl_utils.ranges import Positive, Probability, Seed

COLUMNS = ("model", "environment", "rewards", "epsilon", "max", "mean", "min", "sd", "human-normalised")
COLUMNS += ("length", "games", "cut")


@dataclass
class Args:
    """Let saved agents play and write their scores in a table: on the screen, as markdown and as CSV."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN_FOLDER ...")] = field(
        default_factory=tuple
    )
    """run folders of training runs with --save-model, or folders of models in the box"""
    episodes: Positive = 20
    """whole episodes per agent"""
    epsilon: Probability | None = None
    """exploration rate; default: the one used in each run's evaluations"""
    env_id: str | None = None
    """environment; default: the one of each run. Required if its id names a package, which is then imported"""
    seed: Seed = 12345
    """seed of the episodes; it should differ from the training seeds, whose evaluations chose the best weights"""
    weights: players.Weights = "last"
    """which weights to play: the last ones, those of the best evaluation, or those before the online phase"""
    out: str = "evaluation"
    """path of the files to write, without .md and .csv"""


def rows(player: players.Player, result: Evaluation, epsilon: float | None) -> list[dict[str, Any]]:
    """Return a row for raw rewards and, for an Atari agent, one for clipped rewards: sums of signs, as it learned them."""
    kinds = {"raw": result.returns} | ({"clipped": result.clipped_returns} if player.is_atari else {})
    found = []
    for kind, returns in kinds.items():
        mean = float(np.mean(returns))
        normalised = human_normalised(player.args.env_id, mean) if kind == "raw" else None
        numbers = (max(returns), mean, min(returns), float(np.std(returns)), normalised)
        games = (float(np.mean(result.lengths)), len(returns), result.capped)
        agent = (player.name, player.args.env_id, kind, player.args.eval_epsilon if epsilon is None else epsilon)
        found.append(dict(zip(COLUMNS, (*agent, *numbers, *games), strict=True)))
    return found


def markdown(table: list[dict[str, Any]], kind: str) -> str:
    """Return the rows of one kind of rewards as a markdown table, with numbers aligned to the right."""
    columns = [name for name in COLUMNS if name != "rewards" and (name != "human-normalised" or kind == "raw")]
    lines = [f"| {' | '.join(columns)} |", f"|---|---|{'---:|' * (len(columns) - 2)}"]
    for row in table:
        if row["rewards"] == kind:
            lines.append(f"| {' | '.join(_cell(name, row[name]) for name in columns)} |")
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "human-normalised":
        return f"{100 * value:.1f}%"
    if name in ("mean", "sd", "length"):
        return f"{value:.1f}"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def page(table: list[dict[str, Any]], args: Args) -> str:
    """Return the markdown of all tables, and how they were made."""
    text = f"{args.episodes} whole games of each model, seed {args.seed}, {args.weights} weights.\n"
    text += f"\nRaw rewards:\n\n{markdown(table, 'raw')}\n"
    if any(row["rewards"] == "clipped" for row in table):
        text += f"\nClipped rewards (each its sign, as the agents learned):\n\n{markdown(table, 'clipped')}\n"
    return text


def main(args: Args) -> None:
    """Play, write and print. Raises `BadInput` before the first game for a folder that holds no agent."""
    check_ranges(args)
    if not args.runs:
        raise BadInput("RUN_FOLDER", "(none)", "name one run folder or more")
    agents = [players.from_folder(folder, "RUN_FOLDER", args.env_id, weights=args.weights) for folder in args.runs]
    if not Path(args.out).parent.is_dir():
        raise BadInput("--out", args.out, "must be in a folder that exists")
    table: list[dict[str, Any]] = []
    for player in agents:
        notice(f"{player.name}: {args.episodes} games")
        with working("playing"):
            result = player.evaluate(args.episodes, args.epsilon, args.seed)
        table += rows(player, result, args.epsilon)

    text, sheet = page(table, args), io.StringIO()
    writer = csv.DictWriter(sheet, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    try:
        for suffix, content in ((".md", text), (".csv", sheet.getvalue())):
            with replacing(Path(args.out + suffix)) as file:
                file.write(content.encode())
        notice(f"written: {args.out}.md, {args.out}.csv")
    finally:  # the games are played: what cannot be written is still shown
        output(text)


if __name__ == "__main__":
    run(main, Args)
