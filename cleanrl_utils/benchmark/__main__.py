"""Sweeps: run a command for each environment and seed, on this machine or by Slurm.

    python -m cleanrl_utils.benchmark --env-ids CartPole-v1 Acrobot-v1 --command "python cleanrl/dqn.py" --workers 2

Complete runs are skipped and interrupted ones continue from their checkpoints, so repeating the command finishes the sweep.
See benchmark/slurm.md for clusters.
"""

from __future__ import annotations

import shlex
import signal
import sys

from cleanrl_utils.benchmark.board import Board, Row, report
from cleanrl_utils.benchmark.local import by_workers
from cleanrl_utils.benchmark.plan import Args, plan, too_few
from cleanrl_utils.benchmark.slurm import by_slurm, require_slurm
from cleanrl_utils.console import notice, output
from cleanrl_utils.flags import run


def main(args: Args) -> None:
    """Run the sweep. Ends the process with status 1 if a run did not finish."""
    rows = [Row(work) for work in plan(args)]
    for row in rows:
        words = row.work.next_command()
        if not words:
            row.state = f"complete before ({row.work.run()[0]})"
            notice(f"{row.name}: {row.state}")
        elif args.dry_run:
            output(shlex.join(words))
    todo = [row for row in rows if row.state == "waiting"]
    if args.backend == "slurm" and todo and not args.dry_run:
        require_slurm()
    if enough := too_few(args):
        notice(enough)
    if args.dry_run:
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if todo:
        with Board(rows) as board:
            (by_slurm if args.backend == "slurm" else by_workers)(args, todo, board.show)
    if (args.wait or args.backend == "local") and report(rows):
        sys.exit(1)


if __name__ == "__main__":
    run(main, Args)
