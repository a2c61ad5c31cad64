"""Tell whether one setting is better than another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from cleanrl_utils.console import output
from cleanrl_utils.errors import BadInput
from cleanrl_utils.report.groups import Curve, Source, compared, differing, grouped, load, statistics
from cleanrl_utils.report.page import between, plus_minus
from cleanrl_utils.report.power import enough_runs
from cleanrl_utils.report.runs import identity


@dataclass
class CompareArgs(Source):
    """Tell whether A is better than B: two settings, two commits, or two folders of runs."""

    a: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="A")] = ""
    """which runs are A: key=value, such as commit=91bc603 or learning_rate=0.001, or a folder of runs"""
    b: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="B")] = ""
    """which runs are B, given in the same way"""


def side(args: CompareArgs, name: str) -> dict[str, list[Curve]]:
    """Load the runs of A or of B by environment: a folder of runs, or those that match key=value. Raises `BadInput`."""
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
    groups = grouped(load(source), source, ("env_id",), name)
    by_env = {env_id: by_name[env_id] for env_id, by_name in groups.items()}
    for env_id, curves in by_env.items():
        if mixed := differing(curves):
            raise BadInput(
                "compare", name, f"has several settings of {env_id} ({', '.join(mixed)}); --select tells them apart"
            )
    return by_env


def compare(args: CompareArgs) -> None:
    """Print the comparison, as markdown, and its verdict. Raises `BadInput` if there is nothing to compare."""
    sides = [side(args, args.a), side(args, args.b)]
    names = [{identity(one.run) for curves in by_env.values() for one in curves} for by_env in sides]
    if both := names[0] & names[1]:
        raise BadInput("compare", f"{args.a} {args.b}", f"share {len(both)} runs, such as {Path(min(both)[0]).name}")
    a, b = ({env: np.array([one.final for one in curves]) for env, curves in by_env.items()} for by_env in sides)
    if not (shared := a.keys() & b.keys()):
        raise BadInput("compare", f"{args.a} {args.b}", "have no environment in common")
    if lone := sorted(env for env in shared if min(len(a[env]), len(b[env])) == 1):
        why = "has one seed only: no interval, no verdict; --env-ids names those to compare on"
        raise BadInput("compare", f"{args.a} {args.b}", f"{lone[0]} {why}")
    common, result = compared(a, b)
    output(f"| environment | {args.a} | {args.b} | difference of means | 95% interval |\n|---|---|---|---|---|")
    for env in common:
        sizes = f"{plus_minus(a[env])} ({len(a[env])} runs) | {plus_minus(b[env])} ({len(b[env])} runs)"
        bounds = between(statistics().difference_interval(a[env], b[env]))
        output(f"| {env} | {sizes} | {a[env].mean() - b[env].mean():.2f} | {bounds} |")
    interval = f"95% interval {between(result.bounds)}; p {result.p:.3f}"
    output(f"\nprobability that a run of A is ahead of one of B: {result.improvement:.2f} ({interval})")
    if result.verdict == "too few runs":
        differences = ", ".join(f"{a[env].mean() - b[env].mean():.2f} on {env}" for env in common)
        why = f"p cannot be below {result.least_p:.2f}; {enough_runs(len(common))} runs of each are enough"
        output(f"verdict: too few runs to tell {args.a} from {args.b}: {why}; the difference of means is {differences}")
    else:
        output(f"verdict: {args.a} is {result.verdict} {'from' if result.verdict.startswith('not') else 'than'} {args.b}")
