"""One training run: its folder and config.json, its signals, and how it ends. It owns a tracker and the checkpoints.

A script uses it like this:

    run = Run(args, Checkpoints(args))          # finds the checkpoint of --resume, before anything slow begins
    state = State(...)
    with run.started(protocol, state):          # under --resume, `state` is now what it was
        run.begin("training", args.total_timesteps, state)
        while state.step < args.total_timesteps:
            ...                                 # at the end of each step:
            if run.due(state.step):
                run.save(state)                 # after a signal, this ends the process
        run.finish(results, scores)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from cleanrl_utils.console import notice
from cleanrl_utils.errors import WriteError
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.files import replacing, sync_folder, write_json
from cleanrl_utils.flags import recorded, script_path
from cleanrl_utils.record import commit, hardware, versions
from cleanrl_utils.run import replay
from cleanrl_utils.run.args import RunArgs, empty_phases
from cleanrl_utils.run.checkpoint import Checkpoints, State, place, require_same
from cleanrl_utils.run.estimate import estimate, seconds_left
from cleanrl_utils.run.folder import cut_event_files, lock, named, new_folder, removed_on_failure
from cleanrl_utils.run.replay import Replay
from cleanrl_utils.run.sinks import TRACKERS, Sink, TensorBoard
from cleanrl_utils.run.tracker import Tracker
from cleanrl_utils.signals import SIGNALS

STOPPING = b"\nstopping: a checkpoint is written at the end of this step; once more stops at once\n"


class Interrupted(SystemExit):
    """A signal arrived during an evaluation, which ends at once."""


class Run:
    """One training run. Without `checkpoints` it saves no state, and a signal ends it at once."""

    def __init__(self, args: RunArgs, checkpoints: Checkpoints | None = None) -> None:
        """Under `--resume`, open the run's latest whole checkpoint.

        Raises `BadInput` if there is no such checkpoint, or if the run is still going.
        """
        self.args = dataclasses.replace(args)  # as given: a script may enlarge its buffers afterwards
        self.checkpoints, self.folder = checkpoints, Path()
        self.config: dict[str, object] = {}
        self.began = time.time()
        self.estimate_due = False  # how long the run takes: told once, in an offline phase
        self.signal: int | None = None
        self.settled = True  # nothing has been done since the last checkpoint
        self.in_evaluation = False
        self.previous_handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self.unlock: Callable[[], object] = lambda: None
        if checkpoints is not None and checkpoints.resumed:
            self.folder = named(Path(checkpoints.flags.resume or ""))
            self.unlock = lock(self.folder, self)
            checkpoints.open_latest(self.folder)

    @property
    def resumed(self) -> bool:
        """Whether the run continues from a checkpoint."""
        return self.checkpoints is not None and self.checkpoints.resumed

    @property
    def saved_phase(self) -> str | None:
        """The phase in which a resumed run was stopped; None for a new run."""
        saved = self.checkpoints and self.checkpoints.saved
        return saved.tree["phase"] if saved else None

    # --- Beginning and end ---

    @contextlib.contextmanager
    def started(self, protocol: Mapping[str, object], state: State | None = None) -> Iterator[None]:
        """Make the run folder `runs/{env_id}__{exp_name}__{seed}__{time}`, or restore `state` and continue in the old one.

        Enter it once all input has been accepted. `protocol` says what the run's scores mean; config.json holds it.
        Raises `WriteError` if the folder cannot be made, and `BadInput` if the checkpoint does not fit.
        """
        made_with = {"versions": versions(), "commit": commit(), "hardware": hardware()}
        if self.resumed:
            self._go_on(dict(protocol), made_with, state)
        else:
            self._begin(dict(protocol), made_with)
        self.model_path = self.folder / f"{self.args.exp_name}.cleanrl_model"
        try:
            with self._signals():
                yield
        except BaseException as error:
            self._record_failure(error)
        finally:
            self.tracker.close({})
            self.unlock()

    def _begin(self, protocol: dict[str, object], made_with: dict[str, object]) -> None:
        """Make the folder of a new run."""
        script = script_path(type(self.args))
        if self.checkpoints is not None:
            self.checkpoints.changes(protocol | flat(made_with))
        self.config = {"status": "running", "script": script.stem, "protocol": protocol} | recorded(self.args) | made_with
        self.folder = new_folder(self.args)
        with removed_on_failure(self.folder):
            sinks = self._other_sinks()
        for line in empty_phases(self.args):
            notice(line)
        self._open(sinks)

    def _go_on(self, protocol: dict[str, object], made_with: dict[str, object], state: State) -> None:
        """Restore the state, then remove from the logs what came after the checkpoint, since it will be logged again."""
        changed = self.checkpoints.changes(protocol | flat(made_with))
        require_same(changed, self.checkpoints.flags.resume_anyway, self.folder)
        self.config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.config.pop("error", None)
        resumed = {"command": [Path(sys.argv[0]).name, *sys.argv[1:]], "changed": [*changed.values()]}
        self.config |= {"status": "running", "resumed": [*self.config.get("resumed", []), resumed], "protocol": protocol}
        started_with = {"resume": None, "resume_anyway": False, "threads": self.config["flags"].get("threads")}
        self.config |= recorded(dataclasses.replace(self.args, **started_with))  # --total-timesteps may have grown
        lengths = self.checkpoints.saved.tree["event_files"]
        self.began = time.time() - self.checkpoints.restore(state)
        if changed:  # the first checkpoint that is due, at once, is one of the new settings
            self.checkpoints.latest = None
        cut_event_files(self.folder, lengths)
        self._open(self._other_sinks())

    def _open(self, sinks: list[Sink]) -> None:
        """Write config.json and a copy of the running script, and open the logs."""
        script = script_path(type(self.args))
        write_json(self.folder / "config.json", self.config)
        with replacing(self.folder / script.name) as file:
            file.write(script.read_bytes())
        notice(f"run folder: {self.folder}")
        self.tracker = Tracker(self.folder, [TensorBoard(self.folder), *sinks])
        if self.checkpoints is not None:
            self.checkpoints.begin(self.folder)
            if not self.resumed:
                self.unlock = lock(self.folder, self)
        sync_folder(self.folder)

    def _other_sinks(self) -> list[Sink]:
        """Return the sink of the tracker, if `--track` is on."""
        if not self.args.track:
            return []
        sink = TRACKERS[self.args.tracker](self.args, self.folder.name, self.config)
        self.config[f"{self.args.tracker}_run"] = sink.run.id
        return [sink]

    def finish(self, results: Mapping[str, object], scores: Mapping[str, Evaluation]) -> None:
        """Mark the run complete, with its results and scores, remove its checkpoints and show the scores."""
        results = {**results, "wall_time": round(time.time() - self.began, 1)}
        self.config |= {"status": "complete"} | results
        self.record(scores)
        self.tracker.close({**results, **{f"score/{name}": score.mean for name, score in scores.items()}})
        if self.checkpoints is not None:
            self.checkpoints.finish()
        self.tracker.show(scores)

    def record(self, scores: Mapping[str, Evaluation]) -> None:
        """Write the scores so far into config.json."""
        self.config["evaluations"] = {name: dataclasses.asdict(score) for name, score in scores.items()}
        write_json(self.folder / "config.json", self.config)

    def _record_failure(self, error: BaseException) -> None:
        """Say in config.json how a run ended that did not reach `finish`; raises the error again."""
        if self.config.get("status") != "running":
            raise error
        done = max(self.tracker.done, self.checkpoints.last_step if self.checkpoints else 0)
        where = f"{self.tracker.name}, {done:,} steps done" if self.tracker.name else "before its first step"
        status = "stopped" if isinstance(error, SystemExit | KeyboardInterrupt) else "failed"
        self.config |= {"status": status, "error": f"{type(error).__name__}: {error} ({where})"}
        with contextlib.suppress(WriteError):  # the reason may be that nothing can be written
            write_json(self.folder / "config.json", self.config)
        again = self.checkpoints.where() if self.checkpoints else ""
        if again or status == "stopped":
            how = f"to go on from {again}: --resume {self.folder}" if again else f"run folder: {self.folder}"
            notice(f"{status} {'in ' * bool(self.tracker.name)}{where}; {how}")
        if isinstance(error, FloatingPointError):
            kept = "" if again else f"; the flags in {self.folder / 'config.json'} reproduce this"
            raise FloatingPointError(f"{error} ({where}{kept})") from None
        raise error

    def withdraw(self, reason: str) -> None:
        """Say, here and in config.json, that a resumed run will not end with the weights of an uninterrupted run."""
        notice(f"--resume: {reason}; the weights will not be those of an uninterrupted run")
        self.config["resumed"][-1]["changed"].append(reason)
        write_json(self.folder / "config.json", self.config)

    # --- What a loop calls ---

    def begin(self, name: str, total: int, state: State | None = None, unit: str = "steps") -> None:
        """Begin a loop: a progress bar, the clock of `rate` and, if `state` is given, its step and a checkpoint of it."""
        self.tracker.begin(name, total, unit, state.step if state else 0)
        self.estimate_due = unit == "updates"
        if state is not None:
            self.save(state)

    def advance(self, step: int) -> None:
        """Move the progress bar; after the first offline updates, tell how long the run will take."""
        self.tracker.advance(step)
        if self.estimate_due and self.rate() > 0:
            self.estimate_due = False
            playing = self.tracker.rates.get("teacher's data")
            notice(estimate(seconds_left(self.args, step, self.rate(), playing), bool(playing)))

    def rate(self) -> float:
        """Return the steps per second of this loop, not counting the time of evaluations and checkpoints."""
        return self.tracker.rate()

    def scalars(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics at `step`."""
        self.tracker.scalars(metrics, step)

    def episodes(self, finished: list[tuple[float, int]], step: int) -> None:
        """Log the returns and lengths of games that ended at `step`."""
        self.tracker.episodes(finished, step)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due at the end of `step`: its period is over, or a signal has arrived."""
        self.settled = False
        period_is_over = self.checkpoints is not None and self.checkpoints.due(step)
        return period_is_over or self.signal is not None

    def save(self, state: State) -> None:
        """Write a checkpoint, unless they are off or this step has one. After a signal, exit with status 128 + signal."""
        if self.checkpoints is not None and self.checkpoints.on and self.checkpoints.latest != place(state):
            with self.tracker.paused():
                self.checkpoints.save(state, time.time() - self.began, self.tracker.flush())
        self.settled = True
        if self.signal is not None:
            raise SystemExit(128 + self.signal)

    def save_replay(self, rb: Replay, num_actions: int) -> None:
        """Write a replay buffer, as it is now, to replay.zip in the run folder."""
        with self.tracker.paused("saving the replay"), replacing(self.folder / replay.FILE) as file:
            replay.write(file, rb, self.args.env_id, num_actions)

    @contextlib.contextmanager
    def evaluating(self, state: State | None = None) -> Iterator[None]:
        """Stop the clock of `rate` inside the block. After a signal, save `state` and end the process at once.

        The block must not change `state`: a run that is resumed from there evaluates again. A run without checkpoints has
        no `state`.
        """
        if self.signal is not None:
            self.save(state)
        self.in_evaluation = True
        try:
            with self.tracker.paused("evaluating"):
                yield
        except Interrupted:
            self.in_evaluation = False
            self.save(state)
        finally:
            self.in_evaluation = False

    # --- Signals ---

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT inside the block."""
        with contextlib.suppress(ValueError):  # not in the main thread: signals are left alone
            self.previous_handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            self._restore_handlers()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._restore_handlers()  # so that a second one stops at once
        self.signal = number
        if self.settled or self.checkpoints is None or not self.checkpoints.on:
            raise SystemExit(128 + number)
        os.write(2, STOPPING)  # `print` must not be entered twice
        if self.in_evaluation:
            raise Interrupted(128 + number)

    def _restore_handlers(self) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        self.previous_handlers = {}


def flat(made_with: dict[str, object]) -> dict[str, object]:
    """Return versions, hardware and commit as one flat dictionary."""
    return {**made_with["versions"], "hardware": made_with["hardware"], "commit": made_with["commit"]}
