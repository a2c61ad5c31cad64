"""Reports of runs: curves, scores with intervals, what a reader needs to make them again, on one markdown page.

    python -m cleanrl_utils.report --runs runs --metric charts/episodic_return --out FOLDER
    python -m cleanrl_utils.report compare exp_name=dqn exp_name=dqn_jax

Needs the extra `plots`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from cleanrl_utils import config, runs, scores
from cleanrl_utils.config import BadInput, notice, output, replacing
from cleanrl_utils.runs import Run
from cleanrl_utils.tracking import make_folder, short

EPISODES = 100
"""Training episodes that a score is the mean of, as the documents of CleanRL have it."""


@dataclass
class Source:
    """Which runs, and what of them."""

    runs: tuple[str, ...] = ("runs",)
    """run folders, or folders that hold some"""
    wandb: str | None = None
    """runs of this ENTITY/PROJECT on Weights & Biases in their place"""
    select: tuple[str, ...] = ()
    """only runs for which key=value holds: a flag, or script, commit, folder; as exp_name=dqn"""
    env_ids: tuple[str, ...] = ()
    """only these environments; default: all"""
    unfinished: bool = False
    """runs that have not come to their end too"""
    metric: str = "charts/episodic_return"
    """what to report; eval/episodic_return where runs were evaluated as they trained"""
    window: int | None = None
    """values that a point of a curve is the mean of; default: 100 training episodes, 1 of another metric"""


@dataclass
class Args(Source):
    """Write a report of runs: index.md, scores.csv and pictures. `compare A B` says whether A is better than B."""

    out: str = "report"
    """folder to write to"""
    title: str = "Report"
    """title of the page"""
    note: str = ""
    """what a reader should know first: a paragraph under the title"""
    group_by: tuple[str, ...] = ("exp_name",)
    """what makes runs one group: flags, or script, commit, folder"""
    thresholds: config.Json = field(default_factory=dict)
    """returns whose first time is told, by environment, as '{"CartPole-v1": 475}'"""


@dataclass
class CompareArgs(Source):
    """Say whether A is better than B: two settings, two commits, two folders of runs."""

    a: Annotated[config.tyro.conf.Positional[str], config.tyro.conf.arg(metavar="A")] = ""
    """key=value of its runs, as commit=91bc603 or learning_rate=0.001; or a folder of runs"""
    b: Annotated[config.tyro.conf.Positional[str], config.tyro.conf.arg(metavar="B")] = ""
    """the same, of what it is compared with"""


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
        """Steps and minutes when a mean of a full window first was at the threshold; NaN where it never was."""
        full = slice(self.window - 1, None)
        reached = np.flatnonzero(self.values[full] >= threshold)
        return (self.steps[full][reached[0]], self.seconds[full][reached[0]] / 60) if len(reached) else (np.nan, np.nan)

    @property
    def final(self) -> float:
        """The last value: of training returns, the mean of the last 100 episodes."""
        return float(self.values[-1])


Groups = dict[str, dict[str, list[Curve]]]
"""Curves by environment and group."""


def load(source: Source) -> list[Run]:
    """The runs that the flags select. Raises `BadInput` where there is none, or where none has the metric."""
    if source.window is not None:
        config.require_positive(source, "window")
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
        raise BadInput(*where, "holds no complete run of these")
    having = [run for run in found if source.metric in run.series]
    if not having:
        there = ", ".join(sorted({tag for run in found for tag in run.series}))
        raise BadInput("--metric", source.metric, f"is in none of {len(found)} runs; there are {there}")
    for run in found:
        if source.metric not in run.series:
            notice(f"left out: {run.name} has no {source.metric}")
    return having


def width(source: Source) -> int:
    """Values that a point of a curve is the mean of."""
    return source.window or (EPISODES if source.metric == "charts/episodic_return" else 1)


def curve(run: Run, source: Source) -> Curve:
    """A run's curve of the metric."""
    window = width(source)
    steps, seconds, values = run.series[source.metric]
    return Curve(run, steps, seconds, statistics().trailing_mean(values, window), window)


def statistics() -> Any:
    """The module, which needs scipy. Raises `BadInput`."""
    try:
        from cleanrl_utils import statistics  # noqa: PLC0415 - needs an extra
    except ModuleNotFoundError as error:
        raise BadInput("report", "on", f"needs `{error.name}`: pip install -e '.[plots]'") from None
    return statistics


