"""Where a student's first data comes from: new games of its teacher, or the replay saved when the teacher was trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import numpy as np

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput
from cleanrl_utils.evals.atari import GameFlags, count_actions, game_settings
from cleanrl_utils.run import dopamine, replay
from cleanrl_utils.run.archive import ArchiveError
from cleanrl_utils.run.replay import SavedReplay

FLAG = "--teacher-replay"
TEACHER_STEPS = 500_000
"""Environment steps that a teacher plays if no flag says where the data comes from."""


class DataFlags(GameFlags, Protocol):
    """The flags on the teacher's data."""

    teacher_replay: str | None
    teacher_replay_size: int
    teacher_steps: int | None
    offline_steps: int
    n_step: int
    num_envs: int


def check_data(args: DataFlags) -> None:
    """Set the default of `--teacher-steps`. Raises `BadInput` for flags that make no sense together."""
    if args.teacher_replay_size and args.teacher_replay is None:
        raise BadInput("--teacher-replay-size", args.teacher_replay_size, f"limits {FLAG}, which is not given")
    if args.offline_steps == 0:  # kickstarting: the student learns from its own games only
        for flag, value in ((FLAG, args.teacher_replay), ("--teacher-steps", args.teacher_steps)):
            if value:
                raise BadInput(flag, value, "is data for the offline phase, which --offline-steps 0 leaves out")
    if args.teacher_steps is None:
        args.teacher_steps = 0 if args.teacher_replay or not args.offline_steps else TEACHER_STEPS
    if not args.teacher_steps and not args.teacher_replay and args.offline_steps:
        raise BadInput("--teacher-steps", 0, f"leaves the offline phase without data: give {FLAG}, or --offline-steps 0 too")


def first_phase(args: DataFlags) -> str:
    """Return the phase that a run begins with: collection, offline or online."""
    return "collection" if args.teacher_steps else "offline" if args.offline_steps else "online"


def open_replay(args: DataFlags) -> tuple[SavedReplay | None, int]:
    """Open the saved replay that the flags name, if any, without reading frames; returns it and its number of transitions.

    Raises `BadInput`.
    """
    if args.teacher_replay is None:
        return None, 0
    source = Path(args.teacher_replay)
    try:
        saved = _open(source)
    except ArchiveError as error:
        raise BadInput(FLAG, source, str(error)) from None
    if saved.env_id is not None and game_settings(saved.env_id)[0] != game_settings(args.env_id)[0]:
        raise BadInput(FLAG, source, f"is of {saved.env_id}, not of --env-id {args.env_id}")
    num_actions, highest = count_actions(args), int(saved.actions.max())
    if highest >= num_actions or saved.num_actions not in (None, num_actions):
        found = f"{saved.num_actions} actions" if saved.num_actions is not None else f"an action {highest}"
        raise BadInput(FLAG, source, f"has {found}, where --env-id {args.env_id} has {num_actions}")
    if args.teacher_replay_size:
        saved = saved.latest(args.teacher_replay_size)
    if not saved.valid.any():
        raise BadInput(FLAG, source, "holds no transition to learn from")
    return saved, len(saved)


def _open(source: Path) -> SavedReplay:
    """Open the replay in a file or folder. Raises `ArchiveError`, `BadInput`."""
    if source.name == replay.FILE or (source / replay.FILE).exists():
        return replay.read(source if source.name == replay.FILE else source / replay.FILE)
    chosen = re.search(r"_ckpt\.(\d+)\.gz$", source.name)  # a file of a checkpoint stands for all of it
    folder = source.parent if chosen else source
    found = dopamine.checkpoints(folder)
    if not found or (chosen and int(chosen[1]) not in found):
        expected = f"a run folder with {replay.FILE} (--save-replay), or a folder of Dopamine's replay files"
        raise BadInput(FLAG, source, f"must be {expected}")
    number = int(chosen[1]) if chosen else found[-1]
    if len(found) > 1 and not chosen:
        notice(f"{FLAG}: checkpoint {number} of {len(found)}; name one of its files to take another")
    return dopamine.read(folder, number)


def load(rb: replay.Replay, saved: SavedReplay, args: DataFlags) -> None:
    """Fill an empty buffer with a saved replay. Raises `BadInput` if the replay is damaged, or too small to draw from."""
    try:
        replay.load(rb, saved)
    except ArchiveError as error:
        raise BadInput(FLAG, args.teacher_replay, str(error)) from None
    if not args.teacher_steps and not len(rb.draw(1, 1, np.random.default_rng(0))):
        few = f"holds too few transitions for --n-step {args.n_step} and --num-envs {args.num_envs}: none can be drawn"
        raise BadInput(FLAG, args.teacher_replay, few)
