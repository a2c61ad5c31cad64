"""Flags that all runs share: where a run reports and what it keeps. Each script adds its own in `Args`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cleanrl_utils.flags import flag
from cleanrl_utils.ranges import FileName, NotNegative, Positive, Seed, Threads


@dataclass
class RunArgs:
    """Flags of every script."""

    exp_name: FileName = "experiment"
    """name of this experiment, in the run folder and in the model file"""
    seed: Seed = 1
    """seed of the run: environments, exploration, sampling, weights"""
    track: bool = False
    """log to the tracker too"""
    tracker: Literal["wandb", "trackio"] = "wandb"
    """where --track logs: Weights & Biases, where WANDB_MODE=offline needs no account, or Trackio, which writes to this
    machine and needs the extra `trackio`"""
    wandb_project_name: str = "cleanRL"
    """project of the tracker"""
    wandb_entity: str | None = None
    """team on Weights & Biases"""
    capture_video: bool = False
    """at each evaluation, film a game or an episode to videos/{run_name}; needs the extra `video`"""
    save_model: bool = False
    """write {exp_name}.cleanrl_model to the run folder; with eval-frequency, also write {exp_name}-best.cleanrl_model at
    each best evaluation"""
    config: str | None = None
    """YAML file of flags; flags on the command line override it"""

    if TYPE_CHECKING:  # each script defines it, among the flags of its environment
        env_id: str


@dataclass
class TrainingArgs(RunArgs):
    """Flags of the scripts that train networks: their models can be uploaded, their runs resumed."""

    threads: Threads | None = None
    """CPU threads for computation; default: OMP_NUM_THREADS if set, else the number that is fastest when the run begins
    (PyTorch) or one per core (JAX)"""
    upload_model: bool = False
    """push models, flags and scores to {hf_entity}/{env_id}-{exp_name}-seed{seed} on the Hugging Face Hub"""
    hf_entity: str = ""
    """user or organization on the Hugging Face Hub"""
    checkpoint_frequency: NotNegative | None = None
    """environment steps (in an offline phase: updates) between checkpoints; 0 turns them off; None: every 10 minutes"""
    keep_checkpoint: bool = False
    """keep the last checkpoint of a complete run, with its replay buffer, environments and optimizer"""
    resume: str | None = None
    """run folder to resume from its latest checkpoint, with all flags of that run"""
    resume_anyway: bool = False
    """resume even if the number of threads, the versions or the hardware changed, although the weights may then differ"""
    schedule_timesteps: Positive | None = None
    """length of the exploration and learning rate schedules, in environment steps; default: total-timesteps. A run resumed
    with more total-timesteps keeps its original length"""

    if TYPE_CHECKING:  # each script defines it, among the flags of its algorithm
        total_timesteps: int

    @property
    def schedule_length(self) -> int:
        """Steps over which exploration and learning rate reach their final values."""
        return self.schedule_timesteps or self.total_timesteps


def empty_phases(args: RunArgs) -> list[str]:
    """Return a line for each pair of flags that leave nothing to do: no update, no target sync, or no checkpoint to keep."""
    lines = []
    if getattr(args, "keep_checkpoint", False) and args.checkpoint_frequency == 0:
        lines.append("--keep-checkpoint keeps nothing, since --checkpoint-frequency is 0")
    if hasattr(args, "learning_starts"):
        num_envs, period, total = args.num_envs, args.train_frequency, args.total_timesteps
        first, end = (-(-steps // num_envs) * num_envs for steps in (args.learning_starts, total))  # whole vector steps
        last = -(-(end // period * period) // num_envs)  # the vector step with the last update
        rows = last - hasattr(args, "buffer_device")  # the Atari scripts learn before they store
        if end // period <= first // period or rows <= args.n_step:
            reasons = f"--learning-starts {args.learning_starts:,}, --train-frequency {period:,}, --n-step {args.n_step}"
            online, left = "", "they begin"
            if hasattr(args, "offline_steps"):
                online, left = "online ", "the offline phase leaves them"
            where = f"{online}in --total-timesteps {total:,} ({reasons})"
            lines.append(f"nothing will be learned {where}: the weights stay as {left}")
        elif (sync := args.target_network_frequency) and first // sync == end // sync > 0:
            numbers = f"--target-network-frequency {sync:,} never comes due after --learning-starts {args.learning_starts:,}"
            lines.append(f"{numbers}: the target network keeps its first weights")
    for period, steps in (
        ("target_network_frequency", "total_timesteps"),
        ("offline_target_network_frequency", "offline_steps"),
    ):
        if 0 < getattr(args, steps, 0) < getattr(args, period, 0):
            numbers = f"{flag(period)} {getattr(args, period):,} is more than {flag(steps)} {getattr(args, steps):,}"
            lines.append(f"{numbers}: the target network keeps its first weights")
    return lines
