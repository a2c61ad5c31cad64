"""Learning curves of several runs in one picture, coloured by experiment: do settings that should not matter not matter?

    python benchmark/learning_curves.py docs/benchmark/speed-curves.png runs/Breakout*

A curve is the mean return of the last 100 training games at every thousandth step. Also prints each run's value at the last
step that all of them reached. Needs the extra `plots`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from cleanrl_utils.drawing import plt
from cleanrl_utils.record import read_series

COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#888888")
GAMES = 100


def curve(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps, every thousand from the hundredth game on, and the mean return of the last 100 games at each."""
    steps, _, returns = read_series(run)["charts/episodic_return"]
    if len(steps) < GAMES:
        raise SystemExit(f"{run} has ended {len(steps)} games; a curve needs {GAMES}")
    grid = np.arange(-(-steps[GAMES - 1] // 1000) * 1000, steps[-1] + 1, 1000)
    ended = np.searchsorted(steps, grid, side="right")  # games that have ended by then
    return grid, np.array([returns[count - GAMES : count].mean() for count in ended])


def main() -> None:
    """Read, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    arguments = parser.parse_args()
    flags = {run: json.loads((run / "config.json").read_text(encoding="utf-8"))["flags"] for run in arguments.runs}
    curves = {
        run: curve(run) for run in sorted(arguments.runs, key=lambda run: (flags[run]["exp_name"], flags[run]["seed"]))
    }
    names = list(dict.fromkeys(flags[run]["exp_name"] for run in curves))
    last = min(steps[-1] for steps, _ in curves.values())

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    print(f"| experiment | seed | mean return of the last {GAMES} games at step {last:,} |\n|---|---|---|")  # noqa: T201
    for run, (steps, returns) in curves.items():
        name, seed = flags[run]["exp_name"], flags[run]["seed"]
        label = name if run == next(one for one in curves if flags[one]["exp_name"] == name) else None
        axis.plot(steps, returns, color=COLOURS[names.index(name) % len(COLOURS)], label=label)
        print(f"| {name} | {seed} | {returns[np.searchsorted(steps, last)]:.2f} |")  # noqa: T201
    axis.set_xlabel("environment steps")
    axis.set_ylabel(f"return, mean of the last {GAMES} games")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
