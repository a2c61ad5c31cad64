"""Sweeps: a command for each environment and seed, on this machine or by Slurm.

    python -m cleanrl_utils.benchmark --env-ids CartPole-v1 Acrobot-v1 --command "python cleanrl/dqn.py" --workers 2

Runs that are complete are left alone, interrupted ones go on from their checkpoints, so the same command finishes what it
began. See benchmark/slurm.md for clusters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import submitit
from rich.console import Console
from rich.live import Live
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cleanrl_utils import config
from cleanrl_utils.config import BadInput, notice, output
from cleanrl_utils.sweeps import LOGS, Job, Work, last_lines

JOBS = LOGS / "jobs"
"""Files of submitit's."""
PLACEHOLDERS = ("env_id", "seed")
TAIL = 12
"""Lines of a failed run's log to show."""
PYTHON = ("python", "python3")
POLL, SLURM_POLL = 1.0, 5.0
"""Seconds between looks at the runs, and at Slurm's queue."""
YEARS = 10 * 365 * 24 * 60
"""Minutes that a run may take on this machine: submitit wants a limit."""
REQUEUES = 100
"""Time limits that a run may come to."""


@dataclass
class Args:
    """Run a command for each environment and seed."""

    env_ids: tuple[str, ...] = ()
    """environments; each becomes the command's --env-id"""
    command: str = ""
    """script with its flags, as "python cleanrl/dqn.py --total-timesteps 500000"; {env_id} and {seed} stand for the run's"""
    num_seeds: int = 3
    """seeds per environment"""
    start_seed: int = 1
    """the first of them"""
    workers: int = 1
    """runs side by side on this machine; each gets its share of the cores, and one of the GPUs"""
    backend: Literal["local", "slurm"] = "local"
    """local: this machine; slurm: one job array, from a folder that all nodes share"""
    dry_run: bool = False
    """say what would be run, and end"""
    wait: bool = True
    """under Slurm: stay until all have ended; else submit and end"""

    slurm_partition: str | None = None
    """partition to submit to; default: the cluster's"""
    slurm_gpus_per_task: int = 0
    """GPUs per run"""
    slurm_cpus_per_task: int = 2
    """cores per run"""
    slurm_time: int = 24 * 60
    """minutes that a run may take at a time; a run with --checkpoint-frequency is queued again to go on"""
    slurm_array_parallelism: int = 64
    """runs at the same time, at most"""
    slurm_signal_delay: int = 120
    """seconds before the time limit at which runs write their checkpoints"""
    slurm_parameters: config.Json = field(default_factory=dict)
    """more of sbatch's parameters, as '{"account": "lab", "mem": "16G"}'"""


def plan(args: Args) -> list[Work]:
    """The trainings that the flags ask for. Raises `BadInput`, before anything is run."""
    if not args.env_ids:
        raise BadInput("--env-ids", "(none)", "must name at least one environment")
    config.require_positive(args, "num_seeds", "workers", "slurm_cpus_per_task", "slurm_time", "slurm_array_parallelism")
    config.require_not_negative(args, "start_seed", "slurm_gpus_per_task", "slurm_signal_delay")
    try:
        words = shlex.split(args.command)
    except ValueError as error:
        raise BadInput("--command", repr(args.command), f"cannot be split into words ({error})") from None
    if args.slurm_signal_delay >= args.slurm_time * 60:
        allowed = f"must be below --slurm-time, {args.slurm_time} minutes, or no run would get anywhere"
        raise BadInput("--slurm-signal-delay", args.slurm_signal_delay, allowed)
    unknown = set(re.findall(r"\{([\w-]+)\}", args.command)) - set(PLACEHOLDERS)
    if unknown:
        raise BadInput("--command", args.command, f"has {{{min(unknown)}}}; there are {{env_id}} and {{seed}}")
    launcher, words = split(words)
    for name in ("--env-id", "--seed", "--resume"):
        if any(word.split("=")[0].replace("_", "-") == name for word in words):
            raise BadInput("--command", args.command, f"holds {name}, which is the sweep's")
    script = load(Path(launcher[-1]))
    defaults = as_json(script.Args())
    works = []
    for env_id in dict.fromkeys(args.env_ids):
        for seed in range(args.start_seed, args.start_seed + args.num_seeds):
            filled = [word.replace("{env_id}", env_id).replace("{seed}", str(seed)) for word in words]
            filled += ["--env-id", env_id, "--seed", str(seed)]
            flags = config.parse(script.Args, filled)
            if hasattr(script, "check"):
                script.check(flags)
            works.append(Work(tuple(launcher), tuple(filled), as_json(flags), defaults))
    return works


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """The words up to and with the script's file, and its flags. Raises `BadInput`."""
    place = next((i for i, word in enumerate(words) if word.endswith(".py")), 0)
    if place == 0:
        raise BadInput("--command", repr(" ".join(words)), 'must be as "python cleanrl/dqn.py --flags"')
    launcher = words[: place + 1]
    if launcher[0] in PYTHON:
        launcher[0] = sys.executable
    elif shutil.which(launcher[0]) is None:
        raise BadInput("--command", launcher[0], "is no program here")
    return launcher, words[place + 1 :]


