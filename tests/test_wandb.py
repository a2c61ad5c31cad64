"""Weights & Biases fails in the middle of a run: training goes on and ends, and what was logged can be sent later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cleanrl_utils.record import commit, short
from cleanrl_utils.run import sinks
from tests.support.wandb_server import WandbServer

TRAINING = """
import types
from cleanrl_utils.run.sinks import WeightsAndBiases
args = types.SimpleNamespace(wandb_project_name="p", wandb_entity=None, env_id="e", exp_name="x")
sink = WeightsAndBiases(args, "name", {})
assert 0 < sink.run.settings.finish_timeout <= 15
for step in range(30):
    sink.scalars({"loss": step / 2}, step)
    input(f"{step}\\n")
sink.close({"score": 1.0})
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if "WANDB" not in key}
    return kept | {"HOME": str(home), "PYTHONPATH": str(Path(sinks.__file__).parents[2])} | more


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


STOPPED = """
from cleanrl_utils.report import runs
from cleanrl_utils.run.run import Run
from toy_training import Args
try:
    run = Run(Args(track=True, seed=2))
    with run.started({"threads": 1}):
        run.scalars({"charts/episodic_return": 1.0}, 10)
        raise SystemExit(143)
except SystemExit:
    pass
assert sorted(run.get("status") for run in runs.from_wandb("me/toys")) == ["complete", "stopped"]
"""
READ = """
import json, pathlib
from cleanrl_utils.report import runs
(run,) = runs.from_wandb("me/toys")
(folder,) = runs.from_folders(["runs"], "--runs")
assert run.series.keys() >= {"charts/episodic_return"}
for ours, theirs in zip(folder.series["charts/episodic_return"][::2], run.series["charts/episodic_return"][::2]):
    assert (ours == theirs).all()
assert run.name == pathlib.Path(folder.name).name
assert run.config["flags"] == folder.config["flags"]
assert [run.get(key) for key in ("status", "seed", "script")] == ["complete", 1, "toy_training"]
assert run.get("commit") == folder.get("commit")
"""
TRACKED = """
from pathlib import Path
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.run.run import Run
from toy_training import Args
run = Run(Args(track=True))
with run.started({"threads": 1}):
    for step in (10, 20, 30):
        run.scalars({"charts/episodic_return": step / 10}, step)
    films = Path("videos", run.folder.name)
    films.mkdir(parents=True)
    (films / "step-30.mp4").write_bytes(b"film")
    run.finish({"steps": 30}, {"agent": Evaluation([7.0], [1], 0)})
"""


def test_a_tracked_run_has_a_group_tags_configuration_films_and_its_scores(tmp_path: Path) -> None:
    server = WandbServer()
    env = environment(tmp_path, **server.env, WANDB_TAGS="mine")
    env["PYTHONPATH"] += f":{Path(__file__).parent / 'support'}"
    subprocess.run([sys.executable, "-c", TRACKED], cwd=tmp_path, env=env, check=True, timeout=60)
    ((run, said),) = server.started.items()
    assert said["groupName"] == "CartPole-v1, toy"
    assert said["jobType"] == "toy_training"
    assert set(said["tags"]) == {"mine", "toy_training", f"commit-{short(commit())}"}
    config = json.loads(said["config"])
    assert config["flags"]["value"]["seed"] == 1
    assert config["commit"]["value"] == commit()
    assert server.summary[run]["score/agent"] == 7
    films = [row["videos/step-30"] for row in server.rows[run] if "videos/step-30" in row]
    assert [film["_type"] for film in films] == ["video-file"]
    subprocess.run([sys.executable, "-c", READ], cwd=tmp_path, env=env, check=True, timeout=60)  # a report reads it back
    subprocess.run([sys.executable, "-c", STOPPED], cwd=tmp_path, env=env, check=True, timeout=60)
