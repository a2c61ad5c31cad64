"""Reports of runs: curves, scores with intervals, and what a reader needs to repeat the runs, on one markdown page.

    python -m cleanrl_utils.report --runs runs --metric charts/episodic_return --out FOLDER
    python -m cleanrl_utils.report compare exp_name=dqn exp_name=dqn_jax

Needs the extra `plots`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput, missing
from cleanrl_utils.files import make_folder, replacing
from cleanrl_utils.flags import run
from cleanrl_utils.report.compare import CompareArgs, compare
from cleanrl_utils.report.groups import grouped, load, normalised, references, width
from cleanrl_utils.report.page import Args, check_thresholds, page, table_of_scores


def main(args: Args) -> Path:
    """Write the report; returns its folder. Raises `BadInput` before anything is written."""
    found = load(args)
    check_thresholds(found, args.thresholds)
    groups = grouped(found, args, args.group_by)
    try:
        from cleanrl_utils.report import plots  # noqa: PLC0415 - needs an extra
    except ImportError as error:
        raise BadInput("report", "on", missing(error, "plots")) from None
    folder = Path(args.out)
    make_folder(folder)
    pictures = {"curves": plots.curves(groups, folder / "curves", args.metric, width(args))}
    known = {kind: references(groups, kind) for kind in ("human", "teacher")}
    by_kind = {kind: normalised(groups, known[kind], kind) for kind in known}
    for kind, by_name in by_kind.items():
        if by_name:
            pictures[kind] = plots.profiles(by_name, folder / f"profiles-{kind}", kind)
    for name, text in (("index.md", page(args, groups, known, by_kind, pictures)), ("scores.csv", table_of_scores(groups))):
        with replacing(folder / name) as file:
            file.write(text.encode())
    notice(f"report: {folder / 'index.md'}")
    return folder


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        run(compare, CompareArgs, sys.argv[2:])
    else:
        run(main, Args)
