"""Draw the pictures of speed.py. Needs the extra `plots`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gated import Turn

from cleanrl_utils.drawing import plt

BLUE, GREY, ORANGE, LIGHT, GREEN = "#1f77b4", "#888888", "#d95f02", "#cccccc", "#1b9e77"


def draw_table(turns: dict[tuple[str, str], list[Turn]], shares: dict[str, dict[str, float]], out: Path) -> None:
    """Median rates by group with their range, and where the time of a vector step goes."""
    groups = list(dict.fromkeys(group for group, _ in turns))
    heights = [sum(group == one for group, _ in turns) for one in groups] + [len(shares)] * bool(shares)
    size = (8, 1.2 + 0.4 * sum(heights) + 0.3 * len(heights))
    figure, axes = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, layout="constrained", squeeze=False)
    for group, axis in zip(groups, axes[:, 0], strict=False):
        rates = {name: [turn.rate for turn in series] for (one, name), series in turns.items() if one == group}
        medians = np.array([np.median(values) for values in rates.values()])
        lowest, highest = (np.array([pick(values) for values in rates.values()]) for pick in (min, max))
        axis.barh(list(rates), medians, xerr=(medians - lowest, highest - medians), color=BLUE, ecolor=ORANGE, capsize=3)
        axis.set_title(group, loc="left", fontsize=10)
    if shares:
        left = np.zeros(len(shares))
        for stage, colour in zip(next(iter(shares.values())), (GREEN, GREY, BLUE, LIGHT, ORANGE), strict=True):
            values = np.array([share[stage] for share in shares.values()])
            axes[-1, 0].barh(list(shares), values, left=left, label=stage, color=colour)
            left += values
        axes[-1, 0].set_title("share of a vector step", loc="left", fontsize=10)
        axes[-1, 0].set_xlim(0, 1)
        figure.legend(ncols=5, fontsize=8, loc="outside lower center")
    for axis in axes[:, 0]:
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
    figure.savefig(out, dpi=120)


def draw_sweep(turns: dict[tuple[str, str], list[Turn]], flag: str, out: Path) -> None:
    """Median rates with their range over the values of a flag, and peak memory beside them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for script, colour in (("dqn_atari.py", BLUE), ("dqn_atari_jax.py", ORANGE)):
        found = {int(name.split(", ")[1]): series for (_, name), series in turns.items() if name.startswith(f"{script},")}
        if not found:
            continue
        rates = np.array([[turn.rate for turn in series] for series in found.values()])
        left.plot(list(found), np.median(rates, 1), marker="o", color=colour, label=script)
        left.fill_between(list(found), rates.min(1), rates.max(1), color=colour, alpha=0.2)
        memory = [series[-1].device_memory or series[-1].memory for series in found.values()]
        right.plot(list(found), memory, marker="o", color=colour, label=script)
    for axis, label in ((left, next(iter(turns))[0]), (right, "peak memory in GB")):
        axis.set_xscale("log", base=10 if flag == "buffer_size" else 2)
        axis.set_xlabel(flag)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(out, dpi=120)
