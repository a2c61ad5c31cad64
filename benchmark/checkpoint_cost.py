r"""What a checkpoint of a full replay buffer costs: seconds, memory, bytes on the disk.

    python benchmark/checkpoint_cost.py --env-id PongNoFrameskip-v4 --transitions 1000000

Fills a buffer of `cleanrl/dqn_atari.py` with games of a random player, writes it, reads it back, compares. Linux only.
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from cleanrl import dqn_atari
from cleanrl_utils.files import replacing
from cleanrl_utils.record import commit, hardware
from cleanrl_utils.run.archive import Archive, write
from cleanrl_utils.seeds import TRAINING


@dataclass
class Args:
    """Measure the cost of a checkpoint."""

    env_id: str = "PongNoFrameskip-v4"
    """the game whose frames are compressed"""
    transitions: int = 1_000_000
    """size of the buffer"""
    num_envs: int = 8
    """games side by side"""


def full_buffer(args: Args) -> dqn_atari.ReplayBuffer:
    """A buffer that is full of a random player's games."""
    rb = dqn_atari.ReplayBuffer(args.transitions, args.num_envs, 1, 0.99, torch.device("cpu"))
    games, rng = dqn_atari.Games(dqn_atari.Args(env_id=args.env_id), TRAINING, args.num_envs), np.random.default_rng(1)
    for _ in range(rb.num_rows):
        obs = torch.as_tensor(games.obs)
        actions = games.send(rng.integers(games.num_actions, size=args.num_envs))
        step = games.recv()
        rb.add(obs, actions, step._replace(rewards=np.sign(step.rewards)))
    games.close()
    return rb


def peak() -> float:
    """Peak memory of this process so far, in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(args: Args) -> None:
    """Fill, write, read, compare."""
    rb = full_buffer(args)
    sums = [int(frames.sum()) for frames in rb.frames.split(1 << 16)]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "rb.zip"
        before, started = peak(), time.perf_counter()
        with replacing(path) as file:
            write(file, {"rb": rb})
        written, size, after_write = time.perf_counter() - started, path.stat().st_size / 1e6, peak()
        rb.frames.zero_()
        started = time.perf_counter()
        archive = Archive(path)
        archive.fill(rb, archive.tree["rb"])
        read = time.perf_counter() - started
    assert [int(frames.sum()) for frames in rb.frames.split(1 << 16)] == sums  # noqa: S101
    print(  # noqa: T201
        f"{args.env_id}, {args.transitions:,} transitions, {rb.frames.nbytes / 1e9:.2f} GB: written in {written:.1f} s "
        f"with {after_write - before:.3f} GB more memory, {size:.0f} MB on the disk; read in {read:.1f} s with "
        f"{peak() - after_write:.3f} GB more. {hardware()}, commit {commit()}"
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
