"""What a sweep shows: a table of its runs, and how it ended."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table

from cleanrl_utils.benchmark.work import JOBS, Work, last_lines
from cleanrl_utils.console import error_console, notice
from cleanrl_utils.record import Latest

TAIL = 12
"""Lines of a failed run's log to show."""


@dataclass
class Row:
    """What the table shows about one training."""

    work: Work
    state: str = "waiting"
    slot: int = 0
    """which of this machine's workers has it"""
    job: Any = None
    """submitit's handle of a worker's process, or the id of a job of Slurm's"""
    events: Latest | None = None

    def __post_init__(self) -> None:
        self.logged_before = _size(self.work.log)

    @property
    def output(self) -> Path:
        """The file that tells why a run failed: its log, or the output of its job if that died before it could log."""
        if self.job is None or _size(self.work.log) > self.logged_before:
            return self.work.log
        return JOBS / f"{getattr(self.job, 'job_id', self.job)}_0_log.out"  # submitit's name for it

    @property
    def name(self) -> str:
        """Environment and seed."""
        return f"{self.work.flags['env_id']} seed {self.work.flags['seed']}"

    def finish(self, otherwise: str = "failed") -> None:
        """Take the state from the run folder, now that the process has ended."""
        found = self.work.run()
        self.state = "complete" if found is not None and found[1].get("status") == "complete" else otherwise

    def progress(self) -> tuple[str, str, str]:
        """Return steps done, their rate and the last return, as far as the run has logged them."""
        found = self.work.run()
        if found is None:
            return "", "", ""
        if self.events is None or self.events.folder != found[0]:
            self.events = Latest(found[0])
        with contextlib.suppress(Exception):  # half an event, most likely: the rest comes later
            self.events.read()
        last = self.events.points
        rate = last.get("charts/SPS")
        score = next((last[tag] for tag in ("eval/episodic_return", "charts/episodic_return") if tag in last), None)
        steps = max((step for step, _ in last.values()), default=0)
        return f"{steps:,}", f"{rate[1]:,.0f}" if rate else "", f"{score[1]:.4g}" if score else ""


class Board:
    """The table of a sweep: live in a terminal, else a line for each change."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows, self.shown = rows, [row.state for row in rows]
        console = error_console()
        self.live = Live(console=console, auto_refresh=False, vertical_overflow="visible") if console.is_terminal else None

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.show()
        if self.live:
            self.live.stop()

    def show(self) -> None:
        """Show the states as they are now."""
        if self.live:
            table = Table("run", "state", "steps", "steps/s", "last return")
            for row in self.rows:
                table.add_row(row.name, row.state, *(row.progress() if row.job is not None else ()))
            self.live.update(table, refresh=True)
            return
        for i, row in enumerate(self.rows):
            if self.shown[i] != row.state:
                self.shown[i] = row.state
                notice(f"{row.name}: {row.state}")


def _size(path: Path) -> int:
    """Return the bytes of a file, 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def report(rows: list[Row]) -> int:
    """Say how the sweep ended, with the ends of the logs of failed runs; returns the exit status."""
    for row in rows:
        if not row.state.startswith("complete"):
            output = row.output
            notice(f"\n{row.name} {row.state}; the end of {output}:")
            for line in last_lines(output, TAIL):
                notice(f"    {line}")
    states = [row.state.split(" (")[0] for row in rows]
    notice(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    return int(any(not state.startswith("complete") for state in states))
