"""Runs in processes of their own, that can be killed; forked from one that has imported the scripts, so they start fast."""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import jax
import torch._dynamo  # noqa: F401 - optimizers import it, for a second: have it before the fork

from cleanrl import (  # noqa: F401
    dqn,
    dqn_atari,
    dqn_atari_jax,
    dqn_jax,
    qdagger_dqn_atari_impalacnn,
    qdagger_dqn_atari_jax_impalacnn,
)
from cleanrl_utils.flags import run as run_script
from cleanrl_utils.run import archive, sinks
from cleanrl_utils.run import run as run_

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.children"])

Flags = tuple[str, ...] | list[str]


def run(script: Any, *flags: str, before: Callable[..., None] | None = None, args: tuple = ()) -> tuple[int, str]:
    """Run a script's main with flags, here; returns its status (-9: killed) and what it wrote on the error stream.

    `before(script, *args)`, a function at the top of a module, is called in the new process first.
    """
    settings = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    reader, writer = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_child, args=(script.__name__, flags, os.getcwd(), writer, settings, before, args))
    process.start()
    writer.close()
    errors = b""
    while reader.poll(120):
        if not (read := os.read(reader.fileno(), 1 << 16)):
            break
        errors += read
    else:
        process.kill()
        raise TimeoutError(f"{script.__name__} {flags} hangs: {errors.decode()}")
    process.join()
    return process.exitcode, errors.decode()


def _child(name: str, flags: Flags, folder: str, errors: Connection, settings: tuple, before: Any, args: tuple) -> None:
    os.chdir(folder)
    for standard in (1, 2):
        os.dup2(errors.fileno(), standard)
    errors.close()
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.config.update("jax_compilation_cache_dir", settings[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", settings[1])
    script = importlib.import_module(name)
    for period in ("LOG_FREQUENCY", "OFFLINE_LOG_FREQUENCY"):  # so that short runs log their losses too
        if hasattr(script, period):
            setattr(script, period, 30)
    if before is not None:
        before(script, *args)
    run_script(script.main, script.Args, list(flags))


# --- What `before` may be ---


def at_tick(script: Any, place: str, number: int, action: Callable[[], None]) -> None:
    """Do something when a place is come to for the `number`-th time.

    A phase: the end of a step of it. `evaluation`: a step of an evaluation. `between`: a loop is about to begin. `writing`:
    a piece of an array is about to be written. `logging`: half of an event has been. `flushing`: a file or a folder is about
    to be flushed to the disk, before and after it gets its name.
    """
    left = number

    def tick(here: str) -> None:
        nonlocal left
        left -= here == place
        if left == 0:
            left = -1
            action()

    due, begin, pieces, fsync, log = run_.Run.due, run_.Run.begin, archive.pieces, os.fsync, sinks.RecordWriter.write
    evaluate, running = getattr(script, "evaluate", None), False

    def watched_due(self: run_.Run, step: int) -> bool:
        tick(self.checkpoints.latest[0] if self.checkpoints.latest else "training")
        return due(self, step)

    def watched_begin(self: run_.Run, *about: Any, **more: Any) -> None:
        nonlocal running
        running = True  # the teacher's evaluation is over, and there is a folder
        tick("between")
        begin(self, *about, **more)

    def watched_pieces(array: Any) -> Any:
        for piece in pieces(array):
            tick("writing")
            yield piece

    def watched_fsync(descriptor: int) -> None:
        tick("flushing")
        fsync(descriptor)

    def watched_log(self: sinks.RecordWriter, data: bytes) -> None:
        log(whole := sinks.RecordWriter(io.BytesIO()), data)
        content = whole._writer.getvalue()
        self._writer.write(content[: len(content) // 2])
        self._writer.flush()
        tick("logging")
        self._writer.write(content[len(content) // 2 :])

    def watched_evaluate(act: Callable[[Any], Any], *about: Any) -> Any:
        def watched(obs: Any) -> Any:
            if running:
                tick("evaluation")
            return act(obs)

        return evaluate(watched, *about)

    run_.Run.due, run_.Run.begin, archive.pieces = watched_due, watched_begin, watched_pieces
    os.fsync, sinks.RecordWriter.write, script.evaluate = watched_fsync, watched_log, watched_evaluate


def die(script: Any, place: str, number: int) -> None:
    """Be killed there, as by a power cut."""
    receive(script, place, number, signal.SIGKILL)


def receive(script: Any, place: str, number: int, sent: int) -> None:
    """Receive a signal there."""
    at_tick(script, place, number, lambda: os.kill(os.getpid(), sent))


def fill_disk(script: Any, place: str, number: int, size: int) -> None:
    """Let no file grow beyond `size` bytes from there on."""
    import resource

    at_tick(script, place, number, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
