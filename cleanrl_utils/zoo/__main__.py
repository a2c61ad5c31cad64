"""List the models in the box: `python -m cleanrl_utils.zoo`."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cleanrl_utils.console import output
from cleanrl_utils.flags import run


@dataclass
class Args:
    """List the models in the box: what they play, how well, and how to watch them."""


def models() -> list[dict[str, Any]]:
    """Return what is known of each model: folder, environment, script, evaluation over raw rewards, size in bytes."""
    found = []
    for path in sorted(Path(__file__).parent.glob("*/config.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        with (path.parent / "evaluation.csv").open(encoding="utf-8", newline="") as file:
            scores = next(row for row in csv.DictReader(file) if row["rewards"] == "raw")
        flags, size = run["flags"], sum(file.stat().st_size for file in path.parent.iterdir())
        script = run.get("script") or flags["exp_name"]
        found.append({"folder": path.parent, "env_id": flags["env_id"], "script": script, "scores": scores, "size": size})
    return found


def main(_: Args) -> None:
    """Print the list."""
    table = Table("environment", "script", "return, mean +- sd", "games", "MB", "card", box=box.SIMPLE)
    for model in models():
        scores = model["scores"]
        card = f"cleanrl_utils/zoo/{model['folder'].name}/README.md"
        mean, sd = float(scores["mean"]), float(scores["sd"])
        table.add_row(
            model["env_id"], model["script"], f"{mean:.2f} +- {sd:.2f}", scores["games"], f"{model['size'] / 1e6:.1f}", card
        )
    console = Console(width=200, soft_wrap=True)
    with console.capture() as captured:
        console.print(table)
        console.print("to watch one: python -m cleanrl_utils.enjoy --exp-name SCRIPT --env-id ENVIRONMENT --video game.mp4")
    output(captured.get().rstrip("\n"))


if __name__ == "__main__":
    run(main, Args)
