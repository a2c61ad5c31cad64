"""Runs in groups: which ones a report is about, their curves, their scores."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput, missing
from cleanrl_utils.evals import human
from cleanrl_utils.flags import check_ranges, flag
from cleanrl_utils.ranges import Positive
from cleanrl_utils.report import runs
from cleanrl_utils.report.runs import Run

EPISODES = 100
"""Number of training episodes whose mean is a score, as in CleanRL's documentation."""


NOTHING_LEARNED = {"seed", "config", "resume", "resume_anyway", "threads", "checkpoint_frequency", "keep_checkpoint"}
NOTHING_LEARNED |= {"save_model", "save_replay", "capture_video", "upload_model", "hf_entity"}
NOTHING_LEARNED |= {"track", "tracker", "wandb_project_name", "wandb_entity"}
NOTHING_LEARNED |= {"cuda", "device", "buffer_device", "compile", "cuda_graph", "torch_deterministic", "xla_deterministic"}
"""Flags that say what is kept of a run and what computes it. They do not make another setting of it."""


@dataclass
class Source:
    """Which runs to read, and which of their values."""

    runs: tuple[str, ...] = ("runs",)
    """run folders, or folders that contain them; written by these scripts, CleanRL or Stable-Baselines3"""
    wandb: str | None = None
    """read runs from this ENTITY/PROJECT on Weights & Biases instead"""
    select: tuple[str, ...] = ()
    """only runs that match key=value, such as exp_name=dqn; the key is a flag, or script, commit, folder"""
    env_ids: tuple[str, ...] = ()
    """only these environments; default: all"""
    unfinished: bool = False
    """include runs that are not complete"""
    metric: str = "charts/episodic_return"
    """metric to report; eval/episodic_return if runs were evaluated during training"""
    window: Positive | None = None
    """number of values averaged for each point of a curve; default: 100 for training episodes, 1 for other metrics"""


@dataclass(frozen=True)
class Curve:
    """A run's metric, smoothed."""

    run: Run
    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray
    window: int
    """values that each is the mean of, once there are as many"""

    def first_reached(self, threshold: float) -> tuple[float, float]:
        """Return steps and minutes when the mean of a full window first reached the threshold; NaN if it never did."""
        full = slice(self.window - 1, None)
        reached = np.flatnonzero(self.values[full] >= threshold)
        return (self.steps[full][reached[0]], self.seconds[full][reached[0]] / 60) if len(reached) else (np.nan, np.nan)

    @property
    def final(self) -> float:
        """The last value; for training returns it is the mean of the last 100 episodes."""
        return float(self.values[-1])


Groups = dict[str, dict[str, list[Curve]]]
"""Curves by environment and group."""


def load(source: Source) -> list[Run]:
    """Load the runs that the flags select. Raises `BadInput` if there are no such runs, or if no run has the metric."""
    check_ranges(source)
    found = runs.from_wandb(source.wandb) if source.wandb is not None else runs.from_folders(source.runs, "--runs")
    found = runs.select(found, source.select, "--select")
    for env_id in source.env_ids:
        runs.select(found, [f"env_id={env_id}"], "--env-ids")  # refuses what no run has
    found = [run for run in found if not source.env_ids or run.get("env_id") in source.env_ids]
    if not source.unfinished:
        for run in found:
            if run.get("status") != "complete":
                notice(f"left out: {run.name} is {run.get('status')}, not complete; --unfinished takes it in")
        found = [run for run in found if run.get("status") == "complete"]
    if not found:
        where = ("--runs", " ".join(source.runs)) if source.wandb is None else ("--wandb", source.wandb)
        raise BadInput(*where, "contains no complete run that the flags select")
    having = [run for run in found if source.metric in run.series]
    if not having:
        there = ", ".join(sorted({tag for run in found for tag in run.series}))
        raise BadInput("--metric", source.metric, f"is in none of {len(found)} runs; there are {there}")
    for run in found:
        if source.metric not in run.series:
            notice(f"left out: {run.name} has no {source.metric}")
    return having


def width(source: Source) -> int:
    """Return the number of values whose mean is a point of a curve."""
    return source.window or (EPISODES if source.metric == "charts/episodic_return" else 1)


def unit(metric: str) -> str:
    """Return what the steps of a metric count."""
    return "updates" if metric.startswith("charts/offline/") else "steps"


def curve(run: Run, source: Source) -> Curve:
    """Return a run's curve of the metric."""
    window = width(source)
    steps, seconds, values = run.series[source.metric]
    return Curve(run, steps, seconds, runs.trailing_mean(values, window), window)


def statistics() -> Any:
    """Import the module, which needs scipy. Raises `BadInput`."""
    try:
        from cleanrl_utils.report import statistics  # noqa: PLC0415 - needs an extra
    except ImportError as error:
        raise BadInput("report", "on", missing(error, "plots")) from None
    return statistics


