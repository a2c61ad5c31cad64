"""The actions that led to the running games: what a checkpoint keeps of environments that cannot be copied."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from rich.progress import Progress

from cleanrl_utils.console import SHOW_AFTER, error_console

LIMIT = 1_000_000
"""Maximum number of actions of an environment, since it was seeded, that are kept."""


class History:
    """How often each of N environments was seeded before, and all actions sent to it since it was last seeded.

    `limit`: maximum number of actions that are kept of an environment; once it has had more, its games cannot be replayed.
    """

    def __init__(self, num_envs: int, limit: int = LIMIT) -> None:
        self.numbers = np.zeros(num_envs, dtype=np.int64)
        self.limit = limit
        self.actions = np.zeros((256, num_envs), dtype=np.int32)  # one row per vector step; grows
        self.end = 0
        self.begins = np.zeros(num_envs, dtype=np.int64)  # the row with each environment's first action

    @property
    def lengths(self) -> np.ndarray:
        """Number of actions (N,) sent to each environment since it was seeded."""
        return self.end - self.begins

    @property
    def whole(self) -> bool:
        """Whether all actions that a restored environment needs are kept."""
        return int(self.lengths.max()) <= self.limit

    def add(self, actions: np.ndarray) -> None:
        """Record the actions (N,) that are sent in a step."""
        if self.end == len(self.actions):
            self._make_room()
        self.actions[self.end] = actions
        self.end += 1

    def begin(self, seeded: np.ndarray) -> None:
        """Record which environments are seeded now: `seeded` (N,) bool."""
        self.numbers += seeded
        self.begins = np.where(seeded, self.end, self.begins)

    def _make_room(self) -> None:
        """Drop the rows that no environment needs; double the space if that is not enough."""
        first = max(int(self.begins.min()), self.end - self.limit)
        kept = self.actions[first : self.end]
        if len(kept) >= len(self.actions) // 2:  # 0 of 0 if a checkpoint was written before the first step
            self.actions = np.zeros((max(256, 2 * len(self.actions)), len(self.numbers)), dtype=np.int32)
        self.actions[: len(kept)] = kept
        self.begins, self.end = self.begins - first, len(kept)

    def saved(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint holds: the environments' numbers and lengths, and their last actions (L, N)."""
        longest = min(int(self.lengths.max()), self.limit)
        return {
            "numbers": self.numbers,
            "lengths": self.lengths,
            "actions": self.actions[self.end - longest : self.end].copy(),
        }

    def restore(self, saved: dict[str, np.ndarray]) -> None:
        """Restore what `saved` returned."""
        self.numbers, self.actions, self.end = saved["numbers"], saved["actions"], len(saved["actions"])
        self.begins = self.end - saved["lengths"]
        self._make_room()

    def play_again(self, reset: Callable[[np.ndarray], None], step: Callable[[np.ndarray], None]) -> None:
        """Bring new environments to the point that these have reached.

        `reset(mask)` seeds the environments in `mask`; `step(actions)` sends actions (N,) to all. An environment with fewer
        actions than others steps along with them until it is seeded and its own actions begin.
        """
        longest = int(self.lengths.max())
        rows = self.actions[self.end - longest : self.end]
        started = time.monotonic()
        console = error_console()
        with Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal) as bar:
            task = None
            for row in range(longest + 1):
                if (begin := self.lengths == longest - row).any():
                    reset(begin)
                if row < longest:
                    step(np.where(self.lengths >= longest - row, rows[row], 0))
                if row % 256 == 255 and time.monotonic() - started > SHOW_AFTER:
                    task = bar.add_task("playing the running games again", total=longest) if task is None else task
                    bar.update(task, completed=row, refresh=True)
