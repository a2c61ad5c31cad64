"""Lines for the user on the console, and a spinner."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class ErrorStream:
    """The error stream for what is shown only. Once it is gone (a closed pipe, a full disk) nothing is shown any more."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def _stream(self) -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # rich puts a stream of its own there for its bars

    def write(self, text: str) -> int:
        """Write, if that is possible."""
        with _going_on_without():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with _going_on_without():
            self._stream.flush()


@contextlib.contextmanager
def _going_on_without() -> Iterator[None]:
    """Where the error stream is gone, put the null device in its place: a run does not end for want of a reader."""
    try:
        yield
    except OSError:
        put_null_device(2)


def put_null_device(descriptor: int) -> None:
    """Let what is written to a file descriptor from now on go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def error_console() -> Console:
    """A console for bars and tables on the error stream."""
    return Console(file=ErrorStream())


def notice(text: str) -> None:
    """Tell the user something on the error stream, where the progress bar is."""
    with _going_on_without():
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - a line meant for the user


def output(text: str) -> None:
    """Write what was asked for on the standard output, where other programs read it."""
    print(text)  # noqa: T201 - the result of a command


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner with `text` and the time it has taken, for what has no progress bar; only in a terminal."""
    console = error_console()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as spinner:
        spinner.add_task(text, total=None)
        yield
