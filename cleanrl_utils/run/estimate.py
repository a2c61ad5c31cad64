"""How long a run of QDagger will take on this machine, from its first offline updates."""

from __future__ import annotations

from typing import Protocol


class PhaseFlags(Protocol):
    """The flags that say how much a run has to do."""

    offline_steps: int
    total_timesteps: int
    learning_starts: int
    train_frequency: int


def seconds_left(args: PhaseFlags, updates_done: int, updates_per_second: float, steps_per_second: float | None) -> float:
    """Return the seconds to the end of the run: the rest of the offline updates, then the online phase; no evaluations.

    Assumes that the student updates online as fast as offline, and plays as fast as its teacher did (`steps_per_second`;
    None, if that was not measured, counts no time for playing). The two are added up, although they overlap.
    """
    online_updates = max(args.total_timesteps - args.learning_starts, 0) / args.train_frequency
    seconds = (args.offline_steps - updates_done + online_updates) / updates_per_second
    return seconds + (args.total_timesteps / steps_per_second if steps_per_second else 0)


def estimate(seconds: float, with_games: bool) -> str:
    """Return the line that tells the user how long the rest of the run takes."""
    duration = f"{max(1, round(seconds / 60))} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
    without = "evaluations" if with_games else "evaluations and games"
    return f"at this speed the run takes about {duration} more, without {without}; see --offline-steps, --total-timesteps"
