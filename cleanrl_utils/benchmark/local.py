"""The runs of a sweep on this machine, some at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import submitit

from cleanrl_utils.benchmark.board import Row
from cleanrl_utils.benchmark.plan import Args
from cleanrl_utils.benchmark.work import JOBS, Job
from cleanrl_utils.devices.cores import num_cores
from cleanrl_utils.files import make_folder

POLL = 1.0
"""Seconds between looks at the runs."""
YEARS = 10 * 365 * 24 * 60
"""Minutes that a run may take on this machine: submitit wants a limit."""


def by_workers(args: Args, rows: list[Row], show: Callable[[], None]) -> None:
    """Run on this machine, `workers` at a time. If interrupted, have the runs write their checkpoints and wait for that."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share, devices = max(1, num_cores() // args.workers), gpus()
    make_folder(JOBS)
    executor = submitit.LocalExecutor(JOBS)
    executor.update_parameters(timeout_min=YEARS, stderr_to_stdout=True)
    free, waiting, going = [*range(args.workers)], [*rows], []
    try:
        while waiting or going:
            while free and waiting:
                row = waiting.pop(0)
                row.slot, row.state = free.pop(0), "running"
                env = {"OMP_NUM_THREADS": str(share), "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
                if devices:
                    env["CUDA_VISIBLE_DEVICES"] = devices[row.slot % len(devices)]
                    if args.workers > len(devices):
                        env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX would take the whole GPU for one run
                own = tuple(cores[(row.slot * share + i) % len(cores)] for i in range(share)) if cores else ()
                with ctrl_c_ignored():  # by the started processes: this process tells the runs to stop
                    row.job = executor.submit(Job(row.work, Path.cwd(), own, env))
                going.append(row)
            for row in [row for row in going if row.job.done()]:
                going.remove(row)
                free.append(row.slot)
                row.finish()
            show()
            time.sleep(POLL if going else 0)
    finally:
        for row in going:
            tell(row)
        for row in going:
            while not row.job.done():
                time.sleep(POLL)
                tell(row)  # again: a process that has just started may have missed it
            row.finish("stopped")


def tell(row: Row) -> None:
    """Ask a run on this machine to write its checkpoint and end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(row.job.job_id), signal.SIGTERM)


def gpus() -> list[str]:
    """Return the GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i, line in enumerate(listed.splitlines()) if line.startswith("GPU")]


@contextlib.contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    """Ignore Ctrl-C inside the block, and for good in processes that are started there."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
