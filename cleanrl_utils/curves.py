"""Learning curves of a run as a picture: `python -m cleanrl_utils.curves [RUN_FOLDER]`, the latest run by default.

Needs the extra `plots`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cleanrl_utils.config import BadInput, notice, run

GREY, BLUE, ORANGE, GREEN = "#888888", "#1f77b4", "#d95f02", "#1b9e77"


@dataclass
class Args:
    """Draw the learning curves of a run."""

    run: tyro.conf.Positional[str | None] = None
    """run folder; default: the one changed last under runs/"""
    out: str | None = None
    """picture to write; default: curve.png in the run folder"""


def scalars(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every metric of a run."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    return {tag: ([event.step for event in series], [event.value for event in series]) for tag, series in found.items()}


def moving_mean(values: list[float], width: int) -> list[float]:
    """Mean of the last `width` values, or of as many as there are, at each position."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def draw(run: Path, out: Path) -> None:
    """Write the picture: losses and returns of the offline phase, if there was one, and returns by steps."""
    import matplotlib  # noqa: PLC0415 - an extra

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    metrics = scalars(run)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    offline = "charts/offline/loss" in metrics
    size = (12, 3.6) if offline else (7, 3.6)
    figure, axes = plt.subplots(1, 3 if offline else 1, figsize=size, layout="constrained", squeeze=False)
    axes, scores = list(axes[0]), config.get("evaluations", {})
    lines = {name: scores[name]["returns"] for name in ("random", "teacher") if name in scores}

    if offline:
        losses = axes.pop(0)
        for name, color in (("distill_loss", ORANGE), ("q_loss", BLUE)):
            steps, values = metrics[f"charts/offline/{name}"]
            losses.plot(steps, values, color=color, alpha=0.25)
            losses.plot(steps, moving_mean(values, 10), color=color, label=name)
        losses.set(title="offline: losses", xlabel="updates", yscale="log")
        losses.legend(frameon=False)
        _returns(axes[0], lines, {"student": metrics.get("charts/offline/avg_episodic_return")})
        axes.pop(0).set(title="offline: evaluation return", xlabel="updates")

    _returns(axes[0], lines, {"student" if offline else "agent": metrics.get("eval/episodic_return")})
    if "charts/episodic_return" in metrics:
        steps, values = metrics["charts/episodic_return"]
        axes[0].plot(steps, values, ".", color=BLUE, alpha=0.15, markersize=3)
        axes[0].plot(steps, moving_mean(values, 20), color=BLUE, label="training games, mean of 20")
        axes[0].legend(frameon=False)
    axes[0].set(title="online: return" if offline else "return", xlabel="environment steps")
    figure.suptitle(run.name, fontsize=9, color=GREY)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _returns(axis, lines: dict[str, list[float]], series: dict[str, tuple | None]) -> None:  # noqa: ANN001
    for (name, returns), style in zip(lines.items(), (":", "--"), strict=False):
        axis.axhline(sum(returns) / len(returns), color=GREY, linestyle=style, label=name)
    for name, points in series.items():
        if points is not None:
            axis.plot(*points, "o-", color=GREEN, label=f"{name}, evaluation")
    axis.legend(frameon=False)


def main(args: Args) -> Path:
    """Draw and say where. Raises `BadInput` where there is no run or no matplotlib."""
    runs = sorted(Path("runs").glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if args.run is None and not runs:
        raise BadInput("RUN_FOLDER", "(none)", "there is no run under runs/ yet; name a run folder")
    folder = runs[-1].parent if args.run is None else Path(args.run)
    if not (folder / "config.json").is_file():
        raise BadInput("RUN_FOLDER", str(folder), "must be a run folder, with its config.json")
    out = Path(args.out) if args.out else folder / "curve.png"
    try:
        draw(folder, out)
    except ModuleNotFoundError as error:
        raise BadInput("RUN_FOLDER", str(folder), f"needs `{error.name}`: pip install -e .[plots]") from None
    notice(f"curve:      {out}")
    for model in sorted(folder.glob("*.cleanrl_model")):
        notice(f"model:      {model}")
    return out


if __name__ == "__main__":
    run(main, Args)
