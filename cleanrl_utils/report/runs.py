"""Read runs with all that they logged, from run folders or from Weights & Biases, for reports.

A run folder is ours, with config.json, or one of CleanRL or Stable-Baselines3: see `foreign`.
"""

from __future__ import annotations

import contextlib
import json
import stat
import statistics as means
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput, first_line
from cleanrl_utils.record import Series, columns, event_files, is_config, read_run, read_series
from cleanrl_utils.report import foreign

MOST_ROWS = 10_000_000
"""Rows to ask for of a run on Weights & Biases, which thins them out if there are more than that."""


@dataclass(frozen=True)
class Run:
    """A run: its name, its config.json and what it logged, by metric."""

    name: str
    config: dict[str, Any]
    series: dict[str, Series]

    def get(self, key: str) -> Any:
        """Return a flag by name, or `script`, `commit`, `hardware`, `folder`. Raises `KeyError`."""
        if key == "folder":
            return Path(self.name).parent.name
        return self.config[key] if key in ("script", "commit", "hardware", "status") else self.config["flags"][key]

    def score(self, player: str) -> float | None:
        """Return the mean return of an evaluation that the run stored, such as `teacher`; None without it."""
        evaluation = self.config.get("evaluations", {}).get(player)
        return means.fmean(evaluation["returns"]) if evaluation else None


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, ours or one of CleanRL or Stable-Baselines3; or may do so, but cannot be read."""
    try:
        return has_config(folder) or bool(foreign.sb3_files(folder) or event_files(folder))
    except OSError:
        return True


def has_config(folder: Path) -> bool:
    """Whether there is a config.json. Raises `OSError` if that cannot be told: `Path.is_file` of Python 3.14 would not."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return stat.S_ISREG((folder / "config.json").stat().st_mode)
    return False


def from_folders(paths: Iterable[str], flag: str) -> list[Run]:
    """Read the runs in folders: each is a run folder, or holds run folders one or two levels below.

    A run that is found several times, under other paths or in a copy of one of our folders, is read as one. Raises
    `BadInput` if there is none, or if a run folder itself cannot be read. One below a folder is skipped with a line.
    """
    runs = []
    for path in map(Path, paths):
        if is_run(path):
            runs.append(from_folder(path, flag))
            continue
        found = sorted(filter(is_run, [*path.glob("*"), *path.glob("*/*")]))
        read = []
        for folder in found:
            try:
                read.append(from_folder(folder, flag))
            except BadInput as error:
                notice(f"skipped: {error}")
        if not read:
            raise BadInput(flag, path, "holds no run that can be read" if found else "is no run folder, and holds none")
        runs += read
    return list({identity(run): run for run in reversed(runs)}.values())[::-1]


def identity(run: Run) -> tuple[str, ...]:
    """Return what tells a run from all others: its folder's name, which has its time, and its config.json; else its path."""
    folder = Path(run.name).resolve()
    return (folder.name, json.dumps(run.config, sort_keys=True)) if has_config(folder) else (str(folder),)


def from_folder(folder: Path, flag: str) -> Run:
    """Read the run in a folder. Raises `BadInput` if it cannot be read."""
    try:
        ours = has_config(folder)
    except OSError as error:
        raise BadInput(flag, folder, f"cannot be read ({error.strerror})") from None
    if not ours:
        return Run(str(folder), *foreign.read(folder, flag))
    return Run(str(folder), read_run(folder / "config.json", flag, folder), read_series(folder))


def from_wandb(project: str) -> list[Run]:
    """Read the runs of a project ENTITY/PROJECT on Weights & Biases. Raises `BadInput` if it cannot be read."""
    import wandb  # noqa: PLC0415 - slow to import, and needed here only

    runs = []
    try:
        for found in wandb.Api().runs(project):
            status = {"finished": "complete", "running": "running"}.get(found.state, "stopped")
            config = json.loads(json.dumps(dict(found.config))) | {"status": status}
            if not is_config(config):
                notice(f"skipped: {found.name} was not made by these scripts")
                continue
            points: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
            for row in found.history(samples=MOST_ROWS, pandas=False):
                for tag, value in row.items():
                    if isinstance(value, int | float) and not tag.startswith("_") and not tag.endswith("_step"):
                        clock = "offline_step" if tag.startswith("charts/offline/") else "global_step"
                        points[tag].append((row.get(clock, row["_step"]), row.get("_runtime", 0.0), value))
            series = {tag: columns(without_repeats(rows)) for tag, rows in points.items()}
            runs.append(Run(found.name, config, series))
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise BadInput("--wandb", project, f"cannot be read ({first_line(error)})") from None
    return runs


def without_repeats(rows: list[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """Drop the points that a resumed run has logged again; the later ones count."""
    kept, least = [], float("inf")
    for row in reversed(rows):
        if row[0] <= least:
            kept.append(row)
            least = row[0]
    return kept[::-1]


def select(runs: list[Run], conditions: Iterable[str], flag: str) -> list[Run]:
    """Select the runs that match all `key=value`, such as exp_name=dqn or commit=91bc603 (a prefix). Raises `BadInput`."""
    for condition in conditions:
        key, _, value = condition.partition("=")
        if not any(_has(run, key) for run in runs):
            keys = sorted({"script", "commit", "hardware", "folder"}.union(*(run.config["flags"] for run in runs)))
            raise BadInput(flag, condition, f"must be key=value, with a key of the runs: {', '.join(keys)}")
        kept = [run for run in runs if _has(run, key) and _same(key, run.get(key), value)]
        if not kept:
            there = sorted({str(run.get(key)) for run in runs if _has(run, key)})
            raise BadInput(flag, condition, f"matches no run; there are {', '.join(there)}")
        runs = kept
    return runs


def _has(run: Run, key: str) -> bool:
    with contextlib.suppress(KeyError):
        run.get(key)
        return True
    return False


def _same(key: str, have: Any, wanted: str) -> bool:
    if key == "commit":
        return str(have).startswith(wanted)
    with contextlib.suppress(ValueError):
        if json.loads(wanted) == have:
            return True
    return str(have) == wanted


def trailing_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of the last `width` values, or of as many as there are, at each position."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)
