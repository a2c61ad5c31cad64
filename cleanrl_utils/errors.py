"""The errors that a user sees, each in one line."""

from __future__ import annotations

from pathlib import Path


class BadInput(Exception):
    """A user's mistake: one line that names the flag, its value and what is allowed."""

    def __init__(self, flag: str, value: object, allowed: str) -> None:
        super().__init__(" ".join(f"{flag} {value}: {allowed}".split()))


class CannotGoOn(Exception):
    """A run cannot go on, and not because of a mistake by the user: another emulator, for example."""


class WriteError(OSError):
    """A file could not be written: most often because the disk is full."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or first_line(error), str(path))

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written ({self.strerror})"


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type if there is no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def missing(error: ImportError, extras: str) -> str:
    """Say what a failed import lacks: a package, with how to get it, or a system library that a package needs."""
    if isinstance(error, ModuleNotFoundError):
        return f"needs `{error.name}`: pip install -e '.[{extras}]'"
    return f"needs what this system lacks: {first_line(error)}"
