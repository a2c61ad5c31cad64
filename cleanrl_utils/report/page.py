"""The page of a report: its tables, and what a reader needs to repeat the runs."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cleanrl_utils.errors import BadInput
from cleanrl_utils.flags import Json, command_line
from cleanrl_utils.record import short
from cleanrl_utils.report.groups import Groups, Source, compared, finals, statistics, unit, width
from cleanrl_utils.report.power import enough_runs
from cleanrl_utils.report.runs import Run


@dataclass
class Args(Source):
    """Write a report of runs: index.md, scores.csv and pictures. `compare A B` tells whether A is better than B."""

    out: str = "report"
    """folder to write to"""
    title: str = "Report"
    """title of the page"""
    note: str = ""
    """paragraph under the title, with what a reader should know first"""
    group_by: tuple[str, ...] = ("exp_name",)
    """keys by which runs are grouped: flags, or script, commit, folder"""
    thresholds: Json = field(default_factory=dict)
    """returns by environment, such as '{"CartPole-v1": 475}'; the report tells when runs first reached them"""


# --- Tables ---


def plus_minus(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation (of the population, as everywhere here)."""
    mean, deviation = f"{np.mean(values):,.{digits}f}", f"{np.std(values):,.{digits}f}"
    return f"{mean} +- {deviation}" if len(values) > 1 else mean


def between(bounds: np.ndarray, digits: int = 2) -> str:
    """An interval."""
    return f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"


References = dict[str, dict[str, tuple[float, float]]]
"""Scores of a random player and of a human or teacher, by kind of the latter and environment."""


def scores_table(groups: Groups, references: References) -> list[str]:
    """List the final scores of each environment and group, with intervals, and normalised if references are known."""
    kinds = {kind: known for kind, known in references.items() if known}
    lines = [
        f"| environment | group | seeds | score, mean +- sd | 95% interval |{''.join(f' {k}-normalised |' for k in kinds)}"
    ]
    lines.append("|---" * (5 + len(kinds)) + "|")
    for env_id, by_name in groups.items():
        for name, curves in by_name.items():
            values = np.array([one.final for one in curves])
            bounds = between(statistics().mean_interval([values])) if len(values) > 1 else "one seed"
            line = f"| {env_id} | {name} | {len(values)} | {plus_minus(values)} | {bounds} |"
            for known in kinds.values():
                low, high = known.get(env_id, (np.nan, np.nan))
                line += f" {100 * (values.mean() - low) / (high - low):.1f}% |" if env_id in known else " |"
            lines.append(line)
    return lines


def aggregate_table(by_name: dict[str, list[np.ndarray]]) -> list[str]:
    """IQM and mean over all environments, with their intervals."""
    lines = ["| group | runs | IQM | 95% interval | mean | 95% interval |", "|---" * 6 + "|"]
    for name, values in by_name.items():
        known = min(map(len, values)) > 1
        iqm = between(statistics().iqm_interval(values), 3) if known else "one seed"
        bounds = between(statistics().mean_interval(values), 3) if known else "one seed"
        runs, mean = sum(map(len, values)), statistics().task_mean(*values)
        lines.append(f"| {name} | {runs} | {statistics().iqm(values):.3f} | {iqm} | {mean:.3f} | {bounds} |")
    return lines


def difference(groups: Groups, envs: list[str], a: str, b: str) -> str:
    """Return the difference of means of two groups with its interval, if they have only one environment in common."""
    if len(envs) > 1:
        return "see the scores"
    x, y = finals(groups, a)[envs[0]], finals(groups, b)[envs[0]]
    return f"{x.mean() - y.mean():.2f} ({between(statistics().difference_interval(x, y))})"


def improvement_table(groups: Groups) -> list[str]:
    """The probability of improvement of each pair of groups, over the environments that both have."""
    columns = "A | B | environments | difference of means | probability that A is ahead | 95% interval | p | verdict"
    lines = [f"| {columns} |", "|---" * 8 + "|"]
    for a, b in itertools.combinations(sorted(set().union(*groups.values())), 2):
        both, result = compared(finals(groups, a), finals(groups, b))
        if result is not None:
            cells = f"{result.improvement:.2f} | {between(result.bounds)} | {result.p:.3f} | {result.verdict}"
            if result.verdict == "too few runs":
                cells += f" to tell, {enough_runs(len(both))} of each can"
            lines.append(f"| {a} | {b} | {len(both)} | {difference(groups, both, a, b)} | {cells} |")
    return lines if len(lines) > 2 else []


def check_thresholds(found: list[Run], thresholds: dict[str, Any]) -> None:
    """Raise `BadInput` unless each threshold is a number, for an environment of the runs."""
    there = sorted({run.get("env_id") for run in found})
    for env_id, threshold in thresholds.items():
        if env_id not in there:
            raise BadInput("--thresholds", env_id, f"is not among the environments: {', '.join(there)}")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise BadInput("--thresholds", f"{env_id}: {threshold}", "must be a number")


