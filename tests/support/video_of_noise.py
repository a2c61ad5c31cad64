"""A film on a disk that is full: `children.run` runs this module as a script."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from cleanrl_utils.evals.video import Film


@dataclass
class Args:
    path: tyro.conf.Positional[str] = ""
    num_pictures: tyro.conf.Positional[int] = 1


def main(args: Args) -> None:
    """Film noise where no file may grow beyond 40 kB."""
    Path(args.path).write_bytes(b"the one before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_960, 40_960))
    rng = np.random.default_rng(0)
    with Film(Path(args.path)) as film:
        for _ in range(args.num_pictures):
            film(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8), 30)
