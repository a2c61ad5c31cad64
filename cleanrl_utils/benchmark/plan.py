"""The plan of a sweep: its flags, and one training run for each environment and seed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from cleanrl_utils.benchmark.work import Work
from cleanrl_utils.errors import BadInput, first_line
from cleanrl_utils.flags import Json, check_ranges, parse
from cleanrl_utils.ranges import NotNegative, Positive
from cleanrl_utils.report.power import enough_runs

PLACEHOLDERS = ("env_id", "seed")
PYTHON = ("python", "python3")


@dataclass
class Args:
    """Run a command once for each environment and seed."""

    env_ids: tuple[str, ...] = ()
    """environments; each one is passed to the command as --env-id"""
    command: str = ""
    """script with its flags, such as "python cleanrl/dqn.py --total-timesteps 500000"; {env_id} and {seed} are filled in"""
    num_seeds: Positive = 3
    """seeds per environment"""
    start_seed: NotNegative = 1
    """first seed"""
    workers: Positive = 1
    """runs at the same time on this machine; each gets its share of the cores and one of the GPUs"""
    backend: Literal["local", "slurm"] = "local"
    """local: this machine; slurm: one job array, started from a folder that all nodes share"""
    dry_run: bool = False
    """print what would be run, then stop"""
    wait: bool = True
    """under Slurm, wait until all runs have ended; --no-wait exits after submitting"""

    slurm_partition: str | None = None
    """partition to submit to; default: the cluster's default"""
    slurm_gpus_per_task: NotNegative = 0
    """GPUs per run"""
    slurm_cpus_per_task: Positive = 2
    """cores per run"""
    slurm_time: Positive = 24 * 60
    """minutes that a run may take at a time; after that, a run with --checkpoint-frequency is queued again and continues"""
    slurm_array_parallelism: Positive = 64
    """maximum number of runs at the same time"""
    slurm_signal_delay: NotNegative = 120
    """seconds before the time limit at which runs write their checkpoints"""
    slurm_parameters: Json = field(default_factory=dict)
    """additional parameters for sbatch, such as '{"account": "lab", "mem": "16G"}'"""


def plan(args: Args) -> list[Work]:
    """Return the trainings that the flags ask for. Raises `BadInput`, before anything is run."""
    if not args.env_ids:
        raise BadInput("--env-ids", "(none)", "must name at least one environment")
    check_ranges(args)
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
            raise BadInput("--command", args.command, f"contains {name}, which the sweep sets")
    script = load(Path(launcher[-1]))
    defaults = as_json(script.Args())
    works = []
    for env_id in dict.fromkeys(args.env_ids):
        for seed in range(args.start_seed, args.start_seed + args.num_seeds):
            filled = [word.replace("{env_id}", env_id).replace("{seed}", str(seed)) for word in words]
            filled += ["--env-id", env_id, "--seed", str(seed)]
            flags = parse(script.Args, filled)
            if hasattr(script, "check"):
                script.check(flags)
            works.append(Work(tuple(launcher), tuple(filled), as_json(flags), defaults))
    return works


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words up to and including the script's file, and its flags. Raises `BadInput`."""
    place = next((i for i, word in enumerate(words) if word.endswith(".py")), 0)
    if place == 0:
        raise BadInput("--command", repr(" ".join(words)), 'must look like "python cleanrl/dqn.py --flags"')
    launcher = words[: place + 1]
    if launcher[0] in PYTHON:
        launcher[0] = sys.executable
    elif shutil.which(launcher[0]) is None:
        raise BadInput("--command", launcher[0], "is no program here")
    return launcher, words[place + 1 :]


def load(path: Path) -> ModuleType:
    """Load a script as a module. Raises `BadInput` for a file that is not a script, or that cannot be loaded here."""
    if not path.is_file():
        there = ", ".join(sorted(f"{found}" for found in Path("cleanrl").glob("[a-z]*.py")))
        raise BadInput("--command", path, f"is no file{f'; there are {there}' if there else ''}")
    spec = importlib.util.spec_from_file_location(f"sweep_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything, not only import errors
        raise BadInput("--command", path, f"cannot be loaded here ({first_line(error)})") from None
    if not all(hasattr(getattr(module, "Args", None), name) for name in ("env_id", "exp_name", "seed")):
        raise BadInput("--command", path, "is no training script: it has no Args with exp_name, env_id and seed")
    return module


def as_json(args: Any) -> dict[str, Any]:
    """Return a script's flags as plain JSON."""
    return json.loads(json.dumps(dataclasses.asdict(args)))


def too_few(args: Args) -> str:
    """Return a line if no comparison of these runs with as many others can give a verdict; empty if one can."""
    num_tasks = len(args.env_ids)
    if args.num_seeds >= (enough := enough_runs(num_tasks)) or args.num_seeds == 1:
        return ""
    of = f"{args.num_seeds} seeds of {'one environment' if num_tasks == 1 else f'{num_tasks} environments'}"
    return f"{of} are too few for a verdict: `report compare` needs {enough} seeds of each setting"
