"""What is written about a run: config.json, event files, versions and hardware; and how it is read back."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.errors import DataLossError, OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput, first_line

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
SCORE = {"returns": [int | float], "lengths": [int], "capped": int, "clipped_returns?": [int | float]}
CONFIG = {
    "status": str,
    "flags": {"env_id": str, "exp_name": str, "seed": int, "total_timesteps?": int, "teacher_steps?": int},
    "script?": str | None,
    "protocol?": {},
    "command?": [str],
    "versions?": {},
    "commit?": str | None,
    "hardware?": str,
    "wall_time?": int | float,
    "resumed?": [dict],
    "evaluations?": {},
}
"""The shape of a config.json, for `fits`: what is read of it, whatever the script. A run may lack a key that ends in `?`."""
EVENT_FILE = "events.out.tfevents."
Series = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A metric's steps, seconds of the run (pauses between a stop and a resume are not counted), and values."""


def read_run(path: Path, name: str, value: object) -> dict[str, Any]:
    """Read a run's config.json, which has the shape `CONFIG`. Raises `BadInput` for the flag `name` and its `value`."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise BadInput(name, value, f"is no run folder: its config.json cannot be read ({reason})") from None
    except (ValueError, RecursionError):
        run = None
    if not is_config(run):
        raise BadInput(name, value, "has a config.json that is damaged, or not of a run")
    return {"script": None} | run


def is_config(value: Any) -> bool:
    """Whether a JSON value is the config.json of a run: it has the shape, and each score in it is of one game or more."""
    if not fits(value, CONFIG):
        return False
    return all(fits(score, SCORE) and score["returns"] for score in value.get("evaluations", {}).values())


def fits(value: Any, shape: Any) -> bool:
    """Whether a JSON value has a shape: a type, `[shape of each item]`, or `{key: shape}`; other keys may be there too."""
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            fits(value[name], of) if (name := key.rstrip("?")) in value else name != key for key, of in shape.items()
        )
    return isinstance(value, shape) and not isinstance(value, bool)


# --- Event files ---


def event_files(folder: Path) -> list[Path]:
    """Return the event files of a run, oldest first."""
    return sorted(folder.glob(f"{EVENT_FILE}*"))


def read_series(folder: Path) -> dict[str, Series]:
    """Read all metrics of a run folder. An unreadable event file is named and skipped; one cut short is read to the cut."""
    points: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    clock = 0.0
    for path in event_files(folder):
        try:
            events = read_events(path)
        except DataLossError as error:
            notice(f"skipped: {path} is damaged ({first_line(error)})")
            continue
        except OSError as error:
            notice(f"skipped: {path} cannot be read ({error.strerror})")
            continue
        for event in events:
            seconds = clock + max(0.0, event.wall_time - events[0].wall_time)
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    points[value.tag].append((event.step, seconds, value.simple_value))
        clock += events[-1].wall_time - events[0].wall_time if events else 0.0
    return {tag: columns(rows) for tag, rows in points.items()}


def columns(rows: list[tuple[int, float, float]]) -> Series:
    """Return points as arrays."""
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def read_events(path: Path) -> list[Event]:
    """Read the events of a file. Raises `DataLossError` if it was changed after it was written."""
    return list(new_events(PyRecordReader_New(str(path))))


def read_text(path: Path, tag: str) -> str | None:
    """Return the first text with this tag in an event file, or None. Raises `DataLossError` as `read_events` does."""
    for event in new_events(PyRecordReader_New(str(path))):
        for value in event.summary.value:
            if value.tag == tag and value.tensor.string_val:
                return value.tensor.string_val[0].decode(errors="replace")
    return None


def new_events(reader: PyRecordReader_New) -> Iterator[Event]:
    """Yield a reader's new events, up to one that is incomplete. Raises `DataLossError` as `read_events` does."""
    while True:
        try:
            reader.GetNext()
        except OutOfRangeError:
            return
        except DataLossError as error:
            if "truncated" in str(error):  # the run was killed, or is still going
                return
            raise
        yield Event.FromString(reader.record())


class Latest:
    """The latest step and value of each metric of a run folder, while the run goes on: each event is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.readers: dict[Path, PyRecordReader_New] = {}
        self.points: dict[str, tuple[int, float]] = {}

    def read(self) -> dict[str, tuple[int, float]]:
        """Read what the run has logged since the last time; returns the latest point of each metric."""
        for path in event_files(self.folder):
            if path not in self.readers:
                self.readers[path] = PyRecordReader_New(str(path))
            for event in new_events(self.readers[path]):
                for value in event.summary.value:
                    if value.HasField("simple_value"):
                        self.points[value.tag] = (event.step, value.simple_value)
        return self.points


# --- What a run was made with ---


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """Return processor and number of cores; the accelerator, if any, is among the settings of the learner."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str | None:
    """Return the commit of this checkout, with `+` if files differ from it; None outside of a checkout.

    Another repository that merely has the installed package somewhere in it does not count.
    """
    root = Path(__file__).resolve().parents[1]
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        return _git(root, "describe", "--always", "--abbrev=40", "--dirty=+") if Path(top).resolve() == root else None
    except subprocess.CalledProcessError as error:
        if "dubious ownership" in error.stderr:
            trust = f"`git config --global --add safe.directory {root}` if you trust it"
            notice(f"the commit is not recorded: another user owns {root}; {trust}")
        return None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    """Return what a git command prints."""
    command = ["git", "-C", str(folder), *words]
    environment = os.environ | {"LC_ALL": "C"}
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=environment).stdout.strip()


def short(commit: str) -> str:
    """Shorten a commit as git does, keeping the mark of a checkout that differed from it."""
    return commit[:7] + "+" * commit.endswith("+")