def grouped(found: list[Run], source: Source, keys: Sequence[str], label: str = "") -> Groups:
    """Return curves by environment and group, in the order of their names.

    Says what is odd about a group, by its name or by the `label` of all groups.
    """
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for run in sorted(found, key=lambda run: (run.get("env_id"), run.get("seed"))):
        try:
            name = ", ".join(str(run.get(key)) for key in keys)
        except KeyError as error:
            raise BadInput("--group-by", error.args[0], f"is no flag of {run.name}") from None
        groups[run.get("env_id")][name].append(curve(run, source))
    for env_id, by_name in groups.items():
        for name, curves in by_name.items():
            where = f"{env_id}, {label or name}"
            ends = sorted({int(one.steps[-1]) for one in curves})
            if len(curves) == 1:
                notice(f"{where}: one seed only, so there is no interval: one run says nothing about the spread of runs")
            if len({one.run.config["flags"].get("total_timesteps") for one in curves}) > 1:
                notice(
                    f"{where}: runs of unequal length, {ends[0]:,} to {ends[-1]:,} steps; the curve ends with the shorter"
                )
            if mixed := differing(curves):
                notice(f"{where}: runs of several settings in one group ({', '.join(mixed)}); --group-by tells them apart")
            if few := sum(len(one.values) < one.window for one in curves):
                notice(f"{where}: {few} of {len(curves)} runs have fewer than {width(source)} values to take the mean of")
            if len({one.run.get("seed") for one in curves}) < len(curves):
                notice(f"{where}: the same seed appears more than once")
    return {env_id: dict(sorted(by_name.items())) for env_id, by_name in sorted(groups.items())}


def differing(curves: list[Curve]) -> list[str]:
    """Return the names of flags that affect what is learned and differ between runs; also `script` if that differs."""
    configs = [one.run.config for one in curves]
    names = set().union(*(config["flags"] for config in configs)) - NOTHING_LEARNED
    scripts = ["script"] if len({config.get("script") for config in configs}) > 1 else []
    return sorted([*scripts, *(name for name in names if differs(name, configs))])


def differs(name: str, configs: list[dict[str, Any]]) -> bool:
    """Whether a flag differs between runs. A run from before the flag was added did what its default does."""
    having = [config for config in configs if name in config["flags"]]
    values, words = {json.dumps(config["flags"][name]) for config in having}, {flag(name), flag(f"no_{name}")}
    given = any("command" not in config or words & {*config["command"]} for config in having)
    return len(values) > 1 or (given and len(having) < len(configs))


# --- Scores ---


def finals(groups: Groups, name: str) -> dict[str, np.ndarray]:
    """Return the final scores of a group's runs, by environment."""
    return {env: np.array([one.final for one in by[name]]) for env, by in groups.items() if name in by}


def references(groups: Groups, kind: str) -> dict[str, tuple[float, float]]:
    """Return the scores that are normalised to 0 and 1, by environment: random and human, or random and teacher.

    An environment where the latter is no better is left out, with a line.
    """
    found = {}
    for env_id, by_name in groups.items():
        if kind == "human":
            pair = human.of_game(env_id)
            if pair is not None:
                found[env_id] = pair
            continue
        players = ("random", "teacher")
        pairs = [tuple(map(one.run.score, players)) for curves in by_name.values() for one in curves]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            found[env_id] = tuple(np.mean(pairs, axis=0))
    if useless := sorted(env_id for env_id, (low, high) in found.items() if low >= high):
        notice(f"{kind}-normalised: without {', '.join(useless)}, where the {kind} is no better than a random player")
    return {env_id: pair for env_id, pair in found.items() if env_id not in useless}


def normalised(groups: Groups, known: dict[str, tuple[float, float]], kind: str) -> dict[str, list[np.ndarray]]:
    """Normalise scores, by group: an array per environment that all groups have and whose reference is known; else {}.

    A score becomes (score - random) / (reference - random).
    """
    names = sorted(set().union(*groups.values()))
    common = [env for env, by_name in groups.items() if env in known and by_name.keys() == set(names)]
    if left_out := known.keys() - set(common):
        notice(f"{kind}-normalised, over all environments: without {', '.join(sorted(left_out))}, which not all groups have")
    return {
        name: [(finals(groups, name)[env] - known[env][0]) / (known[env][1] - known[env][0]) for env in common]
        for name in names
        if common
    }


def compared(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[list[str], Any]:
    """Return the environments where A and B both have two runs or more, and how they compare there; None without one."""
    both = [env for env in a if env in b and min(len(a[env]), len(b[env])) > 1]
    return both, statistics().compare([a[env] for env in both], [b[env] for env in both]) if both else None