def load(path: Path) -> ModuleType:
    """A script as a module. Raises `BadInput` for a file that is none, or that needs what is not installed."""
    if not path.is_file():
        there = ", ".join(sorted(f"{found}" for found in Path("cleanrl").glob("[a-z]*.py")))
        raise BadInput("--command", path, f"is no file{f'; there are {there}' if there else ''}")
    spec = importlib.util.spec_from_file_location(f"sweep_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # what a user's file may raise, not only what it cannot import
        raise BadInput("--command", path, f"cannot be loaded here ({config.first_line(error)})") from None
    if not {"env_id", "exp_name", "seed"} <= vars(getattr(module, "Args", object)).keys():
        raise BadInput("--command", path, "is no training script: it has no Args with exp_name, env_id and seed")
    return module


def as_json(args: Any) -> dict[str, Any]:
    """A script's flags as config.json holds them."""
    return json.loads(json.dumps(dataclasses.asdict(args)))


@dataclass
class Row:
    """What the table shows of a training."""

    work: Work
    state: str = "waiting"
    slot: int = 0
    """which of this machine's workers has it"""
    job: Any = None
    """submitit's handle of a worker's process, or the id of a job of Slurm's"""
    events: EventAccumulator | None = None

    @property
    def name(self) -> str:
        """Environment and seed."""
        return f"{self.work.flags['env_id']} seed {self.work.flags['seed']}"

    def finish(self, otherwise: str = "failed") -> None:
        """Take the state from the run folder, now that the process has ended."""
        found = self.work.run()
        self.state = "complete" if found is not None and found[1].get("status") == "complete" else otherwise

    def progress(self) -> tuple[str, str, str]:
        """Steps done, their rate and the last return, as far as the run has logged them."""
        found = self.work.run()
        if found is None:
            return "", "", ""
        if self.events is None or self.events.path != str(found[0]):
            self.events = EventAccumulator(str(found[0]), size_guidance={"scalars": 1})
        with contextlib.suppress(Exception):  # half an event, most likely: the rest comes later
            self.events.Reload()
        last = {tag: self.events.Scalars(tag)[-1] for tag in self.events.Tags()["scalars"]}
        rate = last.get("charts/SPS")
        score = next((last[tag] for tag in ("eval/episodic_return", "charts/episodic_return") if tag in last), None)
        steps = max((event.step for event in last.values()), default=0)
        return f"{steps:,}", f"{rate.value:,.0f}" if rate else "", f"{score.value:.4g}" if score else ""


class Board:
    """The table of a sweep: live in a terminal, else a line for each change."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows, self.shown = rows, [row.state for row in rows]
        console = Console(stderr=True)
        self.live = Live(console=console, auto_refresh=False, vertical_overflow="visible") if console.is_terminal else None

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.show()
        if self.live:
            self.live.stop()

    def show(self) -> None:
        """Show the states as they are now."""
        if self.live:
            table = Table("run", "state", "steps", "steps/s", "last return")
            for row in self.rows:
                table.add_row(row.name, row.state, *(row.progress() if row.job is not None else ()))
            self.live.update(table, refresh=True)
            return
        for i, row in enumerate(self.rows):
            if self.shown[i] != row.state:
                self.shown[i] = row.state
                notice(f"{row.name}: {row.state}")


def by_workers(args: Args, rows: list[Row], show: Callable[[], None]) -> None:
    """Run on this machine, `workers` at a time. Interrupted, it has the runs write their checkpoints and waits for that."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share, devices = max(1, len(cores) // args.workers), gpus()
    JOBS.mkdir(parents=True, exist_ok=True)
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
                with ctrl_c_ignored():  # by what is started: it is this process that tells the runs to stop
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
                tell(row)  # again: a process that has just begun may not have heard
            row.finish("stopped")


def tell(row: Row) -> None:
    """Ask a run on this machine to write its checkpoint and end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(row.job.job_id), signal.SIGTERM)


def gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i, line in enumerate(listed.splitlines()) if line.startswith("GPU")]


@contextlib.contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    """Ctrl-C does nothing here, nor ever in a process that is started here."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def by_slurm(args: Args, rows: list[Row], show: Callable[[], None]) -> None:
    """Submit one job array, but for runs that are queued already, and wait for it, unless told not to.

    Raises `BadInput` where there is no Slurm, or where it refuses.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise BadInput("--backend", "slurm", "finds no Slurm here: no sbatch and srun; `--backend local` needs none")
    queue = queued()
    if queue is None:
        raise BadInput("--backend", "slurm", "gets no answer from Slurm's controller: look at `squeue`")
    for row in rows:
        path = row.work.log.with_suffix(".slurm")
        if path.exists() and path.read_text(encoding="utf-8") in queue:
            row.job = path.read_text(encoding="utf-8")
    JOBS.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(JOBS, max_num_timeout=REQUEUES)
    executor.update_parameters(
        job_name="cleanrl",
        partition=args.slurm_partition,
        time=args.slurm_time,
        cpus_per_task=args.slurm_cpus_per_task,
        gpus_per_node=args.slurm_gpus_per_task or None,  # a run is one task on one node
        array_parallelism=args.slurm_array_parallelism,
        signal_delay_s=args.slurm_signal_delay,
        stderr_to_stdout=True,
        srun_args=[f"--cpus-per-task={args.slurm_cpus_per_task}"],  # since 22.05 it does not take sbatch's
        additional_parameters={"requeue": True} | args.slurm_parameters,
    )
    env = {"OMP_NUM_THREADS": str(args.slurm_cpus_per_task)}
    new = [row for row in rows if row.job is None]
    try:
        with executor.batch() if new else contextlib.nullcontext():  # one array
            jobs = [executor.submit(Job(row.work, Path.cwd(), env=env)) for row in new]
    except submitit.core.utils.FailedJobError as error:
        raise BadInput("--backend", "slurm", f"sbatch refuses: {str(error).strip().splitlines()[-1]}") from None
    for row, job in zip(new, jobs, strict=True):
        row.job = job.job_id
        row.work.log.with_suffix(".slurm").write_text(job.job_id, encoding="utf-8")
    notice(f"Slurm has {', '.join(sorted({row.job.split('_')[0] for row in rows}))}; the same command looks after it again")
    going, away = rows if args.wait else [], False
    while going:
        queue = queued()
        if (queue is None) != away:
            away = queue is None
            notice("Slurm's controller gives no answer; waiting for it" if away else "Slurm's controller answers again")
        for row in going if queue is not None else []:
            row.state = "waiting" if queue.get(row.job) in ("PENDING", "CONFIGURING") else "running"
            if row.job not in queue:
                row.finish()
        going = [row for row in going if row.state in ("waiting", "running")]
        show()
        time.sleep(SLURM_POLL if going else 0)


def queued() -> dict[str, str] | None:
    """The state of each of the user's jobs that Slurm has not done with, by id; None while its controller is away."""
    squeue = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]
    asked = subprocess.run(squeue, capture_output=True, text=True, check=False)
    return None if asked.returncode else dict(line.split() for line in asked.stdout.splitlines())


def report(rows: list[Row]) -> int:
    """Say how the sweep ended, with the ends of the logs of failed runs; returns the exit status."""
    for row in rows:
        if not row.state.startswith("complete"):
            notice(f"\n{row.name} {row.state}; the end of {row.work.log}:")
            for line in last_lines(row.work.log, TAIL):
                notice(f"    {line}")
    states = [row.state.split(" (")[0] for row in rows]
    notice(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    return int(any(not state.startswith("complete") for state in states))


def main(args: Args) -> None:
    """Run the sweep. Ends the process with status 1 where a run has not come to its end."""
    rows = [Row(work) for work in plan(args)]
    for row in rows:
        words, _ = row.work.next_command()
        if not words:
            row.state = f"complete before ({row.work.run()[0]})"
            notice(f"{row.name}: {row.state}")
        elif args.dry_run:
            output(shlex.join(words))
    if args.dry_run:
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    todo = [row for row in rows if row.state == "waiting"]
    if todo:
        with Board(rows) as board:
            (by_slurm if args.backend == "slurm" else by_workers)(args, todo, board.show)
    if (args.wait or args.backend == "local") and report(rows):
        sys.exit(1)


if __name__ == "__main__":
    config.run(main, Args)
