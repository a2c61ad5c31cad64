"""Run folders, TensorBoard, Weights & Biases and the progress bar, behind one object that a loop can always call."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DataType
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from cleanrl_utils.config import (
    BadInput,
    WriteError,
    command_line,
    file_name,
    first_line,
    notice,
    replacing,
    script_path,
    sync_folder,
    write_json,
)
from cleanrl_utils.evals import Evaluation

PACKAGES = (
    "torch",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "scikit-learn",
    "numpy",
    "gymnasium",
    "ale-py",
    "flappy-bird-gymnasium",
)


EVENT_FILE = "events.out.tfevents."


def event_files(folder: Path) -> list[Path]:
    """The event files of a run, oldest first."""
    return sorted(folder.glob(f"{EVENT_FILE}*"))


class TensorBoard:
    """Scalars in an event file, written without torch or tensorflow, and without the host's name in its name."""

    def __init__(self, folder: Path) -> None:
        files = event_files(folder)
        number = max([int(time.time()), *(int(path.name.split(".")[3]) + 1 for path in files)])  # TensorBoard reads by name
        self.path = folder / f"{EVENT_FILE}{number:010d}"
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if not files:
            self._write(Event(wall_time=time.time(), summary=layout()))

    def scalars(self, metrics: dict[str, float], step: int) -> None:
        """Write all metrics at `step`, to be seen at once. Raises `WriteError`."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        try:
            with self.path.open("ab") as file:
                RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            raise WriteError(self.path, error) from None

    def flush(self) -> None:
        """Have what was written on the disk, for good."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())

    def close(self, results: dict[str, Any]) -> None:
        """Nothing is open, and the results are in config.json."""


LAYOUT = {
    "Returns": {
        "teacher, offline and online": [
            "charts/teacher/avg_episodic_return", "charts/offline/avg_episodic_return", "eval/episodic_return",
        ],
        "training": ["charts/episodic_return"],
    },
    "Learning": {
        "TD loss, offline and online": ["charts/offline/q_loss", "losses/td_loss"],
        "distillation loss, offline and online": ["charts/offline/distill_loss", "losses/distill_loss"],
        "Q-values, offline and online": ["charts/offline/q_values", "losses/q_values"],
        "distillation coefficient": ["charts/distill_coeff"],
        "exploration": ["charts/epsilon"],
    },
    "Speed": {"steps per second": ["charts/SPS"]},
}  # fmt: skip
"""TensorBoard's page Custom Scalars, by category and chart: phases that have metrics of their own, side by side."""


def layout() -> Summary:
    """The layout of TensorBoard's page Custom Scalars, as an event file holds it."""
    categories = [
        layout_pb2.Category(
            title=category,
            chart=[
                layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags]))
                for title, tags in charts.items()
            ],
        )
        for category, charts in LAYOUT.items()
    ]
    content = TensorProto(dtype=DataType.DT_STRING, string_val=[layout_pb2.Layout(category=categories).SerializeToString()])
    about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"))
    return Summary(value=[Summary.Value(tag="custom_scalars__config__", tensor=content, metadata=about)])


class WeightsAndBiases:
    """Scalars to Weights & Biases; `WANDB_MODE=offline` needs no account. Nothing that fails there stops a run."""

    def __init__(self, args: Any, run_name: str, config: dict[str, Any]) -> None:
        import wandb  # noqa: PLC0415 - slow to import, and needed under --track only

        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "15")  # seconds; else a run whose server is down never ends
        try:
            self.run = wandb.init(
                project=args.wandb_project_name,
                entity=args.wandb_entity,
                name=run_name,
                config=config,
                group=os.environ.get("WANDB_RUN_GROUP") or f"{args.env_id}, {args.exp_name}",
                job_type=os.environ.get("WANDB_JOB_TYPE") or config.get("script"),
                tags=tags(config),
                save_code=True,
                id=config.get("wandb_run"),  # of a run that is resumed
                resume="allow",
                settings={"finish_timeout_raises": True},
            )
        except wandb.errors.Error as error:
            raise BadInput("--track", "on", f"{first_line(error)}; `wandb login`, or WANDB_MODE=offline") from None
        self.folder, self.teardown, self.video = Path(self.run.dir).parent, wandb.teardown, wandb.Video
        self.films, self.sent = Path("videos") / run_name, set()
        # Each metric has its own step, since offline updates and online steps are different clocks.
        self.run.define_metric("*", step_metric="global_step")
        self.run.define_metric("charts/offline/*", step_metric="offline_step")

    def scalars(self, metrics: dict[str, float], step: int) -> None:
        """Log all metrics at `step` of their own clock."""
        clock = "offline_step" if next(iter(metrics)).startswith("charts/offline/") else "global_step"
        self._try(lambda: self.run.log({**metrics, clock: step}))
        self._send_films()

    def _send_films(self) -> None:
        """Send the films that `--capture-video` has made since the last time, by the names of their files."""
        for path in sorted(self.films.glob("*.mp4")):
            if path not in self.sent:
                self.sent.add(path)
                self._try(lambda path=path: self.run.log({f"videos/{path.stem}": self.video(str(path), format="mp4")}))

    def flush(self) -> None:
        """W&B keeps what it has not sent yet in files of its own."""

    def close(self, results: dict[str, Any]) -> None:
        """Store the results in the run's summary and finish."""
        self._send_films()
        self._try(lambda: self.run.summary.update(results))
        self._try(lambda: self.run.finish(exit_code=0 if results else 1))  # 1: it has not come to its end

    def _try(self, report: Callable[[], Any]) -> None:
        """Report, unless W&B has failed before: training goes on without it."""
        if self.run is None:
            return
        try:
            report()
        except Exception as error:  # whatever its client meets
            self.run = None
            notice(
                f"--track: Weights & Biases has failed ({first_line(error)}); the run goes on without it, and "
                f"`wandb sync --include-online {self.folder}` sends what it has stored"
            )
            with contextlib.suppress(Exception, SystemExit):  # else its exit hook tells of it again
                self.teardown()
            logging.getLogger("wandb").setLevel(logging.CRITICAL + 1)  # else debug.log grows with each line shown


def tags(config: dict[str, Any]) -> list[str]:
    """Tags of a run on Weights & Biases: those of WANDB_TAGS, its script, and its commit (`+`: with changes of its own)."""
    named = [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
    commit = config.get("commit")
    return [*named, *filter(None, [config.get("script"), commit and f"commit-{short(commit)}"])]


def short(commit: str) -> str:
    """A commit as git shows it, with the mark of a checkout that differed from it."""
    return commit[:7] + "+" * commit.endswith("+")


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


def make_folder(folder: Path, anew: bool = False) -> None:
    """Make a folder and those above it, unless it is there; `anew` insists that it is not. Raises `WriteError`."""
    try:
        folder.mkdir(parents=True, exist_ok=not anew)
    except OSError as error:
        raise WriteError(folder, error) from None
    sync_folder(folder.parent)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner with `text` and the time it has taken, for what has no progress bar; only in a terminal."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as spinner:
        spinner.add_task(text, total=None)
        yield


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
    """Processor and number of cores; the accelerator, if any, is among the settings of the learner."""
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
