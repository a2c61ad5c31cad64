"""The runs of a sweep as one job array of Slurm."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import submitit

from cleanrl_utils.benchmark.board import Row
from cleanrl_utils.benchmark.plan import Args
from cleanrl_utils.benchmark.work import JOBS, Job
from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput
from cleanrl_utils.files import make_folder

POLL = 5.0
"""Seconds between looks at the queue."""
REQUEUES = 100
"""How often a run may reach its time limit."""


def require_slurm() -> None:
    """Raise `BadInput` if there is no Slurm."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise BadInput("--backend", "slurm", "finds no Slurm here: no sbatch and srun; `--backend local` needs none")


def by_slurm(args: Args, rows: list[Row], show: Callable[[], None]) -> None:
    """Submit one job array of the runs that are not queued yet, and wait for it, unless --no-wait is given.

    Raises `BadInput` if Slurm refuses.
    """
    queue = queued()
    if queue is None:
        raise BadInput("--backend", "slurm", "gets no answer from Slurm's controller: look at `squeue`")
    for row in rows:
        path = row.work.log.with_suffix(".slurm")
        if path.exists() and path.read_text(encoding="utf-8") in queue:
            row.job = path.read_text(encoding="utf-8")
    make_folder(JOBS)
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
    notice(f"Slurm has {', '.join(sorted({row.job.split('_')[0] for row in rows}))}; the same command follows it again")
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
        time.sleep(POLL if going else 0)


def queued() -> dict[str, str] | None:
    """Return the state of each unfinished job of the user, by id; None while Slurm's controller does not answer."""
    squeue = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]
    asked = subprocess.run(squeue, capture_output=True, text=True, check=False)
    return None if asked.returncode else dict(line.split() for line in asked.stdout.splitlines())
