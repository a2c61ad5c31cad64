"""Lines for the user on the console, and a spinner."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from cleanrl_utils.errors import WriteError

SHOW_AFTER = 2.0
"""Seconds after which work that has no progress bar is shown."""
SILENCE, LONGEST_SILENCE = 10.0, 60.0
"""Seconds between lines if there is no terminal: at first, and from ten minutes on."""


class ErrorStream:
    """A stream that may fail (a closed pipe, a full disk): then nothing more is shown, and the run goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if that is possible."""
        with self._going_on_without():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with self._going_on_without():
            self._stream.flush()

    @contextlib.contextmanager
    def _going_on_without(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            put_null_device(self._stream.fileno())


def guard_error_stream() -> None:
    """Let the error stream fail without an error in whatever writes to it: our lines, bars, libraries' warnings."""
    if sys.stderr is None:  # closed by whatever started the program
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    if not isinstance(sys.stderr, ErrorStream):
        sys.stderr = ErrorStream(sys.stderr)


def put_null_device(descriptor: int) -> None:
    """Discard everything that is written to a file descriptor from now on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """Show each warning of a library once, in one line, without colours: in a file they would be noise."""
    shown, usual = set(), warnings.formatwarning

    def line(message: Warning | str, _category: type[Warning], filename: str, lineno: int, *_: Any) -> str:
        text = " ".join(Text.from_ansi(str(message)).plain.split())
        text = re.sub("^(WARN|ERROR): ", "", text)  # of gymnasium
        again = text in shown
        shown.add(text)
        return "" if again else f"warning: {text} ({Path(filename).name}:{lineno})\n"

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = usual


def error_console() -> Console:
    """A console for bars and tables on the error stream."""
    return Console(stderr=True)


def notice(text: str) -> None:
    """Tell the user something on the error stream, where the progress bar is."""
    sys.stderr.write(f"{text}\n")  # in one piece: another thread may be writing too
    sys.stderr.flush()


def output(text: str) -> None:
    """Write what was asked for on the standard output, where other programs read it."""
    with guarded_output():
        print(text, flush=True)  # noqa: T201 - the result of a command


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """If the standard output's reader has gone, as in `| head`, end the process with status 141. Raises `WriteError`."""
    try:
        yield
    except OSError as error:
        put_null_device(sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(141)  # as SIGPIPE would; Windows does not have it
        raise WriteError(Path("standard output"), error) from None


def keep_saying(say: Callable[[], None], ended: threading.Event) -> None:
    """Start a thread that calls `say` every now and then until `ended`: the work itself may be busy for minutes."""
    started = time.monotonic()

    def repeat() -> None:
        while not ended.wait(min(max(SILENCE, (time.monotonic() - started) / 10), LONGEST_SILENCE)):
            say()

    threading.Thread(target=repeat, daemon=True).start()


@contextlib.contextmanager
def working(text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a spinner with `text` and the time so far; if `total` is given, also a bar, which the yielded function advances.

    Without a terminal, print `text` as a line if the work takes longer than `SHOW_AFTER`, and repeat it now and then with
    the time.
    """
    console = error_console()
    columns = SpinnerColumn(), TextColumn("{task.description}"), *([BarColumn()] if total else []), TimeElapsedColumn()
    started, ended = time.monotonic(), threading.Event()

    def show() -> None:
        notice(text)
        keep_saying(lambda: notice(f"{text}: {time.monotonic() - started:.0f} s"), ended)

    line = threading.Timer(SHOW_AFTER, show)
    if not console.is_terminal:
        line.start()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as spinner:
            task = spinner.add_task(text, total=total)
            yield functools.partial(spinner.advance, task)
    finally:
        line.cancel()
        ended.set()
