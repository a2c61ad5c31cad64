"""Where a run computes, whatever the framework: the names of its devices, and the host's memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from pathlib import Path
from typing import Protocol

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput

TRANSITION_BYTES = 84 * 84 + 10
"""Bytes of a transition in the replay buffer of the Atari scripts: a frame, and the rest of its row."""


class DeviceFlags(Protocol):
    """The flag on devices that every script has; some have `cuda`, `buffer_device` and `cuda_graph` too."""

    device: str | None


def device_names(args: DeviceFlags, available: dict[str, bool], framework: str) -> tuple[str, str]:
    """Return the names of the devices of networks and replay buffer. Raises `BadInput` if the framework lacks one.

    A script without `--buffer-device` keeps its buffer in host memory by itself.
    """
    name = args.device or ("auto" if getattr(args, "cuda", True) else "cpu")
    buffer_device, cuda_graph = getattr(args, "buffer_device", "auto"), getattr(args, "cuda_graph", False)
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    buffer_name = name if buffer_device == "auto" else buffer_device
    for flag, value in (("--device", name), ("--buffer-device", buffer_name)):
        if not available[value]:
            choices = " or ".join(choice for choice, there in available.items() if there)
            raise BadInput(flag, value, f"is not available: {framework} finds {choices} on this machine")
    if buffer_name not in (name, "cpu"):
        raise BadInput("--buffer-device", buffer_name, f"must be cpu, or {name} like the networks")
    if cuda_graph and name != "cuda":
        raise BadInput("--cuda-graph", "on", f"needs --device cuda, not {name}")
    if cuda_graph and buffer_name != "cuda":
        raise BadInput("--cuda-graph", "on", f"needs --buffer-device cuda, not {buffer_name}")
    return name, buffer_name


def free_memory() -> int | None:
    """Return the bytes of host memory that the system and the container still allow this process; None if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        found.append(1024 * _numbers("/proc/meminfo")["MemAvailable:"])
    # For cgroups of versions 2 and 1. Cached pages of files are given back when they are needed.
    for folder, limit, used, prefix in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", ""),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max" where there is no limit
            pages = _numbers(f"{folder}/memory.stat")
            of_files = pages[f"{prefix}inactive_file"] + pages[f"{prefix}active_file"]
            found.append(int(Path(folder, limit).read_text()) - int(Path(folder, used).read_text()) + of_files)
    return min(found, default=None)


def _numbers(path: str) -> dict[str, int]:
    """The lines `name number ...` of a file of the system."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines}


def require_memory(flag: str, transitions: int, free: int | None, each: int = TRANSITION_BYTES) -> None:
    """Raise `BadInput` if a ring of transitions, of `each` bytes, takes more than the `free` bytes of memory.

    torch and JAX take the whole ring at the start, even if the run never fills it.
    """
    if free is not None and (needed := transitions * each) > free:
        fits = max(0, free // each // 1000 * 1000)
        allowed = f"needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: at most {fits:,} would fit"
        raise BadInput(flag, f"{transitions:,}", allowed)


def keeps_compiled_code(folder: str, name: str) -> bool:
    """Make the folder and try to write to it; returns whether that works, and if not, prints a line with its `name`."""
    try:
        os.makedirs(folder, exist_ok=True)  # refuses an empty name, which Path takes for the current folder
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        notice(f"{name} cannot be written ({error.strerror}): compiled code is not kept")
        return False
    return True


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory in the process, for the tensors of the next update.

    By default it returns each block of megabytes to the kernel, which then zeroes and maps it again, page by page. That
    costs a third of the time of a Nature CNN update in torch on 2 CPU cores, and 22,000 page faults in an IMPALA update in
    JAX. Call it before other threads start. Does nothing with another C library.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_top_pad, m_mmap_threshold, m_arena_max = -1, -2, -3, -8  # malloc.h
        mallopt(m_arena_max, 1)  # the arenas of other threads, where XLA computes, would map large blocks all the same
        mallopt(m_mmap_threshold, 1 << 30) or mallopt(m_mmap_threshold, 1 << 25)  # older versions take 32 MB at most
        mallopt(m_trim_threshold, (1 << 31) - 1)
        mallopt(m_top_pad, 1 << 26)


class Metrics(Protocol):
    """The metrics of an update, an array (M + 1,) on a device: M values, then 1 as long as every loss was finite."""

    def tolist(self) -> list[float]:
        """Wait until the device has the numbers, and return them."""


def read_metrics(metrics: Metrics | None, names: tuple[str, ...]) -> dict[str, float]:
    """Return the values by their `names` (M); empty without metrics. Waits for the device.

    Raises FloatingPointError once a loss was not finite.
    """
    if metrics is None:
        return {}
    *values, finite = metrics.tolist()
    if not finite:
        raise FloatingPointError("a loss was not finite; lower --learning-rate, or leave --bf16 if it is on")
    return dict(zip(names, values, strict=True))
