r"""What a run uses over time: does anything grow, does it slow down, do ten times the steps cost ten times as much?

    python benchmark/soak.py docs/benchmark/soak cleanrl/dqn_atari.py --env-id PongNoFrameskip-v4 --total-timesteps 200000 \
        --buffer-size 50000 --learning-starts 10000 --checkpoint-frequency 50000

Runs the script with its flags and looks at it from outside, every five seconds, through Linux's /proc: processor time,
memory, open files, threads. It compares processor time, not wall-clock time, which other work on the machine affects
more. The buffer should be full, and learning have begun, early in the run. Prints a table of the run's fifths, and writes a
picture and JSON. Needs the extra `plots`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cleanrl_utils.curves import run_folders
from cleanrl_utils.drawing import plt
from cleanrl_utils.files import write_json
from cleanrl_utils.record import commit, event_files, hardware, read_events, versions

SECONDS_BETWEEN_LOOKS = 5


def look(pid: int) -> tuple[float, float, float, int, int] | None:
    """Time now; of a process: processor seconds so far, gigabytes, open files, threads. None when it has ended."""
    try:
        files = len(os.listdir(f"/proc/{pid}/fd"))
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()  # the name before may hold anything
    except OSError:
        return None
    ticks, pages = int(fields[11]) + int(fields[12]), int(fields[21])  # utime, stime, rss: proc(5)
    if pages == 0:
        return None
    gigabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e9
    return time.time(), ticks / os.sysconf("SC_CLK_TCK"), gigabytes, files, int(fields[17])


def watch(command: list[str]) -> tuple[np.ndarray, float]:
    """Run a command: what was seen of it, (looks, 5), and its peak memory in gigabytes."""
    seen = []
    with subprocess.Popen([sys.executable, *command]) as process:
        while (now := look(process.pid)) is not None:
            seen.append(now)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed with status {process.returncode}")
    return np.array(seen), usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Run, watch, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="files to write, without their endings .json and .png")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a training script and its flags")
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("a training script and its flags are missing")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    seen, peak = watch(arguments.command)
    run = run_folders()[-1]

    events = [event for path in event_files(run) for event in read_events(path)]
    logged = [event for event in events if any(value.tag == "charts/SPS" for value in event.summary.value)]
    steps, clock = (np.array([getattr(event, name) for event in logged]) for name in ("step", "wall_time"))
    cpu_seconds = np.interp(clock, seen[:, 0], seen[:, 1])
    marks = [steps[-1] // 10, steps[-1] // 2, steps[-1]]
    fifths = []
    for first, last in itertools.pairwise(np.linspace(clock[0], clock[-1], 6)):
        inside = seen[(seen[:, 0] >= first) & (seen[:, 0] <= last)]
        done = np.interp([first, last], clock, steps)
        milliseconds = 1000 * np.diff(np.interp([first, last], seen[:, 0], seen[:, 1])) / np.diff(done)
        fifths.append(
            {
                "steps": int(done[1]),
                "gigabytes": float(inside[:, 2].max()),
                "open files": int(inside[:, 3].max()),
                "threads": int(inside[:, 4].max()),
                "steps per second": float(np.diff(done)[0] / (last - first)),
                "processor milliseconds per step": float(milliseconds[0]),
            }
        )
    minutes = (seen[:, 0] - seen[0, 0]) / 60
    result = {
        "command": arguments.command,
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "peak_gigabytes": peak,
        "fifths": fifths,
        "cpu_seconds_by_steps": {int(mark): float(np.interp(mark, steps, cpu_seconds)) for mark in marks},
        "gigabytes_by_minutes": {
            round(float(minute), 1): float(size) for minute, size in zip(minutes, seen[:, 2], strict=True)
        },
    }
    write_json(arguments.out.with_name(f"{arguments.out.name}.json"), result)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(minutes, seen[:, 2])
    left.set_xlabel("minutes")
    left.set_ylabel("memory of the process in GB")
    right.plot(steps, cpu_seconds)
    right.set_xlabel("steps")
    right.set_ylabel("processor seconds")
    for axis in (left, right):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.savefig(arguments.out.with_name(f"{arguments.out.name}.png"), dpi=120)
    print(" | ".join(fifths[0]))  # noqa: T201
    for fifth in fifths:
        print(" | ".join(f"{value:.3g}" if isinstance(value, float) else f"{value:,}" for value in fifth.values()))  # noqa: T201
    print(f"peak {peak:.2f} GB; processor seconds by steps: {result['cpu_seconds_by_steps']}")  # noqa: T201


if __name__ == "__main__":
    main()
