"""How many processor cores a run may use, and with how many threads it was asked to compute."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cleanrl_utils.ranges import MOST_THREADS

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of a container."""
OWN = Path("/proc/self/cgroup")
"""Where Linux shows which cgroups this process is in."""


class ThreadFlags(Protocol):
    """The flag on threads."""

    threads: int | None


def given_threads(args: ThreadFlags) -> int | None:
    """Return the number of threads that `--threads` or else OMP_NUM_THREADS sets; None if neither is set."""
    if args.threads is not None:
        return args.threads
    number = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is for nested levels
    return int(number) if number.isdecimal() and 0 < int(number) <= MOST_THREADS else None


def num_cores() -> int:
    """Return the number of cores that this process may use: the lower of its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas()])))


def processor_kind() -> str:
    """Return eight letters and digits for the kind of processor; they differ if its instructions differ."""
    about = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about += "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    return hashlib.sha256(about.encode()).hexdigest()[:8]


def _quotas() -> Iterator[float]:
    """Yield the processor seconds per second that the cgroups of this process allow, from its own to the outermost."""
    with contextlib.suppress(OSError):
        for line in OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = CGROUPS / "cpu" if controllers else CGROUPS  # cgroups of version 1 and 2
            own = root / path.lstrip("/")  # may be missing: a container can show its own cgroup as the outermost
            for folder in (own, *own.parents[: len(own.parts) - len(root.parts)]):
                yield _quota(folder)


def _quota(folder: Path) -> float:
    """Return the processor seconds per second that a cgroup allows; infinite if there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, (folder / "cpu.max").read_text().split())  # "max" has no number
        return quota / period
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    return math.inf
