"""The PyTorch scripts beside their JAX twins: the same settings, in turn, in one run.

    python benchmark/twins.py --rounds 3

Prints a table: steps or updates per second after warm-up and compilation, and peak memory of the process, as medians over
the rounds; then the median and the range of the ratios JAX / PyTorch within a round. Float32, the scripts' own defaults
otherwise (8 games, batch 32, an update per 4 steps). On a GPU, peak memory is that of the host.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPTS = Path(__file__).parents[1] / "cleanrl"
COMMON = "--env-id PongNoFrameskip-v4 --buffer-size 3000 --eval-episodes 1 --eval-max-frames 400".split()
DQN = [*COMMON, *"--total-timesteps 6000 --learning-starts 1000".split()]
QDAGGER = [
    *COMMON,
    *"--teacher-steps 4000 --teacher-eval-episodes 2 --offline-steps 400 --offline-eval-frequency 0".split(),
    *"--total-timesteps 3000 --learning-starts 800 --eval-max-frames 2000".split(),
]

# What is measured: name, flags, scripts of PyTorch and JAX, a metric that is logged on the way, and from which step on.
CASES = [
    ("DQN, steps/s", DQN, ("dqn_atari", "dqn_atari_jax"), "charts/SPS", 2000),
    ("QDagger offline (IMPALA), updates/s", QDAGGER, ("qdagger_dqn_atari_impalacnn", "qdagger_dqn_atari_jax_impalacnn"),
     "charts/offline/loss", 100),
    ("QDagger online (IMPALA), steps/s", QDAGGER, ("qdagger_dqn_atari_impalacnn", "qdagger_dqn_atari_jax_impalacnn"),
     "charts/SPS", 1000),
]  # fmt: skip


def run(script: str, flags: list[str]) -> tuple[EventAccumulator, float]:
    """Run a script in a folder of its own: what it logged, and its peak memory in gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(SCRIPTS / f"{script}.py"), *flags]
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            errors = process.stderr.read().decode()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{script} failed:\n{errors}")
        (events,) = Path(folder).glob("runs/*/events*")
        return EventAccumulator(str(events)).Reload(), usage.ru_maxrss / 1e6


def rate(events: EventAccumulator, metric: str, start: int) -> float:
    """Steps per second between the first value of `metric` at `start` or later and the last."""
    points = [(event.step, event.wall_time) for event in events.Scalars(metric) if event.step >= start]
    return (points[-1][0] - points[0][0]) / (points[-1][1] - points[0][1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that every script runs")
    parser.add_argument("--flags", default="", help="more flags for every script, in one string")
    arguments = parser.parse_args()
    rates: dict[tuple[str, str], list[float]] = {}
    memory: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        scripts = list(dict.fromkeys(script for case in CASES for script in case[2]))
        for script in scripts if number % 2 == 0 else reversed(scripts):  # A B, then B A
            flags = next(case[1] for case in CASES if script in case[2])
            print(f"round {number + 1}: {script}", file=sys.stderr)  # noqa: T201
            events, peak = run(script, flags + arguments.flags.split())
            memory.setdefault(script, []).append(peak)
            for name, _, scripts, metric, start in CASES:
                if script in scripts:
                    rates.setdefault((name, script), []).append(rate(events, metric, start))

    lines = ["| | PyTorch | JAX | JAX / PyTorch, median (range) |", "|---|---|---|---|"]
    for name, _, scripts, *_ in CASES:
        ours, theirs = (rates[name, script] for script in scripts)
        lines.append(row(name, ours, theirs, digits=0 if "steps" in name else 1))
    for name, scripts in {case[0].split()[0].strip(","): case[2] for case in CASES}.items():
        lines.append(row(f"{name}, peak memory in GB", *(memory[script] for script in scripts), digits=2))
    print("\n".join(lines))  # noqa: T201


def row(name: str, ours: list[float], theirs: list[float], digits: int) -> str:
    """One line of the table."""
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    medians = " | ".join(f"{statistics.median(values):.{digits}f}" for values in (ours, theirs))
    return f"| {name} | {medians} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"


if __name__ == "__main__":
    main()