def grouped(found: list[Run], source: Source, keys: Sequence[str]) -> Groups:
    """Curves by environment and group, in the order of their names; says what is odd about them."""
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for run in sorted(found, key=lambda run: (run.get("env_id"), run.get("seed"))):
        try:
            name = ", ".join(str(run.get(key)) for key in keys)
        except KeyError as error:
            raise BadInput("--group-by", error.args[0], f"is no flag of {run.name}") from None
        groups[run.get("env_id")][name].append(curve(run, source))
    for env_id, by_name in groups.items():
        for name, curves in by_name.items():
            where = f"{env_id}, {name}"
            ends = sorted({int(one.steps[-1]) for one in curves})
            if len(curves) == 1:
                notice(f"{where}: one seed only, so there is no interval: one run says nothing of the spread of runs")
            if len({one.run.config["flags"].get("total_timesteps") for one in curves}) > 1:
                notice(
                    f"{where}: runs of unequal length, {ends[0]:,} to {ends[-1]:,} steps; the curve ends with the shorter"
                )
            if mixed := differing(curves):
                notice(f"{where}: runs of several settings in one group ({', '.join(mixed)}); --group-by tells them apart")
            if few := sum(len(one.values) < one.window for one in curves):
                notice(f"{where}: {few} of {len(curves)} runs have fewer than {width(source)} values to take the mean of")
            if len({one.run.get("seed") for one in curves}) < len(curves):
                notice(f"{where}: a seed stands there more than once")
    return {env_id: dict(sorted(by_name.items())) for env_id, by_name in sorted(groups.items())}


def differing(curves: list[Curve]) -> list[str]:
    """Flags, or the script, that decide what is learned and are not the same in all runs."""
    ignored = {"seed", "config", "resume", "resume_anyway", "track", "save_model", "capture_video", "upload_model"}
    ignored |= {"wandb_project_name", "wandb_entity", "hf_entity"}
    settings = [one.run.config["flags"] | {"script": one.run.config.get("script")} for one in curves]
    names = set().union(*settings) - ignored
    return sorted(name for name in names if len({json.dumps(of.get(name)) for of in settings}) > 1)


# --- Scores ---


def finals(groups: Groups, name: str) -> dict[str, np.ndarray]:
    """Final scores of a group's runs, by environment."""
    return {env: np.array([one.final for one in by[name]]) for env, by in groups.items() if name in by}


def references(groups: Groups, kind: str) -> dict[str, tuple[float, float]]:
    """What normalised scores are 0 and 1 at, by environment: random and human, or random and teacher."""
    found = {}
    for env_id, by_name in groups.items():
        if kind == "human":
            pair = scores.of_game(env_id)
            if pair is not None:
                found[env_id] = pair
            continue
        players = ("random", "teacher")
        pairs = [tuple(map(one.run.score, players)) for curves in by_name.values() for one in curves]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            found[env_id] = tuple(np.mean(pairs, axis=0))
    return found


def normalised(groups: Groups, kind: str) -> dict[str, list[np.ndarray]]:
    """Scores by group, an array per environment that all groups have and whose reference is known; {} where there is none.

    (score - random) / (reference - random).
    """
    known, names = references(groups, kind), sorted(set().union(*groups.values()))
    common = [env for env, by_name in groups.items() if env in known and by_name.keys() == set(names)]
    if left_out := known.keys() - set(common):
        notice(f"{kind}-normalised, over all environments: without {', '.join(sorted(left_out))}, which not all groups have")
    return {
        name: [(finals(groups, name)[env] - known[env][0]) / (known[env][1] - known[env][0]) for env in common]
        for name in names
        if common
    }