def threshold_table(groups: Groups, thresholds: dict[str, Any], metric: str) -> list[str]:
    """List when runs first reached a return: steps and minutes of those that did."""
    lines = [f"| environment | return | group | runs that reached it | {unit(metric)} | minutes |", "|---" * 6 + "|"]
    for env_id, threshold in thresholds.items():
        for name, curves in groups[env_id].items():
            firsts = [one.first_reached(threshold) for one in curves]
            steps, minutes = ([x for x in column if not np.isnan(x)] for column in zip(*firsts, strict=True))
            cells = " | ".join(plus_minus(of, digits) if of else "" for of, digits in ((steps, 0), (minutes, 1)))
            lines.append(f"| {env_id} | {threshold:g} | {name} | {len(steps)} of {len(curves)} | {cells} |")
    return lines


def runs_table(groups: Groups, metric: str) -> list[str]:
    """List how each run was made: command (folder, for another project's run), commit, seed, time, hardware, versions."""
    lines = []
    settings: dict[str, list[str]] = defaultdict(list)
    for env_id, by_name in groups.items():
        for name, curves in by_name.items():
            for one in curves:
                made = one.run.config
                protocol = made.get("protocol", {})
                about = {"hardware": made.get("hardware"), **{k: protocol.get(k) for k in ("device", "threads")}}
                about |= made.get("versions", {})
                key = ", ".join(f"{k} {v}" for k, v in about.items() if v is not None)
                settings[key or f"{made.get('script')}, hardware and versions unknown"].append(Path(one.run.name).name)
                minutes = made.get("wall_time", one.seconds[-1]) / 60
                times = len(made.get("resumed", []))
                resumed = {0: "", 1: ", resumed once"}.get(times, f", resumed {times} times")
                done = f"{one.final:.2f} | {one.steps[-1]:,} | {'' if np.isnan(minutes) else f'{minutes:.1f}'}{resumed}"
                command = f"python {shlex.join(made['command'])}" if "command" in made else Path(one.run.name).name
                origin = f"`{short(made.get('commit') or 'none')}` | `{command}`"
                lines.append(f"| {env_id} | {name} | {one.run.get('seed')} | {done} | {origin} |")
    head = [f"| environment | group | seed | score | {unit(metric)} | minutes | commit | command |", "|---" * 8 + "|"]
    same = [f"- {len(names)} of these runs: {key}" for key, names in settings.items()]
    return [*head, *lines, "", *same]


# --- The page ---


PAGE = """# {title}
{note}
```shell
python -m cleanrl_utils.report {command}
```

`{metric}`. A run's score is {score}; mean and standard deviation are over seeds. Intervals are of 95%, by {resamples:,}
resamples of the runs of each environment.

## Scores

{scores}

## Curves

![Curves by environment]({picture})

Mean of the runs and the 95% interval of that mean, where all of them are; if they are nowhere together, each run by itself.
Time is that of each run, whatever else the machine was doing.
"""


def page(
    args: Args,
    groups: Groups,
    references: References,
    by_kind: dict[str, dict[str, list[np.ndarray]]],
    pictures: dict[str, str],
) -> str:
    """The report as markdown; `by_kind` are normalised scores."""
    window = width(args)
    text = PAGE.format(
        title=args.title,
        note=f"\n{args.note}\n" if args.note else "",
        command=shlex.join(command_line(dataclasses.replace(args, note=""))),
        metric=args.metric,
        score=f"the mean of its last {window} values" if window > 1 else "its last value",
        resamples=statistics().RESAMPLES,
        scores="\n".join(scores_table(groups, references)),
        picture=pictures["curves"],
    )
    parts = []
    if args.thresholds:
        parts.append(("Steps and time to a return", threshold_table(groups, args.thresholds, args.metric)))
    for kind, by_name in by_kind.items():
        if by_name:
            picture = f"![Performance profiles, {kind}-normalised]({pictures[kind]})"
            table = aggregate_table(by_name)
            parts.append((f"Over all environments, {kind}-normalised", [*table, "", picture]))
    if pairs := improvement_table(groups):
        note = "p comes from a permutation test. The verdicts better and worse need the interval on one side of 1/2, and p "
        note += "below 0.05. With three runs against three on one environment, p cannot be below 0.1. Differences of means "
        note += "have their 95% interval. Nothing is corrected for the number of pairs."
        if any(len(curves) == 1 for by_name in groups.values() for curves in by_name.values()):
            note += " Environments where A or B has only one run are left out."
        parts.append(("Comparisons", [*pairs, "", note]))
    parts.append(("Runs", runs_table(groups, args.metric)))
    return text + "".join(f"\n## {title}\n\n{chr(10).join(lines)}\n" for title, lines in parts)


def table_of_scores(groups: Groups) -> str:
    """One line per run, as CSV."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["env_id", "group", "seed", "score", "steps", "seconds", "commit", "run"])
    for env_id, by_name in groups.items():
        for name, curves in by_name.items():
            for one in curves:
                end = [one.final, int(one.steps[-1]), round(float(one.seconds[-1]), 1)]
                rows.writerow(
                    [env_id, name, one.run.get("seed"), *end, one.run.config.get("commit"), Path(one.run.name).name]
                )
    return text.getvalue()
