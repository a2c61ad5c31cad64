"""Draw the picture of docs/benchmark/atari.md from the evaluations in a folder.

    python benchmark/atari_curves.py docs/benchmark/atari

Needs the extra `plots`.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from cleanrl_utils.drawing import plt

COLOURS = {"QDagger": "#d95f02", "DQN": "#1f77b4"}
PUBLISHED = {"Pong": 13.5, "Breakout": 63.1}
"""Stable-Baselines3's zoo after a million steps, one seed each."""


def main(folder: Path) -> None:
    """Read evaluations.csv, write curves.png: a panel per game, a line per seed."""
    with (folder / "evaluations.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(1, len(PUBLISHED), figsize=(10, 4), layout="constrained")
    for axis, (game, published) in zip(axes, PUBLISHED.items(), strict=True):
        lines, teachers = defaultdict(list), []
        for row in rows:
            value = float(row["mean_return_of_20_games"])
            if row["game"] == game and row["algorithm"] == "teacher":
                teachers.append(value)
            elif row["game"] == game:
                lines[row["algorithm"], row["seed"]].append((int(row["environment_steps"]), value))
        for (algorithm, seed), points in lines.items():
            steps, values = np.array(points).T
            axis.plot(steps / 1000, values, ".-", color=COLOURS[algorithm], label=algorithm if seed == "1" else None)
        axis.axhline(np.mean(teachers), color="black", linestyle="--", label="the teacher")
        axis.axhline(published, color="#888888", linestyle=":", label="Stable-Baselines3's zoo, DQN, 1M steps")
        axis.set(title=game, xlabel="thousands of environment steps, the teacher's 100 counted", ylabel="mean of 20 games")
        axis.grid(alpha=0.3)
    axes[-1].legend()
    figure.savefig(folder / "curves.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
