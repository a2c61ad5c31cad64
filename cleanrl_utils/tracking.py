"""Run folders, TensorBoard, Weights & Biases and the progress bar, behind one object that a loop can always call."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from cleanrl_utils.config import BadInput, file_name, first_line, write_json
from cleanrl_utils.evals import Evaluation

PACKAGES = ("torch", "jax", "flax", "optax", "scikit-learn", "numpy", "gymnasium", "ale-py", "flappy-bird-gymnasium")


class TensorBoard:
    """Scalars in an event file, written without torch or tensorflow."""

    def __init__(self, folder: Path) -> None:
        self.writer = EventFileWriter(str(folder))

    def scalars(self, metrics: dict[str, float], step: int) -> None:
        """Write all metrics at `step`."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self, results: dict[str, Any]) -> None:  # noqa: ARG002 - the results are in config.json
        """Flush and close the file."""
        self.writer.close()


class WeightsAndBiases:
    """Scalars to Weights & Biases; `WANDB_MODE=offline` needs no account."""

    def __init__(self, args: Any, run_name: str, config: dict[str, Any]) -> None:
        import wandb  # noqa: PLC0415 - slow to import, and needed under --track only

        try:
            self.run = wandb.init(
                project=args.wandb_project_name, entity=args.wandb_entity, name=run_name, config=config, save_code=True
            )
        except wandb.errors.Error as error:
            raise BadInput("--track", "on", f"{first_line(error)}; `wandb login`, or WANDB_MODE=offline") from None
        # Each metric has its own step, since offline updates and online steps are different clocks.
        self.run.define_metric("*", step_metric="global_step")
        self.run.define_metric("charts/offline/*", step_metric="offline_step")

    def scalars(self, metrics: dict[str, float], step: int) -> None:
        """Log all metrics at `step` of their own clock."""
        clock = "offline_step" if next(iter(metrics)).startswith("charts/offline/") else "global_step"
        self.run.log({**metrics, clock: step})

    def close(self, results: dict[str, Any]) -> None:
        """Store the results in the run's summary and finish."""
        self.run.summary.update(results)
        self.run.finish()


class Tracker:
    """Where a loop reports: run folder, sinks for scalars, progress bar. `Tracker()` reports nowhere."""

    def __init__(self, folder: Path | None = None, sinks: list[Any] | None = None, config: dict[str, Any] | None = None):
        self.folder, self.sinks, self.config = folder, sinks or [], config or {}
        self.started = time.time()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
            TextColumn("{task.fields[rate]}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}"),
            console=Console(stderr=True),
            disable=folder is None,
        )
        self.task = None
        self.phase_started, self.done, self.latest = time.perf_counter(), 0, ""
        self.bar.start()

    def phase(self, name: str, total: int, unit: str = "steps") -> None:
        """Begin a phase: a new line of the progress bar and a new clock for `rate`."""
        if self.task is not None:
            self.bar.stop_task(self.task)
        self.phase_started, self.done, self.latest = time.perf_counter(), 0, ""
        self.task = self.bar.add_task(name, total=total, unit=unit, rate=0, latest="")

    def advance(self, done: int) -> None:
        """Say how much of the phase is done."""
        self.done = done
        if self.task is not None:
            rate = self.rate()
            self.bar.update(
                self.task, completed=done, rate=f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}", latest=self.latest
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock of `rate`: for evaluations and films."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.phase_started += time.perf_counter() - started

    def rate(self) -> float:
        """Steps per second of this phase so far, without the time when the clock was stopped."""
        return self.done / max(time.perf_counter() - self.phase_started, 1e-9)

    def scalars(self, metrics: dict[str, float], step: int) -> None:
        """Report metrics at `step`."""
        if metrics:
            for sink in self.sinks:
                sink.scalars(metrics, step)

    def episodes(self, finished: list[tuple[float, int]], step: int) -> None:
        """Report games that ended: their undiscounted raw returns and their lengths in steps."""
        for episodic_return, length in finished:
            self.scalars({"charts/episodic_return": episodic_return, "charts/episodic_length": length}, step)
            self.latest = f"last return {episodic_return:g}"

    def finish(self, results: dict[str, Any], scores: dict[str, Evaluation]) -> None:
        """Mark the run complete, with its results and scores, close everything and show the scores."""
        results = results | {"wall_time": round(time.time() - self.started, 1)}
        self.close(results | {f"score/{name}": score.mean for name, score in scores.items()})
        if self.folder is None:
            return
        evaluations = {name: dataclasses.asdict(score) for name, score in scores.items()}
        write_json(
            self.folder / "config.json", self.config | {"status": "complete"} | results | {"evaluations": evaluations}
        )
        table = Table("", "return", "games", "cut")
        for name, score in scores.items():
            table.add_row(name, str(score), str(len(score.returns)), str(score.capped))
        self.bar.console.print(table, f"run folder: {self.folder}", sep="\n", soft_wrap=True)

    def close(self, results: dict[str, Any] | None = None) -> None:
        """Close the sinks; safe to call twice."""
        self.bar.stop()
        while self.sinks:
            self.sinks.pop().close(results or {})

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_run(args: Any, protocol: dict[str, Any]) -> Tracker:
    """Make `runs/{env_id}__{exp_name}__{seed}__{time}` with its config.json and return the run's tracker.

    To be called when all input has been accepted. `protocol` is stored with the run: what its scores mean.
    """
    now = int(time.time())
    name = f"{file_name(args.env_id)}__{args.exp_name}__{args.seed}__"
    while (Path("runs") / f"{name}{now}").exists():  # two runs may start in the same second
        now += 1
    folder = Path("runs") / f"{name}{now}"
    config = {"status": "running", "flags": dataclasses.asdict(args), "protocol": protocol, "versions": versions()}
    config |= {"commit": commit(), "command": [Path(sys.argv[0]).name, *sys.argv[1:]], "hardware": hardware()}
    sinks = [WeightsAndBiases(args, folder.name, config)] if args.track else []  # first, since it may refuse
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    return Tracker(folder, [TensorBoard(folder), *sinks], config)


def working(text: str) -> contextlib.AbstractContextManager:
    """A spinner with `text` for what happens before a run has a progress bar."""
    return Console(stderr=True).status(text)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """Processor and number of cores; the accelerator, if any, is in the protocol."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str | None:
    """The commit of this checkout, with `+` where files differ from it; None outside of a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
