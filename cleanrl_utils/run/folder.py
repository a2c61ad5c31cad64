"""The folder of a run: its name, its lock, and its event files as a checkpoint knows them."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cleanrl_utils.errors import BadInput, WriteError
from cleanrl_utils.files import file_name, sync_folder
from cleanrl_utils.record import event_files
from cleanrl_utils.run.args import RunArgs


def new_folder(args: RunArgs) -> Path:
    """Make the folder of a new run. Raises `WriteError`."""
    name, now = f"{file_name(args.env_id)}__{args.exp_name}__{args.seed}__", int(time.time())
    while True:
        folder = Path("runs", f"{name}{now}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if not folder.is_dir():
                raise WriteError(folder, error) from None
            now += 1  # another run started in the same second
        except OSError as error:
            raise WriteError(folder, error) from None
        else:
            sync_folder(folder.parent)
            return folder


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """If the block fails, remove the folder, which is empty, and then the folder of all runs if that is empty too."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()
        raise


def named(folder: Path) -> Path:
    """Return a path to the folder that ends in its name: of `.`, the absolute path."""
    return folder if folder.name not in ("", "..") else folder.resolve()


def lock(folder: Path, owner: object) -> Callable[[], object]:
    """Lock the folder for this process while `owner` lives, if the system can; returns a function that unlocks it earlier.

    Raises `BadInput` if another process holds the lock.
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
