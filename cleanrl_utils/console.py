"""Lines for the user on the console, and a spinner."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def notice(text: str) -> None:
    """Tell the user something on the error stream, where the progress bar is."""
    print(text, file=sys.stderr)  # noqa: T201 - a line meant for the user


def output(text: str) -> None:
    """Write what was asked for on the standard output, where other programs read it."""
    print(text)  # noqa: T201 - the result of a command


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner with `text` and the time it has taken, for what has no progress bar; only in a terminal."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as spinner:
        spinner.add_task(text, total=None)
        yield
