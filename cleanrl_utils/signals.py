"""The signals that stop a run."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def signals_waiting() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C wait until the block is over, here and in the processes and threads that it starts.

    Does nothing outside the main thread, where signals are left alone.
    """
    received: list[int] = []
    try:
        handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in SIGNALS}
    except ValueError:  # not in the main thread
        yield
        return
    has_masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if has_masks else None
    try:
        yield
    finally:
        if has_masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
