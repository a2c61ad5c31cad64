"""Fixtures: every test runs in an empty folder, on one set of tiny sizes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cleanrl_utils import config, models

os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network

TEACHER = models.ZOO / "PongNoFrameskip-v4-dqn_atari-seed1"

TINY_RUN = (
    "--env-id PongNoFrameskip-v4 --num-envs 2 --total-timesteps 64 --learning-starts 16 --buffer-size 200 --batch-size 4 "
    "--target-network-frequency 16 --eval-episodes 1 --eval-max-frames 200 --no-compile --device cpu"
).split()
TINY_TEACHER = (
    "--teacher-steps 64 --teacher-eval-episodes 2 --eval-max-frames 1500 --offline-steps 8 "
    "--offline-target-network-frequency 4 --student nature"
).split()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, so that `runs/` is the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train() -> Callable[..., Path]:
    """Run a script's `main` in process with the flags given; returns the run folder."""
    return lambda script, *flags: script.main(config.parse(script.Args, [*flags]))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run a script with bad flags; returns the one line of error, after checking status 2 and that nothing was written."""

    def run(script, *flags: str) -> str:
        before = sorted(Path().rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            config.run(script.main, script.Args, list(flags))
        assert stopped.value.code == 2
        assert sorted(Path().rglob("*")) == before, "something was written"
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert len(lines) == 1, lines
        return lines[0]

    return run


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def teacher() -> Path:
    """The folder of the Pong teacher in the box."""
    return TEACHER
