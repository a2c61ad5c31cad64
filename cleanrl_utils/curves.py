"""Draw the learning curves of a run: `python -m cleanrl_utils.curves [RUN_FOLDER]`; by default, of the latest run.

Needs the extra `plots`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput, missing
from cleanrl_utils.flags import run
from cleanrl_utils.record import read_run, read_series
from cleanrl_utils.report.runs import trailing_mean

GREY, BLUE, ORANGE, GREEN = "#888888", "#1f77b4", "#d95f02", "#1b9e77"


@dataclass
class Args:
    """Draw the learning curves of a run."""

    run: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[RUN_FOLDER]")] = None
    """run folder; default: the most recently changed one under runs/"""
    out: str | None = None
    """picture file to write; default: curve.png in the run folder"""


def run_folders() -> list[Path]:
    """Return the run folders under runs/, with the one that changed last at the end."""
    return [path.parent for path in sorted(Path("runs").glob("*/config.json"), key=lambda path: path.stat().st_mtime)]


def draw(run: Path, out: Path) -> None:
    """Write the picture: offline losses and returns, if there was such a phase, returns by steps, and final scores."""
    from cleanrl_utils.drawing import plt, save  # noqa: PLC0415 - an extra

    scores = read_run(run / "config.json", "RUN_FOLDER", run).get("evaluations", {})
    metrics = read_series(run)
    panels = [_online]
    if len(metrics.get("charts/offline/avg_episodic_return", ((),))[0]) > 1:
        panels.insert(0, _offline)
    if "charts/offline/loss" in metrics:
        panels.insert(0, _losses)
    if scores:
        panels.append(_scores)
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), layout="constrained", squeeze=False)
    for panel, axis in zip(panels, axes[0], strict=True):
        panel(axis, metrics, scores)
    figure.suptitle(run.name, fontsize=9, color=GREY)
    save(figure, out, dpi=110)
    plt.close(figure)


def _losses(axis: Any, metrics: dict, scores: dict) -> None:  # noqa: ARG001 - panels are called alike
    for name, color in (("distill_loss", ORANGE), ("q_loss", BLUE)):
        steps, _, values = metrics[f"charts/offline/{name}"]
        axis.plot(steps, values, color=color, alpha=0.25)
        axis.plot(steps, trailing_mean(values, 10), color=color, label=name)
    axis.set(title="offline: losses of single batches", xlabel="updates", yscale="log")
    axis.legend(frameon=False)


def _offline(axis: Any, metrics: dict, scores: dict) -> None:
    steps, _, values = metrics["charts/offline/avg_episodic_return"]
    axis.plot(steps, values, "o-", color=GREEN, label="student, evaluation")
    _goals(axis, scores)
    axis.set(title="offline: evaluation return", xlabel="updates", xlim=(0, None))


def _online(axis: Any, metrics: dict, scores: dict) -> None:
    if "charts/episodic_return" in metrics:
        steps, _, values = metrics["charts/episodic_return"]
        axis.plot(steps, values, ".", color=BLUE, alpha=0.3, markersize=4)
        axis.plot(steps, trailing_mean(values, 20), color=BLUE, label="training games, mean of 20")
    if "eval/episodic_return" in metrics:
        steps, _, values = metrics["eval/episodic_return"]
        axis.plot(steps, values, "o-", color=GREEN, label="evaluation")
    _goals(axis, scores)
    fitted = "charts/mean_target" in metrics  # by fqi.py, which counts iterations
    title, steps = ("return", "iterations") if fitted else ("online: return", "environment steps")
    axis.set(title=title, xlabel=steps, xlim=(0, None))


def _goals(axis: Any, scores: dict) -> None:
    for name, style in (("random", ":"), ("teacher", "--")):
        if name in scores:
            axis.axhline(
                sum(scores[name]["returns"]) / len(scores[name]["returns"]), color=GREY, linestyle=style, label=name
            )
    axis.legend(frameon=False)


def _scores(axis: Any, metrics: dict, scores: dict) -> None:  # noqa: ARG001 - panels are called alike
    for place, (name, score) in enumerate(scores.items()):
        returns = score["returns"]
        axis.plot([place] * len(returns), returns, ".", color=BLUE, alpha=0.2)
        axis.plot(place, sum(returns) / len(returns), "_", color=ORANGE, markersize=28, markeredgewidth=2.5, label=name)
    axis.set(title="single games and their mean", xlim=(-0.6, len(scores) - 0.4))
    axis.set_xticks(range(len(scores)), [name.replace(" ", "\n") for name in scores])


def main(args: Args) -> Path:
    """Draw the picture and say where it is. Raises `BadInput` if there is no run or no matplotlib, and `WriteError`."""
    runs = run_folders()
    if args.run is None and not runs:
        raise BadInput("RUN_FOLDER", "(none)", "there is no run under runs/ yet; name a run folder")
    folder = runs[-1] if args.run is None else Path(args.run)
    out = Path(args.out) if args.out else folder / "curve.png"
    try:
        draw(folder, out)
    except ImportError as error:
        raise BadInput("RUN_FOLDER", str(folder), missing(error, "plots")) from None
    notice(f"curve:      {out}")
    for model in sorted(folder.glob("*.cleanrl_model")):
        notice(f"model:      {model}")
    return out


if __name__ == "__main__":
    run(main, Args)
