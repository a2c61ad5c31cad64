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
    """Seconds to the end of the run: the rest of the offline updates, then the online phase. Evaluations are not counted.

    Assumes that the student updates online as fast as offline, and plays as fast as its teacher did (`steps_per_second`;
    None, if the teacher did not play, counts no time for playing).
    """
    online_updates = max(args.total_timesteps - args.learning_starts, 0) / args.train_frequency
    seconds = (args.offline_steps - updates_done + online_updates) / updates_per_second
    return seconds + (args.total_timesteps / steps_per_second if steps_per_second else 0)


def estimate(seconds: float) -> str:
    """The line that tells the user."""
    duration = f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
    return f"at this speed the run takes about {duration} more, without evaluations; fewer --offline-steps make it shorter"
