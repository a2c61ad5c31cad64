"""Pictures of a report, as PNG and SVG. Needs the extra `plots`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter

from cleanrl_utils import drawing
from cleanrl_utils.drawing import plt
from cleanrl_utils.report import statistics
from cleanrl_utils.report.groups import Curve, Groups, unit

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colours of Okabe and Ito 2008, which the colour-blind can tell apart; lines also differ in their dashes."""
DASHES = ("-", "--", "-.", ":")
POINTS = 200
"""Points of a curve."""
LABELS = {"charts/episodic_return": "return", "eval/episodic_return": "return, evaluation"}
plt.rcParams |= {"svg.hashsalt": "report", "svg.fonttype": "none"}  # the same file each time, its text searchable


def curves(groups: Groups, path: Path, metric: str, window: int) -> str:
    """Draw curves of each environment over steps, steps including the teacher's, and time; returns the PNG's name."""
    rows = ["steps", "minutes"]
    runs = [one for by_name in groups.values() for group in by_name.values() for one in group]
    if unit(metric) == "steps" and any(map(taught, runs)):
        rows.insert(1, "steps with the teacher's")
    names = sorted(set().union(*groups.values()))
    size = {"figsize": (max(6.4, 4.4 * len(groups)), 3.1 * len(rows)), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(len(rows), len(groups), **size)
    for column, (env_id, by_name) in enumerate(groups.items()):
        for row, clock in enumerate(rows):
            axis = axes[row][column]
            for name, group in by_name.items():
                draw(axis, group, clock, names.index(name), name)
            teachers = [one.run.score("teacher") for group in by_name.values() for one in group]
            if known := [score for score in teachers if score is not None]:
                axis.axhline(np.mean(known), color="#666666", linestyle=(0, (1, 1)), linewidth=1, label="teacher")
            axis.set_xlabel(label(clock, by_name, metric))
            axis.set_ylabel(LABELS.get(metric, metric) + f", mean of the last {window}" * (window > 1))
            axis.set_title(env_id if row == 0 else "")
            axis.grid(alpha=0.3)
            axis.set_xlim(0, None)
            if clock != "minutes":
                axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
    handles = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = min(len(handles), max(2, len(groups)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
    return save(figure, path)


def label(clock: str, by_name: dict[str, list[Curve]], metric: str) -> str:
    """Return what an x-axis counts."""
    if clock == "minutes":
        return "minutes of training"
    if unit(metric) == "updates":
        return "updates"
    if all(one.run.get("script") == "fqi" for group in by_name.values() for one in group):
        return "iterations"
    return "environment steps" + ", those the teacher collected included" * (clock != "steps")


def taught(one: Curve) -> int:
    """Return the steps that a teacher collected for a run, before the run's own steps."""
    return one.run.config["flags"].get("teacher_steps", 0)


def style_of(number: int) -> dict[str, str]:
    """Return colour and dashes of the group with this number."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}


def draw(axis: Any, group: list[Curve], clock: str, number: int, name: str) -> None:
    """Draw the mean of a group's curves where they all overlap, with its interval if there are several; else each curve.

    Draws nothing over minutes if the time of a run is not known.
    """
    xs = [one.seconds / 60 if clock == "minutes" else one.steps + taught(one) * (clock != "steps") for one in group]
    if any(np.isnan(x).any() for x in xs):  # no time is known of a run
        return
    grid = np.linspace(max(x[0] for x in xs), min(x[-1] for x in xs), POINTS)
    style = style_of(number)
    if grid[-1] < grid[0]:  # one ended before another had begun, by this clock: there is no mean
        for x, one in zip(xs, group, strict=True):
            axis.plot(x, one.values, linewidth=0.8, **style)
        return
    values = np.array([statistics.held(x, one.values, grid) for x, one in zip(xs, group, strict=True)])
    axis.plot(grid, values.mean(axis=0), label=name, **style)
    if len(group) > 1:
        axis.fill_between(grid, *statistics.mean_interval([values]), color=style["color"], alpha=0.2, linewidth=0)


def profiles(by_name: dict[str, list[np.ndarray]], path: Path, kind: str) -> str:
    """Draw performance profiles of normalised scores; returns the PNG's name."""
    pooled = np.concatenate([values for scores in by_name.values() for values in scores])
    margin = 0.05 * (np.ptp(pooled) or 1.0)
    thresholds = np.linspace(pooled.min() - margin, pooled.max() + margin, 101)
    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    for number, (name, scores) in enumerate(by_name.items()):
        style = style_of(number)
        axis.plot(thresholds, statistics.profile(scores, thresholds), label=name, **style)
        if min(map(len, scores)) > 1:
            bounds = statistics.profile_interval(scores, thresholds)
            axis.fill_between(thresholds, *bounds, color=style["color"], alpha=0.2, linewidth=0)
    axis.set(xlabel=f"{kind}-normalised score (0: random, 1: {kind})", ylabel="share of runs above it", ylim=(-0.02, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return save(figure, path)


def save(figure: Any, path: Path) -> str:
    """Write a PNG and an SVG; returns the PNG's name."""
    drawing.save(figure, path.with_suffix(".png"), dpi=120)
    drawing.save(figure, path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
    return path.with_suffix(".png").name
