"""Files that are written whole or not at all, folders, and names for both."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cleanrl_utils.errors import WriteError


def file_name(env_id: str) -> str:
    """Return an environment's id as part of a file's or a repository's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", env_id)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` once it is complete: it has a temporary name, is flushed to disk, then renamed.

    Raises `WriteError`; `path` then still holds what was there before.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise WriteError(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk, if the system can, so that a file's new name survives a power cut."""
    with contextlib.suppress(OSError):  # not on Windows, nor on every network's file system
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path, anew: bool = False) -> None:
    """Make a folder and those above it, unless it exists; with `anew` it must not exist. Raises `WriteError`."""
    try:
        folder.mkdir(parents=True, exist_ok=not anew)
    except OSError as error:
        raise WriteError(folder, error) from None
    sync_folder(folder.parent)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    with replacing(path) as file:
        file.write(json_text(content).encode())


def json_text(content: dict[str, Any]) -> str:
    """Return a JSON file's text."""
    return json.dumps(content, indent=2, default=str) + "\n"
