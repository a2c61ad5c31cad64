"""A training that learns nothing, fast: what sweeps and reports are tried with. It stops and resumes as ours do."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from cleanrl_utils import flags
from cleanrl_utils.devices.cores import given_threads
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.ranges import Positive
from cleanrl_utils.run.args import TrainingArgs
from cleanrl_utils.run.checkpoint import Checkpoints
from cleanrl_utils.run.run import Run


@dataclass
class Args(TrainingArgs):
    """Flags of the training."""

    exp_name: str = "toy"
    wandb_project_name: str = "toys"
    checkpoint_frequency: int | None = 10
    env_id: str = "CartPole-v1"
    num_envs: int = 1
    total_timesteps: Positive = 30
    level: float = 0.0
    """of the returns, which rise by one a step besides"""
    pause: float = 0.0
    """seconds per step"""
    slow_seed: int = 0
    """only this seed pauses, and only the first time"""
    fail_seed: int = 0
    """this one's loss is not finite at step 15"""
    die_seed: int = 0
    """this one is killed at step 25, the first time"""


def check(args: Args) -> None:
    """Raise `BadInput` for a flag out of range."""
    flags.check_ranges(args)


@dataclass
class State:
    """How far it has counted."""

    step: int = 0


def main(args: Args) -> None:
    """Count."""
    check(args)
    run, state = Run(args, Checkpoints(args)), State()
    protocol = {"threads": given_threads(args), "setting": os.environ.get("TOY_SETTING")}
    with run.started(protocol, state):
        seen = {"threads": given_threads(args), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
        seen["cores"] = sorted(os.sched_getaffinity(0))
        Path(run.folder, "seen.json").write_text(json.dumps(seen))
        run.begin("counting", args.total_timesteps, state)
        first = state.step
        while state.step < args.total_timesteps:
            if not args.slow_seed or (args.seed == args.slow_seed and not first):
                time.sleep(args.pause)
            if args.seed == args.fail_seed and state.step == 15:
                raise FloatingPointError("a loss was not finite")
            if args.seed == args.die_seed and state.step == 25 and not first:
                os.kill(os.getpid(), signal.SIGKILL)
            returned = args.level + state.step + args.seed / 10
            state.step += 1
            run.advance(state.step)
            run.scalars({"charts/episodic_return": returned, "charts/SPS": 7.0}, state.step)
            if run.due(state.step):
                run.save(state)
        run.finish({"steps": args.total_timesteps}, {"agent": Evaluation([args.level] * 2, [1, 1], 0)})


if __name__ == "__main__":
    flags.run(main, Args)
