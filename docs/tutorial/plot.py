"""One metric of several experiments by step: `python docs/tutorial/plot.py --experiments dqn dqn_double --metric ...`.

Reads the run folders under runs/ and draws a thin line per seed and a thick one for their mean. Needs the extra `plots`.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cleanrl_utils import flags
from cleanrl_utils.console import notice
from cleanrl_utils.curves import run_folders
from cleanrl_utils.errors import BadInput
from cleanrl_utils.record import read_series

COLORS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#666666")


@dataclass
class Args:
    """Draw one metric of several experiments."""

    experiments: tuple[str, ...] = ("dqn",)
    """names of experiments (--exp-name)"""
    out: str = "curves.png"
    """picture to write"""
    metric: str = "eval/episodic_return"
    """metric to draw"""
    env_id: str = "CartPole-v1"
    """environment of the runs"""
    xlabel: str = "environment steps"
    """what the steps of the metric are"""
    ylabel: str = "return, mean of an evaluation"
    """what the metric is"""
    line: float | None = None
    """height of a dashed line"""
    line_label: str = ""
    """what it is"""
    log: bool = False
    """draw the metric on a logarithmic scale"""


def find_runs(env_id: str, experiment: str) -> list[Path]:
    """Run folders of an experiment, the latest of each seed."""
    latest = {}
    for folder in run_folders():
        flags = json.loads((folder / "config.json").read_text(encoding="utf-8"))["flags"]
        if (flags["env_id"], flags["exp_name"]) == (env_id, experiment):
            latest[flags["seed"]] = folder
    return [latest[seed] for seed in sorted(latest)]


def main(args: Args) -> None:
    """Draw. Raises `BadInput` where an experiment has no runs."""
    import matplotlib  # noqa: PLC0415 - an extra

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for experiment, color in zip(args.experiments, itertools.cycle(COLORS), strict=False):
        runs = [read_series(folder)[args.metric] for folder in find_runs(args.env_id, experiment)]
        if not runs:
            raise BadInput("--experiments", experiment, f"has no run on {args.env_id} under runs/")
        for steps, _, values in runs:
            axis.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        if any(not np.array_equal(steps, runs[0][0]) for steps, _, _ in runs):
            raise BadInput("--experiments", experiment, "its seeds ran with different flags, or not to their end")
        seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
        mean = np.mean([values for _, _, values in runs], axis=0)
        axis.plot(runs[0][0], mean, color=color, linewidth=2.5, label=f"{experiment}, {seeds}")
    if args.line is not None:
        axis.axhline(args.line, color="#888888", linestyle="--", label=args.line_label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel=args.xlabel, ylabel=args.ylabel, yscale="log" if args.log else "linear")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(args.out, dpi=110)
    plt.close(figure)
    notice(f"picture: {args.out}")


if __name__ == "__main__":
    flags.run(main, Args)
