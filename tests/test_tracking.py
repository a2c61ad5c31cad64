"""Run folders, event files, Weights & Biases offline, curves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from cleanrl import dqn_atari as dqn
from cleanrl_utils import curves
from cleanrl_utils.errors import BadInput
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.run import tracker as tracking
from cleanrl_utils.run.run import Run
from cleanrl_utils.run.tracker import Tracker
from tests.conftest import TINY_RUN, scalars


def test_two_runs_in_the_same_second_have_two_folders():
    args = dqn.Args(env_id="ALE/Pong-v5", seed=3)
    folders = []
    for _ in range(2):
        run = Run(args)
        with run.started({}):
            folders.append(run.folder)
    assert folders[0] != folders[1]
    assert all(folder.name.startswith("ALE-Pong-v5__dqn_atari__3__") for folder in folders)


def test_the_rate_leaves_out_what_ran_while_the_clock_stood_still(monkeypatch):
    now = 100.0
    monkeypatch.setattr(tracking.time, "perf_counter", lambda: now)
    tracker = Tracker(Path("nowhere"), [])
    tracker.begin("training", 1000, "steps", 0)
    now += 4
    with tracker.paused():
        now += 50
    now += 6
    tracker.advance(200)
    assert tracker.rate() == 20
    tracker.close({})


def test_tensorboard_shows_the_phases_together():
    from tensorboard import program

    run = Run(dqn.Args())
    with run.started({}):
        run.scalars({"charts/teacher/avg_episodic_return": 19.0}, 0)
        run.scalars({"charts/offline/avg_episodic_return": 12.0}, 1000)
        run.scalars({"eval/episodic_return": 18.0}, 2000)
    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", "runs", "--port", "0", "--load_fast", "false", "--host", "127.0.0.1"])
    url = board.launch() + "data/plugin/custom_scalars/"

    def ask(path: str) -> dict:
        with urllib.request.urlopen(url + path) as answer:
            return json.load(answer)

    for _ in range(100):
        if layout := ask("layout"):  # it reads the folder in a thread
            break
        time.sleep(0.1)
    charts = {chart["title"]: chart["multiline"]["tag"] for part in layout["category"] for chart in part["chart"]}
    tag = "|".join(charts["teacher, offline and online"])
    found = ask(f"scalars?run={run.folder.name}&{urllib.parse.urlencode({'tag': tag})}")["tag_to_events"]
    assert {name: events[0][1:] for name, events in found.items()} == {
        "charts/teacher/avg_episodic_return": [0, 19.0],
        "charts/offline/avg_episodic_return": [1000, 12.0],
        "eval/episodic_return": [2000, 18.0],
    }


def test_metrics_reach_the_event_file_with_their_steps():
    run = Run(dqn.Args())
    with run.started({}):
        run.scalars({"losses/td_loss": 0.5, "losses/q_values": 2.0}, 10)
        run.scalars({}, 11)
        run.episodes([(7.0, 100), (9.0, 200)], 20)
    assert scalars(run.folder) == {
        "losses/td_loss": [(10, 0.5)],
        "losses/q_values": [(10, 2.0)],
        "charts/episodic_return": [(20, 7.0), (20, 9.0)],
        "charts/episodic_length": [(20, 100.0), (20, 200.0)],
    }


def test_config_says_running_until_it_is_complete():
    run = Run(dqn.Args())
    with run.started({"frame_skip": 4}):
        path = run.folder / "config.json"
        assert json.loads(path.read_text())["status"] == "running"
        run.finish({"steps": 8}, {"agent": Evaluation([1.0, 3.0], [10, 20], 1)})
    config = json.loads(path.read_text())
    assert (config["status"], config["steps"]) == ("complete", 8)
    assert config["protocol"] == {"frame_skip": 4}
    assert config["evaluations"] == {
        "agent": {"returns": [1.0, 3.0], "lengths": [10, 20], "capped": 1, "clipped_returns": []}
    }


@pytest.mark.slow
@pytest.mark.parametrize("script", ["dqn_atari", "dqn_atari_jax"])
def test_weights_and_biases_sees_the_scalars_offline_without_an_account(tmp_path, script):
    """In a process of its own, since W&B keeps a service running."""
    code = f"""
from cleanrl import {script} as script
from cleanrl_utils.flags import parse
script.LOG_FREQUENCY = 50
script.main(parse(script.Args, {[*TINY_RUN, "--total-timesteps", "50", "--track"]!r}))
"""
    env = {key: value for key, value in os.environ.items() if "WANDB" not in key}
    env |= {"WANDB_MODE": "offline", "PYTHONPATH": str(Path(dqn.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = log.read_bytes()  # protocol buffers, in which names stand as they are
    assert all(name in content for name in (b"losses/td_loss", b"losses/q_values", b"charts/SPS", b"global_step"))


def test_curves_draws_the_latest_run(train, capsys):
    pytest.importorskip("matplotlib")
    train(dqn, *TINY_RUN, "--total-timesteps", "20")
    folder = train(dqn, *TINY_RUN, "--save-model", "--exp-name", "second")
    os.utime(folder / "config.json", (2e9, 2e9))
    picture = curves.main(curves.Args())
    assert picture == folder / "curve.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "second.cleanrl_model" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["cleanrl_utils.curves", "cleanrl_utils.report.plots", "benchmark.learning_curves"])
def test_pictures_are_drawn_under_the_backend_that_a_notebook_exports(module):
    """Its kernel does so for every command that is started from it; the package that has it is not installed here."""
    code = f"import importlib, sys; importlib.import_module('{module}')\nfrom cleanrl_utils.drawing import plt\nplt.figure()"
    env = os.environ | {"MPLBACKEND": "module://a_kernels.own_backend", "PYTHONPATH": str(Path(curves.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_curves_without_a_run_says_so():
    with pytest.raises(BadInput, match="no run"):
        curves.main(curves.Args())