def plus_minus(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation (of the population, as everywhere here)."""
    mean, deviation = f"{np.mean(values):,.{digits}f}", f"{np.std(values):,.{digits}f}"
    return f"{mean} +- {deviation}" if len(values) > 1 else mean


def between(bounds: np.ndarray, digits: int = 2) -> str:
    """An interval."""
    return f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"


def scores_table(groups: Groups) -> list[str]:
    """Final scores of each environment and group, with intervals and normalised by what is known."""
    kinds = {kind: references(groups, kind) for kind in ("human", "teacher")}
    kinds = {kind: known for kind, known in kinds.items() if known}
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


def improvement_table(groups: Groups) -> list[str]:
    """The probability of improvement of each pair of groups, over the environments that both have."""
    lines = ["| A | B | environments | probability that A is ahead | 95% interval | p | verdict |", "|---" * 7 + "|"]
    for a, b in itertools.combinations(sorted(set().union(*groups.values())), 2):
        both, result = compared(finals(groups, a), finals(groups, b))
        if result is not None:
            cells = f"{result.improvement:.2f} | {between(result.bounds)} | {result.p:.3f} | {result.verdict}"
            lines.append(f"| {a} | {b} | {len(both)} | {cells} |")
    return lines if len(lines) > 2 else []


def compared(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[list[str], Any]:
    """The environments that A and B have in common, and how they compare there; None if one of them has one run."""
    both = [env for env in a if env in b]
    left, right = [a[env] for env in both], [b[env] for env in both]
    return both, statistics().compare(left, right) if both and min(map(len, left + right)) > 1 else None


def check_thresholds(found: list[Run], thresholds: dict[str, Any]) -> None:
    """Raise `BadInput` unless each is a number, of an environment of the runs."""
    there = sorted({run.get("env_id") for run in found})
    for env_id, threshold in thresholds.items():
        if env_id not in there:
            raise BadInput("--thresholds", env_id, f"is not among the environments: {', '.join(there)}")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise BadInput("--thresholds", f"{env_id}: {threshold}", "must be a number")


def threshold_table(groups: Groups, thresholds: dict[str, Any]) -> list[str]:
    """When runs first came to a return: steps and minutes of those that did."""
    lines = ["| environment | return | group | runs that reached it | steps | minutes |", "|---" * 6 + "|"]
    for env_id, threshold in thresholds.items():
        for name, curves in groups[env_id].items():
            firsts = [one.first_reached(threshold) for one in curves]
            steps, minutes = ([x for x in column if not np.isnan(x)] for column in zip(*firsts, strict=True))
            cells = f"{plus_minus(steps, 0)} | {plus_minus(minutes, 1)}" if steps else "|"
            lines.append(f"| {env_id} | {threshold:g} | {name} | {len(steps)} of {len(curves)} | {cells} |")
    return lines


# --- The page ---


def runs_table(groups: Groups) -> list[str]:
    """What made each run: command, commit, seed, time, hardware, versions."""
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
                settings[key].append(Path(one.run.name).name)
                minutes = made.get("wall_time", one.seconds[-1]) / 60
                resumed = f", resumed {len(made['resumed'])} times" if made.get("resumed") else ""
                done = f"{one.final:.2f} | {one.steps[-1]:,} | {minutes:.1f}{resumed}"
                origin = f"`{short(made.get('commit') or 'none')}` | `python {shlex.join(made.get('command', []))}`"
                lines.append(f"| {env_id} | {name} | {one.run.get('seed')} | {done} | {origin} |")
    head = ["| environment | group | seed | score | steps | minutes | commit | command |", "|---" * 8 + "|"]
    same = [f"- {len(names)} of these runs: {key}" for key, names in settings.items()]
    return [*head, *lines, "", *same]


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


def page(args: Args, groups: Groups, by_kind: dict[str, dict[str, list[np.ndarray]]], pictures: dict[str, str]) -> str:
    """The report as markdown; `by_kind` are normalised scores."""
    window = width(args)
    text = PAGE.format(
        title=args.title,
        note=f"\n{args.note}\n" if args.note else "",
        command=shlex.join(config.command_line(dataclasses.replace(args, note=""))),
        metric=args.metric,
        score=f"the mean of its last {window} values" if window > 1 else "its last value",
        resamples=statistics().RESAMPLES,
        scores="\n".join(scores_table(groups)),
        picture=pictures["curves"],
    )
    parts = [("Steps and time to a return", threshold_table(groups, args.thresholds))] if args.thresholds else []
    for kind, by_name in by_kind.items():
        if by_name:
            picture = f"![Performance profiles, {kind}-normalised]({pictures[kind]})"
            table = aggregate_table(by_name)
            parts.append((f"Over all environments, {kind}-normalised", [*table, "", picture]))
    if pairs := improvement_table(groups):
        note = "p is of a permutation test; a verdict needs the interval on one side of 1/2, and p below 0.05: three runs "
        note += "beside three of one environment come to 0.1 at best. Nothing is corrected for the number of pairs."
        parts.append(("Comparisons", [*pairs, "", note]))
    parts.append(("Runs", runs_table(groups)))
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


def main(args: Args) -> Path:
    """Write the report; returns its folder. Raises `BadInput` before anything is written."""
    found = load(args)
    check_thresholds(found, args.thresholds)
    groups = grouped(found, args, args.group_by)
    try:
        from cleanrl_utils import report_plots  # noqa: PLC0415 - needs an extra
    except ModuleNotFoundError as error:
        raise BadInput("report", "on", f"needs `{error.name}`: pip install -e '.[plots]'") from None
    folder = Path(args.out)
    make_folder(folder)
    pictures = {"curves": report_plots.curves(groups, folder / "curves", args.metric, width(args))}
    by_kind = {kind: normalised(groups, kind) for kind in ("human", "teacher")}
    for kind, by_name in by_kind.items():
        if by_name:
            pictures[kind] = report_plots.profiles(by_name, folder / f"profiles-{kind}", kind)
    for name, text in (("index.md", page(args, groups, by_kind, pictures)), ("scores.csv", table_of_scores(groups))):
        with replacing(folder / name) as file:
            file.write(text.encode())
    notice(f"report: {folder / 'index.md'}")
    return folder


def side(args: CompareArgs, name: str) -> dict[str, list[Curve]]:
    """The runs of A or of B by environment: a folder of runs, or those for which key=value holds. Raises `BadInput`."""
    if not name:
        raise BadInput("compare", "A B", "must name two of the runs: key=value, or a folder")
    source = Source(**{field: getattr(args, field) for field in vars(Source())})
    if "=" in name:
        source.select = (*source.select, name)
    elif source.wandb is not None or not Path(name).is_dir():
        raise BadInput(
            "compare", name, "must be key=value, or a folder of runs" + " on this machine" * (source.wandb is not None)
        )
    else:
        source.runs = (name,)
    by_env = {env_id: by_name[env_id] for env_id, by_name in grouped(load(source), source, ("env_id",)).items()}
    for env_id, curves in by_env.items():
        if mixed := differing(curves):
            raise BadInput(
                "compare", name, f"has several settings of {env_id} ({', '.join(mixed)}); --select tells them apart"
            )
    return by_env


def compare(args: CompareArgs) -> None:
    """Print the comparison, as markdown, and its verdict. Raises `BadInput` where none can be made."""
    sides = [side(args, args.a), side(args, args.b)]
    names = [{Path(one.run.name).resolve() for curves in by_env.values() for one in curves} for by_env in sides]
    if both := names[0] & names[1]:
        raise BadInput("compare", f"{args.a} {args.b}", f"share {len(both)} runs, as {min(both).name}")
    a, b = ({env: np.array([one.final for one in curves]) for env, curves in by_env.items()} for by_env in sides)
    common, result = compared(a, b)
    if not common:
        raise BadInput("compare", f"{args.a} {args.b}", "have no environment in common")
    if result is None:
        raise BadInput("compare", f"{args.a} {args.b}", "an environment has one seed only: no interval, no verdict")
    output(f"| environment | {args.a} | {args.b} | difference of means | 95% interval |\n|---|---|---|---|---|")
    for env in common:
        sizes = f"{plus_minus(a[env])} ({len(a[env])} runs) | {plus_minus(b[env])} ({len(b[env])} runs)"
        bounds = between(statistics().difference_interval(a[env], b[env]))
        output(f"| {env} | {sizes} | {a[env].mean() - b[env].mean():.2f} | {bounds} |")
    interval = f"95% interval {between(result.bounds)}; p {result.p:.3f}"
    output(f"\nprobability that a run of A is ahead of one of B: {result.improvement:.2f} ({interval})")
    output(f"verdict: {args.a} is {result.verdict} {'from' if result.verdict.startswith('not') else 'than'} {args.b}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        config.run(compare, CompareArgs, sys.argv[2:])
    else:
        config.run(main, Args)
