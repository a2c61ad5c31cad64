"""Read the replay files of Dopamine (google/dopamine, the agents of the paper and of the DQN Replay Dataset).

A folder holds, for a checkpoint N, `add_count_ckpt.N.gz` and `$store$_NAME_ckpt.N.gz` for observation (size, 84, 84) uint8,
action, reward and terminal (size,): gzipped NumPy arrays, a ring filled by a single environment. Before each game Dopamine
stores three transitions of zeros, so that a stack never reaches into the previous game. Nothing in a file is run: pickled
objects are refused.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cleanrl_utils.run.archive import PIECE, ArchiveError
from cleanrl_utils.run.replay import SavedReplay

ADD_COUNT = re.compile(r"add_count_ckpt\.(\d+)\.gz")
PADDING = 3
"""Transitions of zeros before each game."""


def checkpoints(folder: Path) -> list[int]:
    """Return the numbers of the checkpoints whose replay is in a folder."""
    found = (ADD_COUNT.fullmatch(path.name) for path in folder.glob("add_count_ckpt.*.gz"))
    return sorted(int(match[1]) for match in found if match)


def read(folder: Path, checkpoint: int) -> SavedReplay:
    """Read the replay of a checkpoint; its frames are read only when they are needed.

    The format does not tell whether a game that ends without a terminal flag was cut, and a full ring has lost its first
    three stacks. Raises `ArchiveError`.
    """
    store = {
        name: folder / f"$store$_{name}_ckpt.{checkpoint}.gz" for name in ("observation", "action", "reward", "terminal")
    }
    added = int(_read(folder / f"add_count_ckpt.{checkpoint}.gz", ("i", "u"), ()))
    actions = _read(store["action"], ("i", "u"), (None,))
    terminals = _read(store["terminal"], ("i", "u", "b"), (None,)).astype(bool)
    rewards, size = _read(store["reward"], ("i", "u", "f"), (None,)), len(actions)
    if len({size, len(terminals), len(rewards)}) > 1 or added < 1 or not size:
        raise ArchiveError(f"holds {size} actions, {len(rewards)} rewards and {len(terminals)} terminals, {added} added")
    with _reading(store["observation"]) as file:
        _header(file, store["observation"].name, ("u1",), (size, 84, 84))
    if actions.min() < 0 or actions.max() > np.iinfo(np.uint8).max:
        raise ArchiveError(f"holds actions from {actions.min()} to {actions.max()}")

    full = added >= size
    order = (np.arange(size) + added) % size if full else np.arange(added)
    since_terminal = _since_last(terminals[order], before=math.inf if full else 0)

    def pieces() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first, frames in _pieces(store["observation"], ("u1",), (size, 84, 84)):
            step = (np.arange(first, first + len(frames)) - order[0]) % size
            yield step[step < len(order)], frames[step < len(order)]

    def column(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, 1)

    return SavedReplay(
        env_id=None,
        num_actions=None,
        actions=column(actions[order].astype(np.uint8)),
        rewards=column(np.sign(rewards[order]).astype(np.float32)),
        terminations=column(terminals[order]),
        truncations=column(np.zeros(len(order), dtype=bool)),
        ages=column(np.full(len(order), 3, dtype=np.uint8)),  # the zeros before a game are stored
        valid=column(since_terminal >= PADDING),
        pieces=pieces,
    )


def _since_last(ends: np.ndarray, before: float) -> np.ndarray:
    """Count the transitions since the last end, for each one; `before` is the count at the first one."""
    index = np.arange(len(ends))
    last = np.maximum.accumulate(np.where(ends, index, -1))
    last = np.concatenate([[-1], last[:-1]])  # before this one
    return np.where(last < 0, index + before, index - last - 1)


def _read(path: Path, kinds: tuple[str, ...], shape: tuple[int | None, ...]) -> np.ndarray:
    """Read a whole array."""
    pieces = [piece for _, piece in _pieces(path, kinds, shape)]
    return np.concatenate(pieces) if shape else pieces[0][0]


def _pieces(path: Path, kinds: tuple[str, ...], shape: tuple[int | None, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each piece of a gzipped array: its position on the first axis, and its values. See `_header`."""
    with _reading(path) as file:
        (length, *rest), dtype = _header(file, path.name, kinds, shape)
        rows = max(1, PIECE // max(1, dtype.itemsize * math.prod(rest)))
        for first in range(0, length, rows):
            piece = np.empty((min(rows, length - first), *rest), dtype=dtype)
            if file.readinto(piece.reshape(-1).view(np.uint8)) != piece.nbytes:
                raise ArchiveError(f"has a {path.name} that is cut short")
            yield first, piece
        file.read(1)  # the end, where the checksum is


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[gzip.GzipFile]:
    """Open a gzipped file. Raises `ArchiveError` if it is missing or damaged."""
    try:
        with gzip.open(path) as file:
            yield file
    except FileNotFoundError:
        raise ArchiveError(f"lacks {path.name}") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ArchiveError(f"has a {path.name} that cannot be read ({type(error).__name__})") from None


def _header(
    file: gzip.GzipFile, name: str, kinds: tuple[str, ...], shape: tuple[int | None, ...]
) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and type of the array in a file; a single number has shape (1,).

    Raises `ArchiveError` unless the type is one of the `kinds` and the shape is `shape`, in which None is any length.
    """
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found, fortran, dtype = read_header(file)
    if dtype.hasobject or fortran or not {dtype.kind, dtype.str[1:]} & {*kinds}:
        raise ArchiveError(f"has {name} of type {dtype}")
    if len(found) != len(shape) or any(b not in (a, None) for a, b in zip(found, shape, strict=True)):
        raise ArchiveError(f"has {name} of shape {found}")
    return found or (1,), dtype
