"""Sweeps on a real Slurm: an array of trainings, of which one is killed, one comes to its time limit, one is preempted."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY_DQN, scalars
from tests.support import slurm
from tests.test_sweeps import TOY, environment, folders, stored

SLOW_DQN = Path(__file__).parent / "support/slow_dqn/dqn.py"
COMMAND = f"python {SLOW_DQN} {shlex.join(TINY_DQN)} --train-frequency 10 --total-timesteps 3000 --checkpoint-frequency 500"

reason = slurm.missing()
if reason and os.environ.get("REQUIRE_SLURM"):
    pytest.fail(f"REQUIRE_SLURM is set, and there is none: {reason}", pytrace=False)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason), reason=reason)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Slurm]:
    """A Slurm that is up."""
    one = slurm.Slurm(tmp_path_factory.mktemp("slurm"), cores=4)
    try:
        one.start()
        yield one
    finally:
        one.stop()


def start(cluster: slurm.Slurm, command: str, *flags: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "cleanrl_utils.benchmark", "--env-ids", "CartPole-v1", "--command", command]
    words += ["--backend", "slurm", "--slurm-cpus-per-task", "1", *flags]
    return subprocess.Popen(words, env=environment(**cluster.env), stderr=subprocess.PIPE, text=True)


def until(process: subprocess.Popen, beginning: str) -> str:
    """What a sweep says, up to a line that begins so."""
    said = ""
    while not said.rpartition("\n")[0].rpartition("\n")[2].startswith(beginning):
        said += (line := process.stderr.readline())
        assert line, said
    return said


def end(process: subprocess.Popen, said: str = "") -> tuple[int, str]:
    """Status and error stream of a sweep that comes to its end."""
    said += process.communicate(timeout=240)[1]
    return process.returncode, said


def test_an_array_survives_a_time_limit_a_preemption_and_a_kill(cluster):
    """Seed 1 just runs; 2 comes to its time limit; 3 is put back in the queue, as by a preemption; 4 is killed."""
    flags = ["--num-seeds", "4", "--slurm-time", "1", "--slurm-signal-delay", "25"]
    first = start(cluster, COMMAND, *flags)
    slurm.wait(lambda: len(list(Path("runs").glob("*/checkpoints/*-0.zip"))) == 4, "four runs", cluster.logs, 120)
    os.kill(pids()["4"], signal.SIGKILL)
    names = cluster.ask("squeue", "--array", "--noheader", "--format=%i").split()
    assert len({name.split("_")[0] for name in names}) == 1, "one array"
    cluster.ask("scontrol", "requeue", next(name for name in names if name.endswith("_2")))

    status, said = end(first)
    assert (status, said.splitlines()[-1]) == (1, "3 complete, 1 failed"), said + cluster.logs()
    assert "CartPole-v1 seed 4 failed; the end of runs/sweeps/CartPole-v1__dqn__4__" in said
    assert [len(stored(run).get("resumed", [])) > 0 for run in folders()][1:] == [True, True, False]

    status, said = end(start(cluster, COMMAND, *flags))  # what is not complete goes on
    assert (status, said.splitlines()[-1]) == (0, "3 complete before, 1 complete"), said + cluster.logs()
    assert len(folders()) == 4
    for run in folders():
        assert stored(run)["status"] == "complete"
        steps = [step for step, _ in scalars(run)["charts/episodic_return"]]
        assert steps == sorted(steps), "each step is logged once"
        assert stored(run)["steps"] == 3000


def test_a_sweep_that_is_closed_leaves_its_jobs_and_the_same_command_looks_after_them(cluster):
    command = f"python {TOY} --pause 0.5"
    first = start(cluster, command, "--num-seeds", "2")
    said = until(first, "Slurm has")
    first.terminate()
    assert end(first)[0] == 128 + signal.SIGTERM
    status, again = end(start(cluster, command, "--num-seeds", "2"))
    assert (status, again.splitlines()[-1]) == (0, "2 complete"), again
    arrays = [next(line for line in lines.splitlines() if "Slurm has" in line) for lines in (said, again)]
    assert arrays[0] == arrays[1], "the same array"
    assert len(folders()) == 2


def test_what_slurm_refuses_is_told_in_one_line(cluster):
    status, said = end(start(cluster, f"python {TOY}", "--slurm-partition", "nowhere"))
    assert status == 2, said
    line = said.splitlines()[-1]  # sbatch has said its own before
    assert line.startswith("error: --backend slurm: sbatch refuses:")
    assert "partition" in line
    assert not folders()


def pids() -> dict[str, int]:
    """The processes of trainings that were begun anew, by seed."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if str(SLOW_DQN) in words and "--seed" in words:
                found[words[words.index("--seed") + 1]] = int(path.parent.name)
    return found
