"""The folder of a run: its name, its lock, and its event files as a checkpoint knows them."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from cleanrl_utils.errors import BadInput, WriteError
from cleanrl_utils.files import file_name
from cleanrl_utils.record import event_files


class NameFlags(Protocol):
    """The flags of a script that name a run."""

    exp_name: str
    env_id: str
    seed: int


def new_folder(args: NameFlags) -> Path:
    """The folder of a run that begins now; it is not made yet."""
    now = int(time.time())
    name = f"{file_name(args.env_id)}__{args.exp_name}__{args.seed}__"
    while (Path("runs") / f"{name}{now}").exists():  # two runs may start in the same second
        now += 1
    return Path("runs") / f"{name}{now}"


def lock(folder: Path, owner: object) -> Callable[[], object]:
    """Hold the folder for this process while `owner` lives, where the system can; returns what releases it before.

    Raises `BadInput` if another process has it.
    """
    try:
        import fcntl  # noqa: PLC0415 - not on every system
    except ImportError:
        return lambda: None
    descriptor = os.open(folder, os.O_RDONLY)
    unlock = weakref.finalize(owner, os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        unlock()
        raise BadInput("--resume", folder, "is still running, in another process") from None
    except OSError:  # a file system without locks
        pass
    return unlock


def cut_event_files(folder: Path, lengths: Mapping[str, int]) -> None:
    """Cut the event files to what they held when the checkpoint was written."""
    for path in event_files(folder):
        try:
            if path.name not in lengths:
                path.unlink()
            elif path.stat().st_size > lengths[path.name]:
                os.truncate(path, lengths[path.name])
        except OSError as error:
            raise WriteError(path, error) from None
