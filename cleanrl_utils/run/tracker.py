"""Where a loop reports: scalars to TensorBoard and another tracker, a progress bar, a table of scores at the end."""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cleanrl_utils.console import error_console, keep_saying, notice
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.record import event_files
from cleanrl_utils.run.sinks import Sink


class Tracker:
    """The sinks of one run, its progress bar, and the clock of its steps per second."""

    def __init__(self, folder: Path, sinks: list[Sink]) -> None:
        self.folder, self.sinks = folder, sinks
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
            TextColumn("{task.fields[rate]}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}"),
            console=error_console(),
        )
        self.bar.disable = not self.bar.console.is_terminal  # then lines are printed
        self.task = None
        self.name, self.clock, self.first, self.done, self.latest = "", time.perf_counter(), 0, 0, ""
        self.doing, self.stopped_at = "", None
        self.rates: dict[str, float] = {}  # steps per second of each loop so far, by its name
        self.bar.start()
        self.closed = threading.Event()
        if self.bar.disable:
            keep_saying(self.say, self.closed)

    def begin(self, name: str, total: int, unit: str, first: int) -> None:
        """Begin a loop at its step `first`: a new line of the progress bar and a new clock for `rate`."""
        if self.task is not None:
            self.bar.stop_task(self.task)
        self.name, self.clock, self.first, self.done, self.latest = name, time.perf_counter(), first, first, ""
        self.task = self.bar.add_task(name, total=total, completed=first, unit=unit, rate=0, latest="")
        self.say()

    def advance(self, done: int) -> None:
        """Show how many steps of the loop are done."""
        self.done = done
        if self.task is not None:
            rate = self.rates[self.name] = self.rate()
            text = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            self.bar.update(self.task, completed=done, rate=text, latest=self.latest)

    def say(self) -> None:
        """Without a terminal, print a line: how far the loop is, how fast, and what it is doing."""
        if not self.bar.disable or self.task is None:
            return
        task, rate = self.bar.tasks[self.task], self.rate()
        parts = [f"{task.description}: {self.done:,.0f}/{task.total:,.0f} {task.fields['unit']}"]
        if rate > 0:
            left = datetime.timedelta(seconds=round(max(0, task.total - self.done) / rate))
            parts += [f"{task.fields['rate']}/s", f"{left} left"]
        notice(", ".join([*parts, *filter(None, [self.latest, self.doing])]))

    @contextlib.contextmanager
    def paused(self, doing: str = "") -> Iterator[None]:
        """Stop the clock of `rate` inside the block, and show `doing`, what the block does, if it is given."""
        self.stopped_at, self.doing = time.perf_counter(), doing
        if doing and self.task is not None:
            self.bar.update(self.task, latest=doing)
            self.say()
        try:
            yield
        finally:
            self.clock += time.perf_counter() - self.stopped_at
            self.stopped_at, self.doing = None, ""
            if doing and self.task is not None:
                self.bar.update(self.task, latest=self.latest)

    def rate(self) -> float:
        """Return the steps per second of this loop so far, not counting the time in which the clock was stopped."""
        now = self.stopped_at or time.perf_counter()
        return (self.done - self.first) / max(now - self.clock, 1e-9)

    def scalars(self, metrics: Mapping[str, float], step: int) -> None:
        """Report metrics at `step`."""
        if metrics:
            for sink in self.sinks:
                sink.scalars(metrics, step)

    def episodes(self, finished: list[tuple[float, int]], step: int) -> None:
        """Report games that ended: their undiscounted raw returns and their lengths in steps."""
        for episodic_return, length in finished:
            self.scalars({"charts/episodic_return": episodic_return, "charts/episodic_length": length}, step)
            self.latest = f"last return {episodic_return:g}"

    def flush(self) -> dict[str, int]:
        """Flush to disk everything that was logged; returns the length of each event file."""
        for sink in self.sinks:
            sink.flush()
        return {path.name: path.stat().st_size for path in event_files(self.folder)}

    def show(self, scores: Mapping[str, Evaluation]) -> None:
        """Print the scores and the run folder."""
        table = Table("", "return", "games", "cut")
        for name, score in scores.items():
            table.add_row(name, str(score), str(len(score.returns)), str(score.capped))
        self.bar.console.print(table, f"run folder: {self.folder}", sep="\n", soft_wrap=True)

    def close(self, results: Mapping[str, object]) -> None:
        """Close the sinks with the run's results, which are empty if it did not finish; safe to call twice."""
        self.closed.set()
        self.bar.stop()
        while self.sinks:
            self.sinks.pop().close(results)
