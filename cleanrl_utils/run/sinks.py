"""Where the scalars of a run go: TensorBoard's event files, Weights & Biases or Trackio."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DataType
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput, WriteError, first_line, missing
from cleanrl_utils.record import EVENT_FILE, event_files, short
from cleanrl_utils.run.args import RunArgs


class Sink(Protocol):
    """Where scalars go."""

    def scalars(self, metrics: Mapping[str, float], step: int) -> None:
        """Log all metrics at `step`."""

    def flush(self) -> None:
        """Flush to disk what was logged."""

    def close(self, results: Mapping[str, object]) -> None:
        """End the log with the run's results, which are empty if it did not finish."""


class TensorBoard:
    """Writes scalars to an event file, without torch or tensorflow, and without the host's name in the file name."""

    def __init__(self, folder: Path) -> None:
        files = event_files(folder)
        number = max([int(time.time()), *(int(path.name.split(".")[3]) + 1 for path in files)])  # TensorBoard reads by name
        self.path = folder / f"{EVENT_FILE}{number:010d}"
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if not files:
            self._write(Event(wall_time=time.time(), summary=layout()))

    def scalars(self, metrics: Mapping[str, float], step: int) -> None:
        """Write all metrics at `step`, visible at once. Raises `WriteError`."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        try:
            with self.path.open("ab") as file:
                RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            raise WriteError(self.path, error) from None

    def flush(self) -> None:
        """Force what was written onto the disk."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())

    def close(self, results: Mapping[str, object]) -> None:
        """Do nothing: no file is open, and the results are in config.json."""


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
"""TensorBoard's page Custom Scalars, by category and chart: metrics of different phases share a chart."""


def layout() -> Summary:
    """Return the layout of TensorBoard's page Custom Scalars, as an event file holds it."""
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
    """Logs scalars to Weights & Biases; `WANDB_MODE=offline` needs no account. A failure there never stops a run."""

    def __init__(self, args: RunArgs, run_name: str, config: Mapping[str, object]) -> None:
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
                id=config.get("wandb_run"),  # set if the run is resumed
                resume="allow",
                settings={"finish_timeout_raises": True},
            )
        except wandb.errors.Error as error:
            raise BadInput("--track", "on", f"{first_line(error)}; `wandb login`, or WANDB_MODE=offline") from None
        except ValueError as error:  # also from pydantic: an unknown WANDB_MODE, a tag that is too long
            raise BadInput("--track", "on", f"Weights & Biases refuses: {str(error).split('[type=')[0]}") from None
        self.folder, self.teardown, self.video = Path(self.run.dir).parent, wandb.teardown, wandb.Video
        self.films, self.sent = Path("videos") / run_name, set()
        # Each metric has its own step, since offline updates and online steps are different clocks.
        self.run.define_metric("*", step_metric="global_step")
        self.run.define_metric("charts/offline/*", step_metric="offline_step")

    def scalars(self, metrics: Mapping[str, float], step: int) -> None:
        """Log all metrics at `step` of their clock, which counts offline updates or online steps."""
        clock = "offline_step" if next(iter(metrics)).startswith("charts/offline/") else "global_step"
        self._try(lambda: self.run.log({**metrics, clock: step}))
        self._send_films()

    def _send_films(self) -> None:
        """Send the films that `--capture-video` has made since the last call, under the names of their files."""
        for path in new_films(self.films, self.sent):
            self._try(lambda path=path: self.run.log({f"videos/{path.stem}": self.video(str(path), format="mp4")}))

    def flush(self) -> None:
        """Do nothing: W&B stores what it has not sent yet in its own files."""

    def close(self, results: Mapping[str, object]) -> None:
        """Store the results in the run's summary and finish."""
        self._send_films()
        self._try(lambda: self.run.summary.update(results))
        self._try(lambda: self.run.finish(exit_code=0 if results else 1))  # 1: the run did not finish

    def _try(self, report: Callable[[], object]) -> None:
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
            with contextlib.suppress(Exception, SystemExit):  # else its exit hook reports it again
                self.teardown()
            logging.getLogger("wandb").setLevel(logging.CRITICAL + 1)  # else debug.log grows with each line shown


class Trackio:
    """Logs scalars to Trackio's database, in the folder TRACKIO_DIR on this machine.

    `trackio show` shows them. If something fails there, Trackio prints a warning, and the run goes on.
    """

    def __init__(self, args: RunArgs, run_name: str, config: Mapping[str, object]) -> None:
        try:
            import trackio  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise BadInput("--tracker", "trackio", missing(error, "trackio")) from None
        about = {"project": args.wandb_project_name, "name": run_name, "config": config}
        about |= {"group": f"{args.env_id}, {args.exp_name}", "resume": "allow"}
        # Without these it also logs the machine's load, which is not the run's, and opens a page in notebooks.
        about |= {"auto_log_cpu": False, "auto_log_gpu": False, "embed": False}
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what it prints is not a result
                self.run = trackio.init(**about)
        except (ValueError, OSError) as error:  # about the project's name, or what TRACKIO_SPACE_ID or _SERVER_URL names
            raise BadInput("--tracker", "trackio", f"refuses: {first_line(error)}") from None
        self.finish, self.video = trackio.finish, trackio.Video
        self.films, self.sent = Path("videos") / run_name, set()

    def scalars(self, metrics: Mapping[str, float], step: int) -> None:
        """Log all metrics at `step`; the two clocks of a run need nothing more, since each metric keeps its own steps."""
        self._log(metrics, step)

    def _log(self, metrics: Mapping[str, object], step: int | None) -> None:
        """Log metrics and new films; without a step they come after all others."""
        if metrics:
            self.run.log({**metrics}, step=step)
        for path in new_films(self.films, self.sent):
            self.run.log({f"videos/{path.stem}": self.video(path)}, step=step)

    def flush(self) -> None:
        """Do nothing: a thread of Trackio writes what was logged, twice a second."""

    def close(self, results: Mapping[str, object]) -> None:
        """Log the results and finish."""
        self._log(results, None)
        with contextlib.redirect_stdout(sys.stderr):
            self.finish()


TRACKERS = {"wandb": WeightsAndBiases, "trackio": Trackio}
"""The sinks of `--track`, by the values of `--tracker`."""


def new_films(folder: Path, sent: set[Path]) -> list[Path]:
    """Return the films that `--capture-video` has made since the last call, and add them to `sent`."""
    new = sorted({*folder.glob("*.mp4")} - sent)
    sent.update(new)
    return new


def tags(config: Mapping[str, object]) -> list[str]:
    """Return a run's tags for Weights & Biases: those in WANDB_TAGS, its script, its commit (`+`: with local changes)."""
    named = [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
    commit = config.get("commit")
    return [*named, *filter(None, [config.get("script"), commit and f"commit-{short(commit)}"])]
