"""What may not be read, cannot be written, or is not read to its end: one line or none, and no traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from cleanrl_utils.models.source import ZOO
from tests.conftest import all_slow
from tests.support.pages import ROOT

BOX = ZOO / "CartPole-v1-dqn-seed1"
FULL = "error: standard output: cannot be written (No space left on device)"
GAMES = f"evals {BOX} --episodes 1", f"enjoy --run {BOX} --eval-episodes 1"
OF_ROOT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
"""Without these, a process of root reads and writes everything."""
needs_modes = pytest.mark.skipif(
    not hasattr(os, "geteuid") or (os.geteuid() == 0 and shutil.which("setpriv") is None),
    reason="nothing here is kept from being read and written",
)
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, and signals for pipes")


def command(words: str, end: str = "", **env: str) -> tuple[int, str, str]:
    """The status of a command of ours, which may not read and write everything, and what it wrote on both streams."""
    start = OF_ROOT if os.geteuid() == 0 else []
    line = " ".join([*start, sys.executable, "-m", f"cleanrl_utils.{words}", end, "; exit ${PIPESTATUS[0]}"])
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def logged() -> Path:
    """A run folder with one logged value."""
    folder = Path(shutil.copytree(BOX, "runs/one"))
    with SummaryWriter(str(folder)) as events:
        events.add_scalar("charts/episodic_return", 1.0, 10)
    return folder


@pytest.fixture
def closed():
    """Set the modes of files and folders; undone at the end, so that they can be removed."""
    changed = []

    def close(path: Path, mode: int) -> None:
        changed.append((path, path.stat().st_mode))
        path.chmod(mode)

    yield close
    for path, mode in reversed(changed):
        path.chmod(mode)


# --- What may not be read ---


@needs_modes
def test_a_report_leaves_out_what_may_not_be_read(logged, closed):
    pytest.importorskip("matplotlib")
    folders = [Path(shutil.copytree(logged, f"runs/{name}")) for name in ("folder", "listed", "config", "events")]
    closed(folders[0], 0o000)
    closed(folders[1], 0o444)
    closed(folders[2] / "config.json", 0o000)
    (events,) = folders[3].glob("events*")
    closed(events, 0o000)
    status, _, said = command("report")
    assert status == 0, said
    assert Path("report/index.md").read_text().count("| CartPole-v1 | dqn | 1 |") == 2, "a score, and a run"
    for folder in folders[:2]:
        assert f"skipped: --runs {folder}: cannot be read (Permission denied)" in said
    assert f"skipped: --runs {folders[2]}: is no run folder: its config.json cannot be read (Permission denied)" in said
    assert f"skipped: {events} cannot be read (Permission denied)" in said

    closed(Path("report"), 0o555)
    status, _, said = command("report")
    assert (status, said.splitlines()[-1]) == (1, "error: report/curves.png: cannot be written (Permission denied)")
    status, _, said = command(f"report --runs {folders[0]}")
    assert (status, said) == (2, f"error: --runs {folders[0]}: cannot be read (Permission denied)\n")


# --- What cannot be written ---


@needs_modes
@pytest.mark.parametrize(
    ("flags", "status", "line"),
    [
        ("runs/one", 1, "runs/one/curve.png: cannot be written (Permission denied)"),
        ("runs/one --out nowhere/x.png", 1, "nowhere/x.png: cannot be written (No such file or directory)"),
        ("runs/one --out x.foo", 2, "--out x.foo: must end in ."),
        ("runs/damaged", 2, "RUN_FOLDER runs/damaged: has a config.json that is damaged, or not of a run"),
        ("runs/none", 2, "RUN_FOLDER runs/none: is no run folder"),
    ],
)
def test_curves_that_cannot_be_drawn_are_one_line(logged, closed, flags, status, line):
    pytest.importorskip("matplotlib")
    (logged / "curve.png").unlink()
    Path(shutil.copytree(logged, "runs/damaged"), "config.json").write_text("{")
    closed(logged, 0o555)
    found, _, said = command(f"curves {flags}")
    assert (found, said.count("\n")) == (status, 1), said
    assert said.startswith(f"error: {line}")
    assert not list(Path().rglob("*.tmp"))


@needs_modes
def test_a_sweep_in_a_folder_that_may_not_be_written_is_one_line(tmp_path, closed):
    closed(tmp_path, 0o555)
    status, _, said = command(f"benchmark --env-ids CartPole-v1 --num-seeds 1 --command 'python {ROOT}/cleanrl/dqn.py'")
    assert (status, said) == (1, "error: runs/sweeps/jobs: cannot be written (Permission denied)\n")


# --- Results that nobody reads ---


@needs_linux
@pytest.mark.parametrize("unbuffered", ["", *all_slow("1")])
@pytest.mark.parametrize("words", GAMES)
def test_results_on_a_full_disk_are_one_line(words, unbuffered):
    status, _, said = command(words, "> /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (status, said.splitlines()[-1]) == (1, FULL)
    assert Path("evaluation.md").exists() is words.startswith("evals")


@needs_linux
@pytest.mark.parametrize("unbuffered", ["", *all_slow("1")])
@pytest.mark.parametrize("words", [*GAMES, "zoo"])
def test_results_that_nobody_reads_end_a_command_quietly(words, unbuffered):
    status, _, said = command(words, "| true", PYTHONUNBUFFERED=unbuffered)
    assert (status, "error" in said) == (141, False), said
    assert Path("evaluation.csv").exists() is words.startswith("evals")


@needs_modes
def test_scores_that_cannot_be_written_are_printed(tmp_path, closed):
    closed(tmp_path, 0o555)
    status, printed, said = command(GAMES[0])
    assert (status, said.splitlines()[-1]) == (1, "error: evaluation.md: cannot be written (Permission denied)")
    assert "Raw rewards:" in printed
