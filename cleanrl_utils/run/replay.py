"""The replay buffer of an Atari script in a file of its own, for a student to learn from: `replay.zip` of a run folder.

The format is that of checkpoints (`archive`): arrays in a zip archive, compressed without loss, and nothing that is run.
Both frameworks write the same one.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from cleanrl_utils.run import archive
from cleanrl_utils.run.archive import Archive, ArchiveError

FORMAT = "replay 1"
RINGS = ("frames", "actions", "rewards", "terminations", "truncations", "ages")
"""One entry per transition: see `ReplayBuffer` of the scripts."""


class Replay(Protocol):
    """The replay buffer of a script, which has its rings as attributes, or in `rings`."""

    num_envs: int
    head: int
    num_stored: int
    valid: np.ndarray


def write(file: BinaryIO, rb: Replay, env_id: str) -> None:
    """Write a replay buffer as it stands."""
    about = {"format": FORMAT, "env_id": env_id, "num_envs": rb.num_envs, "head": rb.head, "num_stored": rb.num_stored}
    rings = getattr(rb, "rings", rb)
    archive.write(file, about | {"valid": rb.valid} | {name: getattr(rings, name) for name in RINGS})


def read(path: Path) -> dict[str, object]:
    """What `write` wrote, with arrays of NumPy: frames (T * N, 84, 84) uint8, `valid` (T, N), the other rings (T * N,).

    Row t holds N transitions; `head` is the row that would be written next, `num_stored` how many rows are filled. Raises
    `ArchiveError` for a file that is damaged, or is something else.
    """
    saved = Archive(path)
    if saved.tree.get("format") != FORMAT:
        raise ArchiveError("holds no replay")
    found = saved.fill(dict.fromkeys(saved.tree), saved.tree)
    saved.close()
    found["frames"] = found["frames"].view(np.uint8).reshape(-1, 84, 84)
    return found
