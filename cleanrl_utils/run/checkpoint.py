"""Checkpoints: files that hold the state of a run, so that it continues after a stop as if it had never been stopped.

That state is exactly the fields of the script's dataclass `State`. See docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput
from cleanrl_utils.files import make_folder, replacing
from cleanrl_utils.flags import flag
from cleanrl_utils.run import archive
from cleanrl_utils.run.archive import Archive, ArchiveError
from cleanrl_utils.run.args import TrainingArgs

FORMAT = 2
"""Format of the files. Format 1 was written by version 0.1 of this project."""
CONTENT = {"format", "flags", "settings", "phase", "step", "elapsed", "event_files", "state", "random"}
PERIOD = 600.0
"""Seconds between checkpoints if `--checkpoint-frequency` is not given."""
NAME = re.compile(r"\d{6}-[a-z]+-\d+\.zip")
OURS = re.compile(r"\d{6}-[a-z]+-\d+\.zip(\.tmp)?")


class State(Protocol):
    """A script's dataclass with everything that its run needs to continue. Scripts with phases also have a field `phase`."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]
    step: int


class Checkpoints:
    """The checkpoints of one run: when they are due, what they hold, and the one that a resumed run continues from."""

    def __init__(self, flags: TrainingArgs) -> None:
        self.flags = dataclasses.replace(flags)  # as given, like those of the run
        self.frequency = flags.checkpoint_frequency
        self.folder = Path()
        self.settings: dict[str, object] = {}  # what must be the same in a resumed run
        self.number = 0
        self.last_step, self.last_time = 0, time.monotonic()
        self.latest: tuple[str, int] | None = None  # phase and step of the checkpoint that was written or restored last
        self.whole: list[Path] = []  # the last two that are known to be whole
        self.saved: Archive | None = None

    @property
    def on(self) -> bool:
        """Whether this run writes checkpoints."""
        return self.frequency != 0

    @property
    def resumed(self) -> bool:
        """Whether the run continues from a checkpoint."""
        return self.flags.resume is not None

    def due(self, step: int) -> bool:
        """Whether the period is over at `step`: a multiple of the frequency was crossed, or ten minutes have passed."""
        last, self.last_step = self.last_step, step
        if self.frequency is None:
            return time.monotonic() - self.last_time >= PERIOD
        return self.on and step // self.frequency > last // self.frequency

    def save(self, state: State, elapsed: float, event_files: Mapping[str, int]) -> None:
        """Write a checkpoint of `state`, and remove all but the last two."""
        self.number += 1
        phase, step = place(state)
        path = self.folder / f"{self.number:06d}-{phase}-{step}.zip"
        content = {
            "format": FORMAT,
            "flags": flags_of(self.flags),
            "settings": self.settings,
            "phase": phase,
            "step": step,
            "elapsed": elapsed,
            "event_files": event_files,
            "state": state,
            "random": random_states(),
        }
        with replacing(path) as file:
            archive.write(file, content)
        self.whole = [*self.whole, path][-2:]
        self._remove_others(self.whole)
        self.latest, self.last_step, self.last_time = place(state), state.step, time.monotonic()

    def begin(self, folder: Path) -> None:
        """Write to `folder`/checkpoints from now on."""
        self.folder = folder / "checkpoints"
        if self.on:
            make_folder(self.folder)

    def finish(self) -> None:
        """Remove the checkpoints of a complete run, except the last one under `--keep-checkpoint`."""
        if self.folder.is_dir():
            self._remove_others(self.whole[-1:] if self.flags.keep_checkpoint else [])
            with contextlib.suppress(OSError):  # not empty: it also holds other files
                self.folder.rmdir()

    def where(self) -> str:
        """Return the step and the phase of the latest checkpoint; empty if there is no checkpoint."""
        if not self.whole:
            return ""
        _, phase, step = self.whole[-1].stem.split("-")
        return f"step {step} of {phase}"

    # --- Resuming ---

    def open_latest(self, folder: Path) -> None:
        """Open the newest whole checkpoint. Raises `BadInput` if there is no such checkpoint."""
        self.folder = folder / "checkpoints"
        paths = sorted(self.folder.glob("*.zip"), reverse=True) if self.folder.is_dir() else []
        paths = [path for path in paths if NAME.fullmatch(path.name)]
        if not paths:
            why = "" if self.on else ": --checkpoint-frequency was 0"
            if self.flags.schedule_timesteps:  # the user wants to train it further
                why += "; --keep-checkpoint keeps the last, and --initial-model starts a new run from a model file"
            raise BadInput("--resume", folder, f"holds no checkpoint{why}")
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
            self.whole = [path]
            self.settings = self.saved.tree["settings"]
            return
        raise BadInput("--resume", folder, f"has no whole checkpoint: {'; '.join(refused)}")

    def _checked(self, path: Path) -> Archive:
        """Open a checkpoint. Raises `ArchiveError` unless it is a whole one of this run."""
        saved = Archive(path)
        if saved.tree.get("format") == 1:
            raise ArchiveError(f"was written by version 0.1 (format 1); this version reads format {FORMAT}")
        if saved.tree.get("format") != FORMAT or not saved.tree.keys() >= CONTENT:
            raise ArchiveError("is no checkpoint of this version")
        ours, theirs = flags_of(self.flags), saved.tree["flags"]
        if ours["schedule_timesteps"] == (theirs.get("schedule_timesteps") or theirs["total_timesteps"]):  # trained further
            ours |= {name: theirs.get(name) for name in ("total_timesteps", "schedule_timesteps")}
        for name, value in ours.items():
            if theirs.get(name, value) != value:  # a flag that is new to the script has its default
                raise ArchiveError(f"is of another run: {flag(name)} {theirs[name]}")
        return saved

    def changes(self, settings: dict[str, object]) -> dict[str, str]:
        """Return what differs from the checkpoint, by name ("torch 2.13.0 then, 2.14.1 now"); new ones hold `settings`."""
        before, self.settings = self.settings, {name: archive.pack(value, "", {}) for name, value in settings.items()}
        if not self.resumed:
            return {}
        names = [name for name in before.keys() | self.settings.keys() if before.get(name) != self.settings.get(name)]
        return {name: f"{name} {before.get(name)} then, {self.settings.get(name)} now" for name in sorted(names)}

    def restore(self, state: State) -> float:
        """Restore `state` from the checkpoint, then the global random states; returns the seconds that the run had taken.

        Raises `BadInput` if the saved state does not fit: a field is missing, unknown, or of another shape.
        """
        saved = self.saved
        if saved is None:
            raise ValueError("no checkpoint is open")
        try:
            saved.fill(state, saved.tree["state"])
        except ArchiveError as error:
            raise BadInput("--resume", self.flags.resume, f"{saved.path.name} {error}") from None
        set_random_states(saved)  # only now, since replaying the games may have drawn from them
        saved.close()
        self.saved = None
        self.latest, self.last_step, self.last_time = place(state), state.step, time.monotonic()
        return saved.tree["elapsed"]

    def _remove_others(self, needed: list[Path]) -> None:
        """Remove older, damaged and half-written checkpoints."""
        for path in self.folder.iterdir():
            if OURS.fullmatch(path.name) and path not in needed:
                with contextlib.suppress(OSError):  # then the next time
                    path.unlink()


