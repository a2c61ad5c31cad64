"""The benchmark of speed runs, and what it says adds up. Nothing here asserts a time."""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmark"


@pytest.fixture(autouse=True)
def _benchmark_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK))


@pytest.fixture
def speed():
    import speed

    return speed


@pytest.mark.slow
def test_a_script_and_a_peer_are_measured_in_turn(speed, monkeypatch, capsys):
    ceilings = {"product, float32": 100.0, "convolution, float32": 200.0, "copy": 10.0}
    monkeypatch.setattr(speed, "help_times", lambda: {"dqn_atari.py": 1.0})
    monkeypatch.setattr(speed, "ceilings", lambda _: ceilings)
    speed.main(
        speed.Args(only=("plain loop", "dqn_atari_jax.py"), batch_size=2, rounds=2, window=0.1, device="cpu", out="out")
    )
    result = json.loads(Path("out.json").read_text())
    assert [(one["group"], one["name"]) for one in result["turns"]] == [
        ("DQN, steps/s", "plain loop"),
        ("DQN, steps/s", "dqn_atari_jax.py"),
        ("DQN's update, updates/s", "dqn_atari_jax.py"),
    ]
    for one in result["turns"]:
        assert [turn["rate"] for turn in one["turns"]] == [turn["count"] / turn["seconds"] for turn in one["turns"]]
        assert all(turn["count"] > 0 and turn["memory"] > 0.05 for turn in one["turns"])
    plain, ours, updates = (one["turns"] for one in result["turns"])
    assert all(turn["count"] % 8 == 0 for turn in ours), "whole vector steps"
    assert all(sum(turn["stages"].values()) == pytest.approx(turn["seconds"], rel=0.05) for turn in ours), "all of the time"
    (shares,) = result["stages"].values()
    assert sum(shares.values()) == pytest.approx(1)

    ratios = [a["rate"] / b["rate"] for a, b in zip(ours, plain, strict=True)]
    told = capsys.readouterr().out
    per_second = np.median([turn["rate"] for turn in updates])
    gflop = result["updates"]["dqn_atari"]["GFLOP"]
    assert f"| dqn_atari_jax.py | {1e3 / per_second:.1f} | {gflop:.2f} | {gflop * per_second:.0f} " in told
    assert f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" in told
    assert told == Path("out.md").read_text()
    assert Path("out.png").stat().st_size > 1000


def test_the_work_of_an_update_is_counted(speed):
    """Of the Nature CNN, by hand: multiply-adds of each layer, forward in two networks, backward to inputs and kernels."""
    layers = [20 * 20 * 32 * 4 * 64, 9 * 9 * 64 * 32 * 16, 7 * 7 * 64 * 64 * 9, 3136 * 512, 512 * 6]
    passes = 4 * sum(layers) - layers[0]  # the first layer has no gradient of its input
    cost = speed.update_cost("dqn_atari", batch_size=32)
    assert cost["GFLOP"] == pytest.approx(2e-9 * 32 * passes, rel=0.01)
    num_weights = 4 * 64 * 32 + 32 + 32 * 16 * 64 + 64 + 64 * 9 * 64 + 64 + 3136 * 512 + 512 + 512 * 6 + 6
    assert cost["GB"] == pytest.approx((44 * num_weights + 32 * 5 * 7056) / 1e9)


def test_a_gate_opens_for_a_turn_and_counts_what_is_done_in_it():
    from gated import Gate

    ours, theirs = Pipe()
    gate, done = Gate(theirs, warm_up=10), []

    def loop():
        try:
            while True:
                done.append(4)
                gate.mark("store")
                gate.step(4)
        except SystemExit:  # the other end is closed
            done.append(0)

    import torch  # noqa: F401 - a gate waits for the framework of its process

    thread = threading.Thread(target=loop)
    thread.start()
    ours.send(0.0)
    turn = ours.recv()
    assert sum(done) == 12 + 4, "the warm-up's are not counted"
    assert turn.count == 4
    assert set(turn.stages) == {"store", "synchronize"}
    ours.close()
    thread.join(10)
    assert done[-1] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_soak_sees_what_a_process_takes():
    import soak

    before, size = soak.look(os.getpid()), 40_000_000
    with mmap.mmap(-1, size) as fresh:  # memory that the process cannot have had before
        fresh.write(b"1" * size)
        after = soak.look(os.getpid())
    assert after[1] >= before[1]
    assert after[2] - before[2] >= 0.9 * size / 1e9
    with open(os.devnull), open(os.devnull):
        waiting = threading.Thread(target=(done := threading.Event()).wait)
        waiting.start()
        more = soak.look(os.getpid())
        done.set()
        waiting.join()
    assert more[3:] == (before[3] + 2, before[4] + 1)
    assert soak.look(2**22 + 1) is None, "no such process"
