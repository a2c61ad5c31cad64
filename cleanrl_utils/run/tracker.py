"""The run folder and the progress bar of a run, behind one object that a loop can always call."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cleanrl_utils.console import notice
from cleanrl_utils.errors import WriteError
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.files import file_name, make_folder, replacing, write_json
from cleanrl_utils.flags import command_line, script_path
from cleanrl_utils.record import commit, event_files, hardware, versions
from cleanrl_utils.run.sinks import TensorBoard, WeightsAndBiases


class Tracker:
    """Where a loop reports: run folder, sinks for scalars, progress bar. `Tracker()` reports nowhere."""

    def __init__(
        self,
        folder: Path | None = None,
        sinks: list[Any] | None = None,
        config: dict[str, Any] | None = None,
        checkpoints: Any = None,
    ) -> None:
        self.folder, self.sinks, self.config, self.checkpoints = folder, sinks or [], config or {}, checkpoints
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
        self.name, self.phase_started, self.first, self.done, self.latest = "", time.perf_counter(), 0, 0, ""
        self.bar.start()

    def phase(self, name: str, total: int, unit: str = "steps", first: int = 0) -> None:
        """Begin a phase at its step `first`: a new line of the progress bar and a new clock for `rate`."""
        if self.task is not None:
            self.bar.stop_task(self.task)
        self.name, self.phase_started, self.first, self.done, self.latest = name, time.perf_counter(), first, first, ""
        self.task = self.bar.add_task(name, total=total, completed=first, unit=unit, rate=0, latest="")

    def advance(self, done: int) -> None:
        """Say how much of the phase is done."""
        self.done = done
        if self.task is not None:
            rate = self.rate()
            self.bar.update(
                self.task, completed=done, rate=f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}", latest=self.latest
            )

    def paused(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        """Decorates an evaluation: stops the clock of `rate`. A signal to stop the run leaves it at once, with None."""

        @functools.wraps(evaluate)
        def without_clock(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return evaluate(*args) if self.checkpoints is None else self.checkpoints.interruptible(evaluate, *args)
            finally:
                self.phase_started += time.perf_counter() - started

        return without_clock

    def rate(self) -> float:
        """Steps per second of this phase so far, without the time when the clock was stopped."""
        return (self.done - self.first) / max(time.perf_counter() - self.phase_started, 1e-9)

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

    def flush(self) -> dict[str, int]:
        """Have all that was logged on the disk; returns the length of each event file."""
        for sink in self.sinks:
            sink.flush()
        return {path.name: path.stat().st_size for path in event_files(self.folder)}

    def finish(self, results: dict[str, Any], scores: dict[str, Evaluation]) -> None:
        """Mark the run complete, with its results and scores, close everything and show the scores."""
        results = results | {"wall_time": round(time.time() - self.started, 1)}
        self.close(results | {f"score/{name}": score.mean for name, score in scores.items()})
        if self.folder is None:
            return
        self.config |= {"status": "complete"} | results
        self.config["evaluations"] = {name: dataclasses.asdict(score) for name, score in scores.items()}
        write_json(self.folder / "config.json", self.config)
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Close all, and say in config.json how a run ended that did not come to `finish`."""
        with contextlib.ExitStack() as stack:
            if self.checkpoints is not None:
                stack.callback(self.checkpoints.close)
            self.close()
            if kind is None or self.folder is None or self.config.get("status") != "running":
                return
            done = self.done if self.checkpoints is None else max(self.done, self.checkpoints.last_step)
            where = f"{self.name}, {done:,} steps done" if self.name else "before its first step"
            status = "stopped" if issubclass(kind, SystemExit | KeyboardInterrupt) else "failed"
            self.config |= {"status": status, "error": f"{kind.__name__}: {error} ({where})"}
            with contextlib.suppress(WriteError):  # the reason may be that nothing can be written
                write_json(self.folder / "config.json", self.config)
            again = self.checkpoints is not None and self.checkpoints.how_to_resume()
            if again:
                notice(f"{status} in {where}; to go on from {again}")
            if isinstance(error, FloatingPointError):
                kept = "" if again else f"; the flags of {self.folder / 'config.json'} lead there again"
                raise FloatingPointError(f"{error} ({where}{kept})") from None


def start_run(args: Any, protocol: dict[str, Any], checkpoints: Any = None) -> Tracker:
    """Make `runs/{env_id}__{exp_name}__{seed}__{time}` with its config.json and return the run's tracker.

    Or go on in the folder of the run that `checkpoints` resumes. To be called when all input has been accepted. `protocol`
    is stored with the run: what its scores mean. Raises `WriteError` where there can be no folder.
    """
    script = script_path(type(args))
    made_with = {"versions": versions(), "commit": commit(), "hardware": hardware()}
    if checkpoints is not None:
        checkpoints.require_same(protocol, **made_with)
    if checkpoints is not None and checkpoints.resumed:
        folder = Path(args.resume)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config.pop("error", None)
        resumed = {"command": [Path(sys.argv[0]).name, *sys.argv[1:]], "changed": [*checkpoints.changed.values()]}
        config |= {"status": "running", "resumed": [*config.get("resumed", []), resumed]}
        checkpoints.cut_event_files()
    else:
        now = int(time.time())
        name = f"{file_name(args.env_id)}__{args.exp_name}__{args.seed}__"
        while (Path("runs") / f"{name}{now}").exists():  # two runs may start in the same second
            now += 1
        folder = Path("runs") / f"{name}{now}"
        config = {"status": "running", "script": script.stem, "flags": dataclasses.asdict(args)}
        if checkpoints is not None:
            protocol = protocol | {"checkpoint_frequency": args.checkpoint_frequency}
        config |= {"protocol": protocol, "command": [script.name, *command_line(args)]} | made_with
    sinks = []
    if args.track:  # before the folder is made, since it may refuse
        sinks.append(WeightsAndBiases(args, folder.name, config))
        config["wandb_run"] = sinks[0].run.id
    make_folder(folder, anew="resumed" not in config)
    write_json(folder / "config.json", config)
    with replacing(folder / script.name) as file:  # as it runs: the checkout goes on
        file.write(script.read_bytes())
    tracker = Tracker(folder, [TensorBoard(folder), *sinks], config, checkpoints)
    if checkpoints is not None:
        checkpoints.attach(tracker)
    return tracker
