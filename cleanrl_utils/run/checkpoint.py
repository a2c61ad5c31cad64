"""Checkpoints: all that a run needs to go on after it was stopped, as if it had not been.

A script names what is to be kept, says where it has arrived, and asks whether to save:

    checkpoints = Checkpoints(args)                                       # with --resume: the run's latest checkpoint
    checkpoints.keep(q_network=q_network, rb=rb)                          # restored here, if the run is resumed
    with start_run(args, protocol, checkpoints) as tracker:
        first_step, best = checkpoints.begin("training", 0, best)         # 0 and best, or what was saved
        for step in range(first_step, ...):
            ...
            if checkpoints.due(step + 1):                                 # by --checkpoint-frequency, or after a signal
                checkpoints.save(step + 1, best)                          # after a signal, this ends the process

See docs/reliability.md for what is promised.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import signal
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput, WriteError
from cleanrl_utils.files import make_folder, replacing, sync_folder
from cleanrl_utils.flags import flag
from cleanrl_utils.record import event_files
from cleanrl_utils.run.archive import Archive, ArchiveError, pack, write

FORMAT = 1
CONTENT = {
    "flags", "settings", "phase", "step", "elapsed", "event_files", "values", "kept", "once", "dropped", "random",
}  # fmt: skip
STEPS_PER_GAME = 10_000
"""Steps per environment and checkpoint below which long games are cut too often to be learned from."""
NAME = re.compile(r"\d{6}-[a-z]+-\d+\.zip")
OURS = re.compile(r"(\d{6}-[a-z]+-\d+|[a-z_]+-\d{6})\.zip(\.tmp)?")
STOPPING = b"\nstopping: a checkpoint is written at the end of this step; once more stops at once\n"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """A signal came in the middle of an evaluation, which is left."""


class Checkpoints:
    """The checkpoints of one run: when they are due, what they hold, and the one that the run goes on from."""

    def __init__(self, args: Any) -> None:
        """With `--resume`, find the run's latest whole checkpoint.

        Raises `BadInput` where there is none, or where the run is still going.
        """
        self.args, self.frequency = args, args.checkpoint_frequency
        self.settings: dict[str, Any] = {}  # what must be the same in a resumed run
        self.changed: dict[str, str] = {}  # what is not
        self.kept: dict[str, Any] = {}
        self.written_once: dict[str, list[str]] = {}  # of what is kept: file and digest
        self.dropped: set[str] = set()
        self.phase, self.last_step, self.number = "", 0, 0
        self.whole: dict[Path, list[str]] = {}  # the last two that are known to be whole, and the files they refer to
        self.saved: Archive | None = None
        self.signal: int | None = None
        self.settled = self.resumed  # nothing has been done since the last checkpoint
        self.evaluating = False
        self.previous_handlers: dict[int, Any] = {}
        self.unlock: Callable[[], None] = lambda: None
        self.tracker: Any = None
        if args.resume is not None:
            self.folder = Path(args.resume) / "checkpoints"
            self._lock()
            self._open_latest()

    # --- What a script calls ---

    def keep(self, **objects: Any) -> None:
        """Put these objects into every checkpoint from now on; of a resumed run, restore them now, in place."""
        for name, value in objects.items():
            self.drop(name)
            self.dropped.discard(name)
            self.kept[name] = value
            if self.saved is not None and name not in self.saved.tree["dropped"]:
                self._restore(self.saved, value, self.saved.tree["kept"].get(name))

    def keep_once(self, **objects: Any) -> None:
        """As `keep`, for what does not change in a phase: written to a file of its own, now, that checkpoints refer to."""
        for name, value in objects.items():
            self.drop(name)
            self.dropped.discard(name)
            if self.saved is not None and name in self.saved.tree["once"]:
                self.written_once[name] = self.saved.tree["once"][name]
                archive = Archive(self.folder / self.written_once[name][0])
                self._restore(archive, value, archive.tree[name])
                archive.close()
            elif self.frequency:
                path = self.folder / f"{name}-{self.number + 1:06d}.zip"
                with replacing(path) as file:
                    write(file, {name: value})
                self.written_once[name] = [path.name, digest(path)]

    def drop(self, *names: str) -> None:
        """Keep these no longer."""
        for name in names:
            self.kept.pop(name, None)
            self.written_once.pop(name, None)
            self.dropped.add(name)

    def at(self, *phases: str) -> bool:
        """Whether one of these phases is still to be gone through: False where a resumed run is past them."""
        return self.saved is None or self.saved.tree["phase"] in phases

    def begin(self, phase: str, step: int, *values: Any) -> tuple[Any, ...]:
        """Begin a phase at `step` with these values, with a checkpoint; or go on where the resumed run was in it.

        Returns step and values. Values that the script replaces, as numbers and JAX's states, are kept by passing them.
        To be called before the environments are made: they may draw from global random states, which are set here.
        """
        self.phase = phase
        if self.saved is None:
            self.settled = False
            self.save(step, *values)
            return step, *values
        saved, self.saved = self.saved, None
        self.last_step = saved.tree["step"]
        values = tuple(self._restore(saved, *pair) for pair in zip(values, saved.tree["values"], strict=True))
        set_random_states(saved)
        saved.close()
        return self.last_step, *values

    def due(self, step: int) -> bool:
        """Whether to save at `step`: a multiple of the frequency was crossed since the last call, or a signal has come."""
        crossed = self.frequency and step // self.frequency > self.last_step // self.frequency
        self.last_step, self.settled = step, False
        return bool(crossed) or self.signal is not None

    def save(self, step: int, *values: Any) -> None:
        """Write a checkpoint, unless they are off. After a signal, end the process with 128 + its number.

        To be called when all games have been cut in the replay, and before new ones are made.
        """
        if self.frequency and not (self.settled and step == self.last_step):
            self.number += 1
            path = self.folder / f"{self.number:06d}-{self.phase}-{step}.zip"
            with replacing(path) as file:
                write(
                    file,
                    {
                        "format": FORMAT,
                        "flags": flags_of(self.args),
                        "settings": self.settings,
                        "phase": self.phase,
                        "step": step,
                        "elapsed": time.time() - self.tracker.started,
                        "event_files": self.tracker.flush(),
                        "values": values,
                        "kept": self.kept,
                        "once": self.written_once,
                        "dropped": sorted(self.dropped),
                        "random": random_states(),
                    },
                )
            referred = [name for name, _ in self.written_once.values()]
            self.whole = dict([*self.whole.items(), (path, referred)][-2:])
            self._remove_others()
        self.last_step, self.settled = step, True
        if self.signal is not None:
            self._leave()

    # --- What the tracker calls ---

    @property
    def resumed(self) -> bool:
        """Whether the run goes on from a checkpoint."""
        return self.args.resume is not None

    def attach(self, tracker: Any) -> None:
        """Belong to a run's tracker and folder, and take its signals: SIGTERM and SIGINT, until `close`."""
        self.tracker, self.folder = tracker, tracker.folder / "checkpoints"
        if self.frequency:
            make_folder(self.folder)
        if self.saved is not None:
            tracker.started = time.time() - self.saved.tree["elapsed"]
        else:
            self._lock()
            self._warn_of_short_periods()
        sync_folder(tracker.folder)
        with contextlib.suppress(ValueError):  # not in the main thread: signals are left alone
            self.previous_handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def _warn_of_short_periods(self) -> None:
        """An environment that cuts its episodes earlier by itself is measured by that."""
        spec = gym.registry.get(self.args.env_id.split(":")[-1])
        steps = min(STEPS_PER_GAME, (spec and spec.max_episode_steps) or STEPS_PER_GAME)
        if 0 < self.frequency < steps * self.args.num_envs:
            notice(
                f"--checkpoint-frequency {self.frequency}: each checkpoint cuts all games, so fewer than "
                f"{steps * self.args.num_envs:,} steps ({steps:,} per environment) favour short ones"
            )

    def close(self) -> None:
        """Leave signals to whoever had them before, and the folder to other processes."""
        self._restore_handlers()
        self.unlock()

    def interruptible(self, evaluate: Callable[..., Any], *args: Any) -> Any:
        """The result of what changes nothing in training, as an evaluation; None where a signal came before or in it."""
        self.evaluating = True
        try:
            return evaluate(*args) if self.signal is None else None
        except Interrupted:
            return None
        finally:
            self.evaluating = False

    def how_to_resume(self) -> str:
        """The step of the latest checkpoint and the flag that goes on from it; empty where there is none."""
        if not self.whole:
            return ""
        _, phase, step = [*self.whole][-1].stem.split("-")
        return f"step {step} of {phase}: --resume {self.folder.parent}"

    def cut_event_files(self) -> None:
        """Take from the event files what the run logged after its checkpoint: it will be logged again."""
        lengths = self.saved.tree["event_files"]
        for path in event_files(self.folder.parent):
            try:
                if path.name not in lengths:
                    path.unlink()
                elif path.stat().st_size > lengths[path.name]:
                    os.truncate(path, lengths[path.name])
            except OSError as error:
                raise WriteError(path, error) from None

    # --- Signals ---

    def _on_signal(self, number: int, _: Any) -> None:
        self._restore_handlers()  # so that a second one stops at once
        self.signal = number
        if self.settled or not self.frequency:
            self._leave()
        os.write(2, STOPPING)  # `print` may not be entered twice
        if self.evaluating:
            raise Interrupted(128 + number)

    def _leave(self) -> None:
        raise SystemExit(128 + self.signal)

    def _restore_handlers(self) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        self.previous_handlers = {}

    # --- Files ---

    def _lock(self) -> None:
        """Hold the run folder for this process, where the system can. Raises `BadInput` if another one has it."""
        try:
            import fcntl  # noqa: PLC0415 - not on every system
        except ImportError:
            return
        descriptor = os.open(self.folder.parent, os.O_RDONLY)
        self.unlock = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            raise BadInput("--resume", self.folder.parent, "is still running, in another process") from None
        except OSError:  # a file system without locks
            return

    def _remove_others(self) -> None:
        """Remove what the last two checkpoints do not need: older ones, damaged ones, half-written ones."""
        needed = {path.name for path in self.whole} | {name for names in self.whole.values() for name in names}
        for path in self.folder.iterdir():
            if OURS.fullmatch(path.name) and path.name not in needed:
                with contextlib.suppress(OSError):  # another time, then
                    path.unlink()

    def _open_latest(self) -> None:
        """Find the newest whole checkpoint. Raises `BadInput` where there is none, or where settings are others."""
        paths = sorted(self.folder.glob("*.zip"), reverse=True) if self.folder.is_dir() else []
        paths = [path for path in paths if NAME.fullmatch(path.name)]
        if not paths:
            why = "" if self.frequency else ": --checkpoint-frequency was 0"
            raise BadInput("--resume", self.args.resume, f"holds no checkpoint{why}")
        self.number = int(paths[0].name[:6])
        refused = []
        for path in paths:
            try:
                self.saved = self._checked(path)
            except ArchiveError as error:
                refused.append(f"{path.name} {error}")
                continue
            for line in refused:
                notice(f"--resume: {line}; going on from {path.name}")
            self.whole = {path: [name for name, _ in self.saved.tree["once"].values()]}
            self.settings = self.saved.tree["settings"]
            return
        raise BadInput("--resume", self.args.resume, f"has no whole checkpoint: {'; '.join(refused)}")

    def _checked(self, path: Path) -> Archive:
        """A checkpoint of this run, with what it refers to. Raises `ArchiveError`."""
        archive = Archive(path)
        tree = archive.tree
        if tree.get("format") != FORMAT or not tree.keys() >= CONTENT:
            raise ArchiveError("is no checkpoint of this version")
        for name, value in flags_of(self.args).items():
            if tree["flags"].get(name, value) != value:  # a flag that is new to the script has its default
                raise ArchiveError(f"is of another run: {flag(name)} {tree['flags'][name]}")
        for name, expected in tree["once"].values():
            if not (self.folder / name).is_file() or digest(self.folder / name) != expected:
                raise ArchiveError(f"needs {name}, which is damaged or missing")
        return archive

    def require_same(self, protocol: dict[str, Any], versions: dict[str, str], commit: str | None, hardware: str) -> None:
        """Take the settings of this process, from now on saved too; of a resumed run they must be what they were.

        Raises `BadInput` where weights would not be those of the run left alone, unless there is `--resume-anyway`.
        """
        settings = protocol | versions | {"hardware": hardware, "commit": commit}
        before, self.settings = self.settings, pack(settings, "", {})
        if not self.resumed:
            return
        names = sorted(name for name in before.keys() | settings.keys() if before.get(name) != self.settings.get(name))
        self.changed = {name: f"{name} {before.get(name)} then, {settings.get(name)} now" for name in names}
        for name in {"commit", "hardware"} & self.changed.keys():
            notice(f"--resume: {self.changed[name]}: weights may differ from those of the run left alone")
        text = ", ".join(line for name, line in self.changed.items() if name not in ("commit", "hardware"))
        if text and not self.args.resume_anyway:
            reason = "the same weights cannot be promised; --resume-anyway goes on"
            raise BadInput("--resume", self.args.resume, f"{text}: {reason}")
        if text:
            notice(f"--resume-anyway: {text}; the weights will not be those of the run left alone")

    def _restore(self, archive: Archive, value: Any, saved: Any) -> Any:
        try:
            return archive.fill(value, saved)
        except ArchiveError as error:
            raise BadInput("--resume", self.args.resume, f"{archive.path.name} {error}") from None


def flags_of(args: Any) -> dict[str, Any]:
    """A run's flags as JSON holds them, without those that say how it is resumed."""
    return pack({name: value for name, value in vars(args).items() if not name.startswith("resume")}, "", {})


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def random_states() -> dict[str, Any]:
    """The global random states of Python, NumPy and torch: our scripts use none, but environments may."""
    states: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False)}  # noqa: NPY002
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        states["torch"] = torch.get_rng_state()
        states["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return states


def set_random_states(archive: Archive) -> None:
    """Set the global random states as a checkpoint has them."""
    saved = archive.tree["random"]
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(archive.fill(np.random.get_state(legacy=False), saved["numpy"]))  # noqa: NPY002
    if "torch" in sys.modules and "torch" in saved:
        torch = sys.modules["torch"]
        torch.set_rng_state(archive.fill(torch.get_rng_state(), saved["torch"]))
        if torch.cuda.is_initialized() and len(saved["cuda"]) == torch.cuda.device_count():
            for device, state in enumerate(saved["cuda"]):
                torch.cuda.set_rng_state(archive.fill(torch.cuda.get_rng_state(device), state), device)
