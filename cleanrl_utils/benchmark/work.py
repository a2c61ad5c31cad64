"""One training of a sweep: found again among the run folders, and started or resumed in a separate process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from submitit.helpers import Checkpointable, DelayedSubmission

from cleanrl_utils.errors import BadInput
from cleanrl_utils.files import file_name
from cleanrl_utils.record import read_run

LOGS = Path("runs/sweeps")
"""Where a sweep keeps the output of its runs, and the files of its scheduler."""
JOBS = LOGS / "jobs"
"""Submitit's files."""
POLL = 0.2
"""Seconds between looks at a process."""
NOT_OF_A_RUN = ("config", "resume", "resume_anyway", "threads")
"""Flags that say where other flags come from, or how a machine is used."""


@dataclass(frozen=True)
class Work:
    """One training: a script with its flags. Two trainings are the same if all their flags are, given or by default."""

    launcher: tuple[str, ...]
    """words up to and with the script's file, as (python, cleanrl/dqn.py)"""
    words: tuple[str, ...]
    """flags as they are given"""
    flags: dict[str, Any]
    """every flag of the script by field, as JSON has them"""
    defaults: dict[str, Any]
    """the script's own, for runs from before a flag was added"""

    @property
    def script(self) -> str:
        """The script's name, as config.json has it."""
        return Path(self.launcher[-1]).stem

    @property
    def log(self) -> Path:
        """Where the output of the training goes, each time that it is started."""
        content = json.dumps([self.script, deciding(self.flags)], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        name = f"{file_name(self.flags['env_id'])}__{self.flags['exp_name']}__{self.flags['seed']}__{digest}"
        return LOGS / f"{name}.log"

    def runs(self) -> list[tuple[Path, dict[str, Any]]]:
        """Return the run folders of this training with their config.json, oldest first."""
        pattern = f"{file_name(self.flags['env_id'])}__{self.flags['exp_name']}__{self.flags['seed']}__*"
        found = []
        for path in sorted(Path("runs").glob(f"{pattern}/config.json")):
            with contextlib.suppress(BadInput):  # a damaged one does not count
                run = read_run(path, "run", path.parent)
                flags = {name: run["flags"].get(name, default) for name, default in self.defaults.items()}
                if run["script"] == self.script and deciding(flags) == deciding(self.flags):
                    found.append((path.parent, run))
        return found

    def run(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the training's run folder with its config.json: the complete one if there is one, else the newest."""
        runs = self.runs()
        return next((run for run in runs if run[1].get("status") == "complete"), runs[-1] if runs else None)

    def next_command(self) -> list[str]:
        """Return what to do next: the words of a command, or no words if the training is complete."""
        found = self.run()
        if found is not None and found[1].get("status") == "complete":
            return []
        if found is not None and checkpoints(found[0]):
            return [*self.launcher, "--resume", str(found[0])]
        return [*self.launcher, *self.words]


def deciding(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that stay the same if the training is configured by a file or resumed."""
    return {name: value for name, value in flags.items() if name not in NOT_OF_A_RUN}


def checkpoints(run: Path) -> list[Path]:
    """Return a run's checkpoints, oldest first."""
    return sorted(run.glob("checkpoints/[0-9]*-*-*.zip"))


class Job(Checkpointable):
    """What a worker or a cluster's node does with a `Work`; repeated after a preemption, it continues the same training.

    SIGTERM is passed on, so that the training writes its checkpoint. So is the signal that Slurm sends before a time limit
    or a preemption (`--signal`); then the job is queued again.
    """

    def __init__(
        self, work: Work, folder: Path, cores: tuple[int, ...] = (), env: dict[str, str | None] | None = None
    ) -> None:
        """`folder`: where to run; `cores`: the only processor cores to use; `env`: variables to set, or to unset (None)."""
        self.work, self.folder, self.cores, self.env = work, folder, cores, env or {}

    def __call__(self) -> int:
        """Train; returns the exit status. After SIGTERM this process ends with status 143."""
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: asks `checkpoint` what to do, and does it
        received: list[int] = []
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, lambda number, _: received.append(number))
        os.chdir(self.folder)
        if self.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)
        status = 0
        with self.work.log.open("ab") as log:
            while not received and not locked(log):  # another sweep is running it
                time.sleep(POLL)
            words = self.work.next_command()
            if words and not received:
                log.write(f"$ {shlex.join(words)}\n".encode())
                log.flush()
                status = self._train(words, log, received)
        if signal.SIGUSR2 in received:
            requeue(signal.SIGUSR2, None)
        if received:
            sys.exit(128 + signal.SIGTERM)
        return status

    def _train(self, words: list[str], log: BinaryIO, received: list[int]) -> int:
        """Run the command in a separate session, so that we decide which signals reach it, and how often."""
        env = {name: value for name, value in (os.environ | self.env).items() if value is not None}
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": env}
        process = subprocess.Popen(words, start_new_session=True, preexec_fn=in_our_wake, **streams)
        while process.poll() is None and not received:
            time.sleep(POLL)
        if received:
            process.terminate()
        return process.wait()

    def checkpoint(self) -> DelayedSubmission | None:
        """Return what to do when the job's turn comes again; None if training would start over each time."""
        if self.work.flags.get("checkpoint_frequency", 0) != 0:  # None: by time
            return DelayedSubmission(self)
        with self.work.log.open("a", encoding="utf-8") as log:
            log.write("stopped by the scheduler: --checkpoint-frequency would let it go on in another job\n")
        return None


def locked(file: BinaryIO) -> bool:
    """Lock a file for this process until it is closed; returns False only if another process has it locked."""
    try:
        import fcntl  # noqa: PLC0415 - not on every system

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


def in_our_wake() -> None:
    """Call this in a new process, so that it ends when the process that started it ends, however that ends (Linux)."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # meant for the job
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes  # noqa: PLC0415 - in the new process only

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log since its last command, without what a progress bar has overwritten."""
    if not path.exists():
        return []
    text = path.read_bytes()[-20_000:].decode(errors="replace")
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line.split("\r")[-1]).rstrip() for line in text.splitlines()]
    start = max((i for i, line in enumerate(lines) if line.startswith("$ ")), default=-1) + 1
    return [line for line in lines[start:] if line][-count:]
