"""Measure how other work on the same cores slows an update of the PyTorch scripts, by the number of threads.

    python benchmark/busy.py                                        # QDagger's IMPALA student
    python benchmark/busy.py --script dqn_atari --no-bf16

Neighbours are processes that never pause. Beside each set of them, the ways to use threads take turns, in rounds; a turn
is a separate process that runs updates for some seconds. Prints a table of milliseconds per update: the mean and the worst.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from gated import Candidate, NoiseArgs, filled_buffer, load, run_update, script_args, torch_update

from cleanrl_utils import flags
from cleanrl_utils.console import notice
from cleanrl_utils.devices import in_torch
from cleanrl_utils.devices.common import keep_freed_memory
from cleanrl_utils.devices.cores import num_cores
from cleanrl_utils.ranges import Positive, PositiveFloat

ALL = str(num_cores())
WAYS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    f"{ALL} threads": {"OMP_NUM_THREADS": ALL},
    f"{ALL} threads, passive waiting": {"OMP_NUM_THREADS": ALL, "OMP_WAIT_POLICY": "PASSIVE"},
    f"{ALL} threads, short spinning": {"OMP_NUM_THREADS": ALL, "GOMP_SPINCOUNT": "1000"},
    "chosen at the start": {},
}
"""Environment variables of each way to use threads."""
NEIGHBOURS = {"none": [], "one": [0], "two": [0, 0], "one at nice 19": [19], "two at nice 19": [19, 19]}
"""Niceness of each neighbour."""


@dataclass
class Args(NoiseArgs):
    """Measure updates beside busy neighbours."""

    script: Literal["dqn_atari", "qdagger_dqn_atari_impalacnn"] = "qdagger_dqn_atari_impalacnn"
    """whose update, with networks of its default kinds"""
    bf16: bool = True
    """in bfloat16, where the processor has it"""
    ways: tuple[str, ...] = ()
    """ways to use threads, by parts of their names; default: all"""
    beside: tuple[str, ...] = tuple(NEIGHBOURS)
    """which neighbours"""
    rounds: Positive = 3
    """turns of each"""
    window: PositiveFloat = 4.0
    """seconds of a turn"""
    buffer_size: Positive = 5000
    """transitions in the buffer"""
    device: Literal["cpu"] = "cpu"
    """where the networks live"""
    turn: bool = False
    """be a turn: what this program starts"""


def update_times(args: Args) -> list[float]:
    """Seconds of each update of a turn, made as the script makes it, without compilation."""
    keep_freed_memory()
    module, rng = load(args.script), np.random.default_rng(1)
    settings = script_args(module, Candidate("", "", run_update, flags={"bf16": args.bf16, "compile": False}), args)
    network, bf16 = getattr(module, "ImpalaCNN", module.NatureCNN)(6), in_torch.use_bf16(settings.bf16, torch.device("cpu"))
    in_torch.choose_threads(settings, network, (4, 84, 84), bf16)
    rb = filled_buffer(module, settings, rng)
    update, times = torch_update(module, settings, rb, compiled=False), []
    for index in in_torch.to_device(rb.draw(5, args.batch_size, rng), rb.frames.device):
        update(index)
    while sum(times) < args.window:
        began = time.perf_counter()
        update(in_torch.to_device(rb.draw(1, args.batch_size, rng), rb.frames.device)[0])
        times.append(time.perf_counter() - began)
    return times


@contextlib.contextmanager
def neighbours(niceness: list[int]) -> Iterator[None]:
    """Run processes that never pause while the block runs."""
    started = [subprocess.Popen(["nice", "-n", str(nice), sys.executable, "-c", "while True: pass"]) for nice in niceness]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def main(args: Args) -> None:
    """Be a turn, or have all turns taken and print the table."""
    flags.check_ranges(args)
    if args.turn:
        print(json.dumps(update_times(args)))  # noqa: T201
        return
    ways = {name: env for name, env in WAYS.items() if not args.ways or any(part in name for part in args.ways)}
    command = [sys.executable, *sys.argv, "--turn"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    found: dict[tuple[str, str], list[float]] = {(way, beside): [] for way in ways for beside in args.beside}
    for beside in args.beside:
        with neighbours(NEIGHBOURS[beside]):
            for _ in range(args.rounds):
                for way, env in ways.items():
                    turn = subprocess.run(command, env=clean | env, capture_output=True, check=True)
                    found[way, beside] += json.loads(turn.stdout)
        notice(f"measured beside: {beside}")
    print(f"| milliseconds per update: mean (worst) | {' | '.join(f'beside {name}' for name in args.beside)} |")  # noqa: T201
    print("|---" * (1 + len(args.beside)) + "|")  # noqa: T201
    for way in ways:
        cells = (
            f"{1000 * np.mean(found[way, beside]):.0f} ({1000 * max(found[way, beside]):.0f})" for beside in args.beside
        )
        print(f"| {way} | {' | '.join(cells)} |")  # noqa: T201


if __name__ == "__main__":
    flags.run(main, Args)
