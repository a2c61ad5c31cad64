"""`--tracker trackio`: what the real package has in its database after runs that log to it, on this machine alone."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cleanrl import dqn
from cleanrl_utils.run import sinks
from tests.conftest import TINY_DQN

needs_trackio = pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="needs the extra `trackio`")

TRACKED = """
import os, sys
from pathlib import Path
CALLS = ("socket.connect", "socket.bind", "socket.getaddrinfo")
sys.addaudithook(lambda event, about: os.write(1, f"{event} {about}".encode()) if event in CALLS else None)
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.run.run import Run
from toy_training import Args
run = Run(Args(track=True, tracker="trackio"))
with run.started({"threads": 1}):
    run.scalars({"charts/offline/q_loss": 0.5}, 20)
    for step in (10, 20, 30):
        run.scalars({"charts/episodic_return": step / 10, "losses/td_loss": float("inf")}, step)
    films = Path("videos", run.folder.name)
    films.mkdir(parents=True)
    (films / "step-30.mp4").write_bytes(b"film")
    run.scalars({"eval/episodic_return": 7.0}, 30)
    run.finish({"steps": 30}, {"agent": Evaluation([7.0], [1], 0)})
"""
HALF = """
import types
from cleanrl_utils.run.sinks import Trackio
args = types.SimpleNamespace(wandb_project_name="toys", env_id="e", exp_name="x")
sink = Trackio(args, "name", {})
for step in range(FIRST, FIRST + 10):
    sink.scalars({"loss": step / 2}, step)
sink.close({})
"""


def python(code: str, folder: Path, **env: str) -> tuple[str, str]:
    """Run code in a process with a home of its own; returns its output and its error stream."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRACKIO", "HF_"))}
    root = Path(sinks.__file__).parents[2]
    kept |= {"HOME": str(folder), "PYTHONPATH": f"{root}:{root / 'tests' / 'support'}"} | env
    how = {"cwd": folder, "env": kept, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run([sys.executable, "-c", code], **how)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def rows(folder: Path) -> tuple[set[str], list[tuple[int, dict[str, Any]]], dict[str, Any]]:
    """The runs of the project `toys`, their rows in order, and the configuration."""
    with sqlite3.connect(folder / "trackio" / "toys.db") as database:
        found = database.execute("SELECT run_id, step, metrics FROM metrics ORDER BY id").fetchall()
        ((config,),) = database.execute("SELECT config FROM configs").fetchall()
    return {run for run, *_ in found}, [(step, json.loads(metrics)) for _, step, metrics in found], json.loads(config)


@needs_trackio
def test_a_run_is_in_the_database_with_its_clocks_its_films_and_its_scores_and_nothing_left_the_machine(tmp_path: Path):
    said, errors = python(TRACKED, tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert said == "", "no connection, and nothing where programs read results"
    assert "detected" not in errors, "the machine's load would be logged"
    runs, logged, config = rows(tmp_path)
    assert len(runs) == 1
    assert logged[:4] == [
        (20, {"charts/offline/q_loss": 0.5}),
        (10, {"charts/episodic_return": 1, "losses/td_loss": "Infinity"}),
        (20, {"charts/episodic_return": 2, "losses/td_loss": "Infinity"}),
        (30, {"charts/episodic_return": 3, "losses/td_loss": "Infinity"}),
    ]
    assert logged[4] == (30, {"eval/episodic_return": 7})
    assert logged[5][0] == 30
    film = logged[5][1]["videos/step-30"]
    assert (tmp_path / "trackio" / "media" / film["file_path"]).read_bytes() == b"film"
    (step, last), others = logged[6], logged[7:]
    assert (step > 30, last["score/agent"], last["steps"], others) == (True, 7, 30, [])
    assert config["flags"]["tracker"] == "trackio"
    assert config["script"] == "toy_training"
    assert config["_Group"] == "CartPole-v1, toy"


@needs_trackio
def test_a_run_that_is_resumed_goes_on_in_the_same_run(tmp_path: Path):
    for first in (0, 10):
        python(HALF.replace("FIRST", str(first)), tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    runs, logged, _ = rows(tmp_path)
    assert len(runs) == 1
    assert logged == [(step, {"loss": step / 2}) for step in range(20)]


@needs_trackio
def test_a_database_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path):
    (tmp_path / "file").touch()
    _, errors = python(TRACKED, tmp_path, TRACKIO_DIR=str(tmp_path / "file" / "trackio"))
    assert errors.count("trackio failed to flush metric logs") == 1
    (config,) = (tmp_path / "runs").glob("*/config.json")
    assert json.loads(config.read_text())["status"] == "complete"


@needs_trackio
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"TRACKIO_SPACE_ID": "toys"}, "refuses: You must be logged in to Hugging Face"),
        ({"TRACKIO_SERVER_URL": "127.0.0.1"}, "refuses: `server_url` must be a full URL"),
        ({"TRACKIO_SERVER_URL": "http://127.0.0.1"}, "refuses: Self-hosted logging requires a write token"),
    ],
)
def test_trackio_that_refuses_leaves_no_folder(refused, monkeypatch, settings, says):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "nowhere")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert f"--tracker trackio: {says}" in refused(dqn, *TINY_DQN, "--track", "--tracker", "trackio")


def test_trackio_that_is_not_installed_is_named_with_its_extra(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    line = refused(dqn, *TINY_DQN, "--track", "--tracker", "trackio")
    assert line == "error: --tracker trackio: needs `trackio`: pip install -e '.[trackio]'"


def test_a_tracker_that_there_is_not_is_refused(refused):
    assert "--tracker" in refused(dqn, *TINY_DQN, "--track", "--tracker", "tensorboard")