def place(state: State) -> tuple[str, int]:
    """Return the phase and the step of a state; scripts without phases have a single one, training."""
    return getattr(state, "phase", "training"), state.step


def flags_of(flags: object) -> dict[str, object]:
    """Return a run's flags as plain JSON, without those on resuming and on threads, whose number is in the settings."""
    kept = {name: value for name, value in vars(flags).items() if name not in ("resume", "resume_anyway", "threads")}
    return archive.pack(kept, "", {})


def random_states() -> dict[str, object]:
    """Return the global random states of Python, NumPy and torch: our scripts do not use them, but environments may."""
    states: dict[str, object] = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False)}  # noqa: NPY002
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        states["torch"] = torch.get_rng_state()
        states["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return states


def set_random_states(saved: Archive) -> None:
    """Set the global random states to those in a checkpoint."""
    states = saved.tree["random"]
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(saved.fill(np.random.get_state(legacy=False), states["numpy"]))  # noqa: NPY002
    if "torch" in sys.modules and "torch" in states:
        torch = sys.modules["torch"]
        torch.set_rng_state(saved.fill(torch.get_rng_state(), states["torch"]))
        if torch.cuda.is_initialized() and len(states["cuda"]) == torch.cuda.device_count():
            for device, state in enumerate(states["cuda"]):
                torch.cuda.set_rng_state(saved.fill(torch.cuda.get_rng_state(device), state), device)


def require_same(changed: Mapping[str, str], anyway: bool, folder: Path) -> None:
    """Raise `BadInput` if the weights would not be those of an uninterrupted run, unless `--resume-anyway` is given."""
    for name in {"commit", "hardware"} & changed.keys():
        notice(f"--resume: {changed[name]}: weights may differ from those of an uninterrupted run")
    text = ", ".join(line for name, line in changed.items() if name not in ("commit", "hardware"))
    if text and not anyway:
        raise BadInput("--resume", folder, f"{text}: the same weights cannot be guaranteed; --resume-anyway resumes")
    if text:
        notice(f"--resume-anyway: {text}; the weights will not be those of an uninterrupted run")
