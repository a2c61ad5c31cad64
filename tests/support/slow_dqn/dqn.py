"""dqn.py, but that seeds above 1 take a fiftieth of a second per step until they have been resumed: time for a signal."""

import sys
import time

from cleanrl import dqn
from cleanrl.dqn import Args, check, main  # noqa: F401 - what a sweep looks for
from cleanrl_utils import flags
from cleanrl_utils.run import checkpoint

DUE = checkpoint.Checkpoints.due


def slow_due(self: checkpoint.Checkpoints, step: int) -> bool:
    """As `due`, later."""
    if self.flags.seed > 1:
        time.sleep(0.02)
    return DUE(self, step)


if __name__ == "__main__":
    if "--resume" not in sys.argv:
        checkpoint.Checkpoints.due = slow_due
    flags.run(dqn.main, Args)
