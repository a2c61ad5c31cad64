"""The replay buffer of an Atari script in a separate file, for a student to learn from: `replay.zip` in a run folder.

The format is that of checkpoints (`archive`): arrays in a zip archive, compressed without loss, and nothing that is run.
Both frameworks write the same format.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from cleanrl_utils.console import working
from cleanrl_utils.run import archive
from cleanrl_utils.run.archive import Archive, ArchiveError

FILE = "replay.zip"
FORMAT = "replay 1"
RINGS = ("frames", "actions", "rewards", "terminations", "truncations", "ages")
"""One entry per transition: see `ReplayBuffer` of the scripts."""
COLUMNS = (*RINGS[1:], "valid")
"""What is kept of each transition in addition to its frame."""


class Replay(Protocol):
    """The replay buffer of a script, which has its rings as attributes, or in `rings`."""

    num_rows: int
    num_envs: int
    n_step: int
    head: int
    num_stored: int
    num_valid: int
    valid: np.ndarray

    def draw(self, num_batches: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw indices of transitions; none if nothing can be drawn."""


def write(file: BinaryIO, rb: Replay, env_id: str, num_actions: int) -> None:
    """Write a replay buffer as it stands."""
    about = {"format": FORMAT, "env_id": env_id, "num_actions": num_actions}
    about |= {"num_envs": rb.num_envs, "head": rb.head, "num_stored": rb.num_stored}
    rings = getattr(rb, "rings", rb)
    archive.write(file, about | {"valid": rb.valid} | {name: getattr(rings, name) for name in RINGS})


@dataclass
class SavedReplay:
    """The transitions in a file, of N games played side by side for T steps, oldest first."""

    env_id: str | None  # None: the file does not say
    num_actions: int | None
    actions: np.ndarray  # uint8; this and the other arrays are (T, N)
    rewards: np.ndarray  # float32
    terminations: np.ndarray  # bool
    truncations: np.ndarray  # bool
    ages: np.ndarray  # uint8, frames since the reset, 3 at most
    valid: np.ndarray  # bool, whether a transition starts there
    pieces: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]  # t * N + n of K transitions, their frames (K, 84, 84)

    def __len__(self) -> int:
        return self.valid.size

    def latest(self, count: int) -> SavedReplay:
        """Return only the latest `count` transitions, in whole steps, at least one step."""
        steps, games = self.valid.shape
        dropped = max(steps - max(count // games, 1), 0)

        def pieces() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for index, frames in self.pieces():
                left = index >= dropped * games
                yield index[left] - dropped * games, frames[left]

        return replace(self, pieces=pieces, **{name: getattr(self, name)[dropped:] for name in COLUMNS})


def read(path: Path) -> SavedReplay:
    """Read what `write` wrote. Raises `ArchiveError` for a file that is damaged or is something else."""
    saved = Archive(path)
    tree = saved.tree
    if tree.get("format") != FORMAT:
        raise ArchiveError("holds no replay")
    try:
        rows, games = tree["valid"]["shape"]
        frames, pixels = tree["frames"], rows * games * 84 * 84
        if math.prod(frames["shape"]) * np.dtype(frames["dtype"]).itemsize != pixels or not 0 < tree["num_stored"] <= rows:
            raise ValueError(f"{tree['num_stored']} rows of {rows}, frames {frames['shape']}")
        full = tree["num_stored"] == rows
        order = (np.arange(tree["num_stored"]) + (tree["head"] if full else 0)) % rows  # from the oldest row on
        arrays = {name: saved.fill(None, tree[name]).reshape(rows, games)[order] for name in COLUMNS}
        about = {"env_id": str(tree["env_id"]), "num_actions": tree.get("num_actions")}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ArchiveError(f"holds no whole replay ({type(error).__name__}: {error})") from None

    def pieces() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first, piece in saved.pieces(frames):
            row, game = np.divmod(np.arange(first, first + len(piece)), games)
            step = (row - order[0]) % rows
            stored = step < len(order)
            yield (step * games + game)[stored], piece.view(np.uint8).reshape(-1, 84, 84)[stored]

    return SavedReplay(**about, pieces=pieces, **arrays)


def load(rb: Replay, saved: SavedReplay) -> None:
    """Fill an empty buffer with saved transitions, piece by piece; new transitions are added after them.

    The saved games follow one another in the columns of the buffer, and each column is filled before the next one.
    Transitions that do not fill a whole row are left out. No transition starts where its stack or its n steps would cross
    a border between two games or two columns.
    """
    steps, games = saved.valid.shape
    rows, surplus = divmod(len(saved), rb.num_envs)
    place = np.arange(games * steps).reshape(games, steps).T.ravel()  # of t * N + n, in the games one by one
    position = place - surplus
    in_game, in_column, fits = place % steps, position % rows, position >= 0
    target = in_column * rb.num_envs + position // rows
    reaches_over = saved.ages.ravel() > np.minimum(in_game, in_column)
    reaches_over |= np.minimum(steps - in_game, rows - in_column) <= rb.n_step
    valid = (saved.valid.ravel() & ~reaches_over)[fits]
    rb.valid.reshape(-1)[target[fits]] = valid
    rb.head, rb.num_stored, rb.num_valid = rows % rb.num_rows, rows, int(valid.sum())
    for name in RINGS[1:]:
        _put(rb, name, target[fits], getattr(saved, name).ravel()[fits])
    with working("reading the teacher's replay", total=len(saved)) as advance:
        for index, frames in saved.pieces():
            _put(rb, "frames", target[index][fits[index]], frames[fits[index]])
            advance(len(index))


def _put(rb: Replay, name: str, index: np.ndarray, values: np.ndarray) -> None:
    """Write entries of a ring, in place."""
    rings = getattr(rb, "rings", None)
    ring = getattr(rb if rings is None else rings, name)
    if name == "frames":
        values = values.reshape(len(values), -1).view(archive.dtype_name(ring))
    if rings is None:
        import torch  # noqa: PLC0415 - not in the JAX scripts

        ring[torch.from_numpy(index).to(ring.device)] = torch.from_numpy(values).to(ring.device)
    else:
        rb.rings = rings._replace(**{name: _jax_writer()(ring, index, values)})


@functools.cache
def _jax_writer() -> Callable[..., Any]:
    """Make a function that writes values at indices of a ring and returns the ring, in the memory of the old one."""
    import jax  # noqa: PLC0415 - not in the PyTorch scripts

    return jax.jit(lambda ring, index, values: ring.at[index].set(values), donate_argnums=0)
