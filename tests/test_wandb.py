"""Weights & Biases fails in the middle of a run: training goes on and ends, and what was logged can be sent later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cleanrl_utils import tracking
from tests.wandb_server import WandbServer

TRAINING = """
import types
from cleanrl_utils.tracking import WeightsAndBiases
sink = WeightsAndBiases(types.SimpleNamespace(wandb_project_name="p", wandb_entity=None), "name", {})
assert 0 < sink.run.settings.finish_timeout <= 15
for step in range(30):
    sink.scalars({"loss": step / 2}, step)
    input(f"{step}\\n")
sink.close({"score": 1.0})
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if "WANDB" not in key}
    return kept | {"HOME": str(home), "PYTHONPATH": str(Path(tracking.__file__).parents[1])} | more


def train(folder: Path, faults: dict[int, Callable[[int], object]], **env: str) -> tuple[str, float]:
    """Log 30 steps in a process, with faults after some of them; returns its error stream and how long its end took."""
    how = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"cwd": folder, "env": environment(folder, **env)}
    process = subprocess.Popen([sys.executable, "-c", TRAINING], text=True, **how)
    try:
        for step in range(30):
            assert f"{step}\n" in iter(process.stdout.readline, ""), process.communicate()[1]
            faults.get(step, lambda _: None)(process.pid)
            print(file=process.stdin, flush=True)
        started = time.perf_counter()
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return errors, time.perf_counter() - started


def assert_whole(server: WandbServer) -> None:
    ((run, rows),) = server.rows.items()
    assert [(row["global_step"], row["loss"]) for row in rows] == [(step, step / 2) for step in range(30)]
    assert server.summary[run]["score"] == 1
    assert run in server.finished


def test_a_server_that_goes_for_good_does_not_hold_the_run_up_and_gets_all_of_it_later(tmp_path: Path) -> None:
    server, later = WandbServer(), WandbServer()
    errors, seconds = train(tmp_path, {9: lambda _: server.stop()}, WANDB_FINISH_TIMEOUT="1", **server.env)
    assert errors.count("--track: ") == 1, errors
    assert seconds < 10
    sync = [sys.executable, "-m", *errors.split("--track: ")[1].split("`")[1].split()]
    subprocess.run(sync, cwd=tmp_path, env=environment(tmp_path, **later.env), check=True, timeout=60)
    assert_whole(later)


def test_a_server_that_comes_back_gets_all_of_it(tmp_path: Path) -> None:
    server = WandbServer()
    faults = {9: lambda _: server.stop(), 29: lambda _: threading.Timer(1, server.start).start()}
    assert "--track: " not in train(tmp_path, faults, **server.env)[0]
    assert_whole(server)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_training_goes_on_when_the_clients_service_is_killed(tmp_path: Path) -> None:
    def kill(pid: int) -> None:
        children = [child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
        os.kill(int(next(c for c in children if "wandb-core" in Path(f"/proc/{c}/comm").read_text())), signal.SIGKILL)

    errors, seconds = train(tmp_path, {9: kill}, WANDB_MODE="offline")
    assert errors.count("--track: ") == 1, errors
    assert seconds < 10
