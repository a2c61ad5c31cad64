r"""Measure what a checkpoint costs: a full replay buffer (seconds, memory, bytes on disk) and running games (seconds).

    python benchmark/checkpoint_cost.py --env-id BreakoutNoFrameskip-v4 --transitions 1000000 [--framework jax]
    python benchmark/checkpoint_cost.py --transitions 0 --num-envs 8 --game-steps 26000

Writes an empty buffer of `cleanrl/dqn_atari.py` or its twin, fills it with games of a random player, writes it, reads it
back, compares. With `--game-steps` it plays games of that length and measures how long it takes to play them again.
Linux only.
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import torch
import tyro

from cleanrl import dqn_atari, dqn_atari_jax
from cleanrl_utils.console import output
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
    played: int = 100_000
    """steps that are really played; they fill the buffer again and again"""
    framework: Literal["torch", "jax"] = "torch"
    """whose buffer"""
    game_steps: int = 0
    """steps of each running game that is played again; 0: none are"""


def empty_buffer(args: Args) -> dqn_atari.ReplayBuffer | dqn_atari_jax.ReplayBuffer:
    """A buffer of one of the twins, on the CPU."""
    if args.framework == "jax":
        return dqn_atari_jax.ReplayBuffer(args.transitions, args.num_envs, 1, 0.99, jax.devices("cpu")[0])
    return dqn_atari.ReplayBuffer(args.transitions, args.num_envs, 1, 0.99, torch.device("cpu"))


def fill(rb: dqn_atari.ReplayBuffer | dqn_atari_jax.ReplayBuffer, args: Args) -> None:
    """Fill a buffer with a random player's games."""
    games, rng = dqn_atari.Games(dqn_atari.Args(env_id=args.env_id), TRAINING, args.num_envs), np.random.default_rng(1)
    steps = []
    for _ in range(args.played // args.num_envs):
        obs = games.obs[:, -1:].copy()  # only the newest frame is stored
        actions = games.send(rng.integers(games.num_actions, size=args.num_envs))
        step = games.recv()
        steps.append((obs, actions, step._replace(rewards=np.sign(step.rewards))))
    games.close()
    for row in range(rb.num_rows):
        obs, actions, step = steps[row % len(steps)]
        rb.add(torch.as_tensor(obs) if args.framework == "torch" else obs, actions, step)


def sums(rb: dqn_atari.ReplayBuffer | dqn_atari_jax.ReplayBuffer) -> list[int]:
    """Sums of parts of the frames."""
    frames = getattr(rb, "rings", rb).frames
    return [int(frames[first : first + (1 << 16)].sum()) for first in range(0, len(frames), 1 << 16)]


def write_buffer(rb: dqn_atari.ReplayBuffer | dqn_atari_jax.ReplayBuffer, path: Path) -> float:
    """Write a buffer as a checkpoint does; returns the seconds that takes."""
    started = time.perf_counter()
    with replacing(path) as file:
        write(file, {"rb": rb})
    return time.perf_counter() - started


def play_again(args: Args) -> float:
    """Play long games, no-ops in each, and play them again; returns the seconds that the latter takes."""
    settings = dqn_atari.Args(env_id=args.env_id)
    games, actions = dqn_atari.Games(settings, TRAINING, args.num_envs), np.zeros(args.num_envs, dtype=np.int64)
    for _ in range(args.game_steps):
        games.send(actions)
        games.recv()
    saved = games.envs.saved()
    games.close()
    games, started = dqn_atari.Games(settings, TRAINING, args.num_envs), time.perf_counter()
    games.envs.restore(saved)
    return time.perf_counter() - started


def peak() -> float:
    """Peak memory of this process so far, in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(args: Args) -> None:
    """Measure what the flags ask for."""
    about = f"{hardware()}, commit {commit()}"
    if args.game_steps:
        seconds = play_again(args)
        output(
            f"{args.num_envs} games of {args.game_steps:,} steps of {args.env_id} played again in {seconds:.1f} s. {about}"
        )
    if not args.transitions:
        return
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path, rb = Path(folder) / "rb.zip", empty_buffer(args)
        empty = write_buffer(rb, path)
        fill(rb, args)
        expected, before = sums(rb), peak()
        written, size, after_write = write_buffer(rb, path), path.stat().st_size / 1e6, peak()
        del rb
        rb = empty_buffer(args)
        started = time.perf_counter()
        archive = Archive(path)
        archive.fill(rb, archive.tree["rb"])
        read = time.perf_counter() - started
    if sums(rb) != expected:
        raise SystemExit("what was read is not what was written")
    output(
        f"{args.env_id}, {args.framework}, {args.transitions:,} transitions: empty written in {empty:.1f} s, full in "
        f"{written:.1f} s with {after_write - before:.3f} GB more memory, {size:.0f} MB on the disk; read in {read:.1f} s "
        f"with {peak() - after_write:.3f} GB more. {about}"
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
