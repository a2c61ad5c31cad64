"""Checkpoints: a run that was stopped and resumed ends as the run left alone, bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import zipfile
from collections import deque
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmark.kills import differing, outcome
from cleanrl import dqn, dqn_atari, dqn_jax
from cleanrl_utils.evals import atari
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.models.source import ZOO
from cleanrl_utils.run import archive as archives
from cleanrl_utils.run import checkpoint
from cleanrl_utils.run import run as run_
from tests.conftest import TINY_DQN, TINY_RUN, TINY_TEACHER, all_slow, scalars
from tests.support import children

# Exploring actions and rare updates, so that each field of a state matters: random states, metrics of the last update.
OFTEN = ["--end-e", "0.5", "--train-frequency", "16"]
VECTORS = [*TINY_DQN, *OFTEN, "--save-model", "--eval-frequency", "500", "--checkpoint-frequency", "300"]
ATARI = [*TINY_RUN, "--save-model", "--total-timesteps", "300", "--eval-frequency", "100", "--checkpoint-frequency", "40"]
WITH_ENDS = [*ATARI, *OFTEN, "--env-id", "BreakoutNoFrameskip-v4", "--total-timesteps", "500"]
BOTH = [
    *ATARI,
    *OFTEN,
    *TINY_TEACHER,
    "--offline-steps",
    "90",
    "--teacher-steps",
    "100",
    "--offline-eval-frequency",
    "45",
    "--eval-frequency",
    "150",
]
IN_TRAINING, IN_PHASES = {"training": (20, 240)}, {"collection": (20, 45), "offline": (40, 80), "online": (20, 80)}
RUNS = {
    "dqn": (VECTORS, {"training": (300, 1000)}),
    "dqn_jax": (VECTORS, {"training": (300, 1000)}),
    "dqn_atari": (WITH_ENDS, IN_TRAINING),
    "dqn_atari_jax": (WITH_ENDS, IN_TRAINING),
    "qdagger_dqn_atari_impalacnn": (BOTH, IN_PHASES),
    "qdagger_dqn_atari_jax_impalacnn": (BOTH, IN_PHASES),
}
"""Flags of each script's run, and between which steps of each phase to interrupt it."""


def the_run() -> Path:
    """The only run under runs/."""
    (folder,) = Path("runs").iterdir()
    return folder


def resume(name: str) -> list[str]:
    """Flags that go on with the only run, or start it where it has left no checkpoint."""
    if list(Path("runs").glob("*/checkpoints/[0-9]*.zip")):
        return ["--resume", str(the_run())]
    shutil.rmtree("runs", ignore_errors=True)
    return RUNS[name][0]


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """What the run of a script comes to if nothing happens to it; each is run once."""
    found = {}

    def run(name: str) -> dict:
        if name not in found:
            folder, before = tmp_path_factory.mktemp("alone"), Path.cwd()
            os.chdir(folder)
            status, errors = children.run(getattr(children, name), *RUNS[name][0])
            assert status == 0, errors
            found[name] = outcome(the_run())
            os.chdir(before)
        return found[name]

    return run


def draws(name: str, rng: np.random.Generator) -> list[tuple[str, int, signal.Signals]]:
    """Where, at which time of being there, and by what a run is interrupted: once in each phase, and twice elsewhere."""
    phases = RUNS[name][1]
    others = [("writing", (1, 40)), ("logging", (1, 4)), ("flushing", (1, 7))]
    evaluations, loops = (350, 4) if "offline" in phases else (20, 2)
    others += [("evaluation", (1, evaluations)), ("between", (1, loops))]
    places = [*phases.items(), *(others[i] for i in rng.choice(len(others), 2, replace=False))]
    sent = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], len(places))
    numbers = [int(rng.integers(*steps)) for _, steps in places]
    return [(place, number, signal.Signals(by)) for (place, _), number, by in zip(places, numbers, sent, strict=True)]


def end_as_left_alone(name: str, once: bool, left_alone) -> None:
    """Interrupt a run, once or again and again, and compare."""
    script, flags = getattr(children, name), RUNS[name][0]
    seed = random.SystemRandom().randrange(2**32)
    rng, done = np.random.default_rng(seed), []
    moments = draws(name, rng)
    for place, number, sent in [moments[rng.integers(len(moments))]] if once else moments:
        status, errors = children.run(script, *flags, before=children.receive, args=(place, number, sent))
        done.append((place, number, sent, status))
        if status == 0:  # it did not come there so often
            break
        assert status in (-sent, 128 + sent), (seed, done, errors)
        assert "Traceback" not in errors, (seed, done, errors)
        flags = resume(name)
    else:
        status, errors = children.run(script, *flags)
    assert status == 0, (seed, done, errors)
    assert differing(outcome(the_run()), left_alone(name)) == [], (seed, done)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "qdagger_dqn_atari_impalacnn" else pytest.mark.slow) for name in RUNS],
)
def test_a_run_interrupted_at_a_random_moment_ends_as_the_run_left_alone(name, left_alone):
    """By a kill, SIGTERM or Ctrl-C: in a phase, between phases, in an evaluation, while a checkpoint or a log is written."""
    end_as_left_alone(name, True, left_alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_interrupted_again_and_again_ends_as_the_run_left_alone(name, left_alone):
    """In each phase, and twice elsewhere."""
    end_as_left_alone(name, False, left_alone)


@pytest.mark.parametrize(
    ("name", "period"),
    [
        ("dqn", "0"),
        pytest.param("dqn_atari", "0", marks=pytest.mark.slow),
        # Arrays whose memory updates take over have to be read in between.
        pytest.param("dqn_atari_jax", "every step", marks=pytest.mark.slow),
        pytest.param("dqn_atari", "130", marks=pytest.mark.slow),
        pytest.param("dqn_atari", "by time", marks=pytest.mark.slow),
        pytest.param("dqn_jax", "every step", marks=pytest.mark.slow),
        pytest.param("qdagger_dqn_atari_impalacnn", "0", marks=pytest.mark.slow),
        pytest.param("qdagger_dqn_atari_jax_impalacnn", "0", marks=pytest.mark.slow),
    ],
)
def test_checkpoints_change_nothing(name, period, left_alone):
    """The run left alone writes one every 40 steps."""
    flags = [*RUNS[name][0], "--checkpoint-frequency", period if period.isdigit() else "None"]
    status, errors = children.run(getattr(children, name), *flags, before=at_every_step if period == "every step" else None)
    assert status == 0, errors
    assert differing(outcome(the_run()), left_alone(name)) == []
    assert not (the_run() / "checkpoints").exists(), "the run is complete"


def at_every_step(_) -> None:
    """Checkpoints are due at every step from 100 to 200, where each script learns."""
    due = checkpoint.Checkpoints.due

    def often(self: checkpoint.Checkpoints, step: int) -> bool:
        return due(self, step) or 100 < step <= 200

    checkpoint.Checkpoints.due = often


@pytest.mark.parametrize("name", ["dqn", *all_slow("dqn_atari")])
def test_games_end_in_the_runs_that_are_interrupted_here(name, left_alone):
    assert "charts/episodic_return" in left_alone(name)


@pytest.mark.slow
def test_the_returns_that_the_coefficient_needs_go_on_too():
    """In games that end at every step, or the distillation would be whole for all of a short run."""
    script, flags = children.qdagger_dqn_atari_impalacnn, [*BOTH, "--offline-steps", "10", "--total-timesteps", "160"]
    ends = []
    for kill in ((), ("online", 45)):
        if kill:
            assert children.run(script, *flags, before=end_games, args=kill)[0] == -9
            flags = ["--resume", str(the_run())]
        assert children.run(script, *flags, before=end_games)[0] == 0
        ends.append(outcome(the_run()))
        shutil.move("runs", f"runs {len(ends)}")
    assert differing(*ends) == []
    assert 0 < ends[0]["charts/distill_coeff"][1][2] < 3


def end_games(script, *kill) -> None:
    """Report a game at every step, with returns between a random player's and the teacher's, and die if asked to."""

    class Endless(script.Games):
        def recv(self):
            return super().recv()._replace(finished=[(-2.0 + self.envs.history.lengths[0] % 7 * 0.25, 1)])

    script.Games = Endless
    if kill:
        children.die(script, *kill)


def test_an_environment_that_does_not_come_back_is_cut_and_told_and_goes_on_the_same_each_time():
    """It draws from the global random states, which are saved. The first part of both is one run, which no seed gives."""
    flags = [*VECTORS, "--env-id", "tests.support.probes:Careless-v0"]
    children.run(children.dqn, *flags, before=children.die, args=("training", 950))
    shutil.copytree("runs", "again/runs")
    ends = []
    for folder, kill in ((Path.cwd(), None), (Path("again").absolute(), children.die)):
        os.chdir(folder)
        if kill is not None:
            assert children.run(children.dqn, "--resume", str(the_run()), before=kill, args=("training", 100))[0] == -9
        status, errors = children.run(children.dqn, "--resume", str(the_run()))
        assert status == 0, errors
        assert "tests.support.probes:Careless-v0 does not reproduce what the checkpoint saw" in errors
        assert "are cut" in json.loads((the_run() / "config.json").read_text())["resumed"][-1]["changed"][-1]
        ends.append(outcome(the_run()))
    assert differing(*ends) == []


# --- Signals ---


def test_sigterm_writes_a_checkpoint_and_says_how_to_go_on():
    script, flags = children.qdagger_dqn_atari_impalacnn, BOTH
    status, errors = children.run(script, *flags, before=children.receive, args=("collection", 17, signal.SIGTERM))
    assert status == 128 + signal.SIGTERM, errors
    assert f"step 34 of collection: --resume {the_run()}" in errors
    assert json.loads((the_run() / "config.json").read_text())["status"] == "stopped"


def test_a_run_killed_while_its_offline_student_is_evaluated_goes_on_from_there(left_alone):
    name = "qdagger_dqn_atari_impalacnn"
    status, errors = children.run(getattr(children, name), *BOTH, before=children.die, args=("evaluation", 200))
    assert status == -signal.SIGKILL, errors
    assert sorted((the_run() / "checkpoints").iterdir())[-1].name.endswith("-offline-90.zip")
    status, errors = children.run(getattr(children, name), *resume(name))
    assert status == 0, errors
    assert differing(outcome(the_run()), left_alone(name)) == []


@pytest.mark.slow
def test_ctrl_c_ends_an_evaluation_at_once_and_a_second_one_the_checkpoint_too():
    script = children.dqn_atari
    status, errors = children.run(script, *ATARI, before=interrupt_evaluation)
    assert status == 128 + signal.SIGINT, errors
    before = sorted((the_run() / "checkpoints").iterdir())
    assert before[-1].name.endswith("-training-100.zip")
    assert "eval/episodic_return" not in scalars(the_run()), "it was left"
    status, second_errors = children.run(script, "--resume", str(the_run()), before=interrupt_twice)
    assert status == 128 + signal.SIGINT, second_errors
    assert sorted((the_run() / "checkpoints").iterdir()) == before, "the second came while a new one was written"
    assert "Traceback" not in errors + second_errors
    assert children.run(script, "--resume", str(the_run()))[0] == 0
    assert [step for step, _ in scalars(the_run())["eval/episodic_return"]] == [100, 200, 300]


def interrupt_evaluation(script) -> None:
    """Ctrl-C in the middle of the first evaluation, at step 100."""
    children.at_tick(script, "evaluation", 20, lambda: os.kill(os.getpid(), signal.SIGINT))


def interrupt_twice(script) -> None:
    """Ctrl-C in training, and again while its checkpoint is written."""
    children.at_tick(script, "training", 5, lambda: os.kill(os.getpid(), signal.SIGINT))
    children.at_tick(script, "writing", 12, lambda: os.kill(os.getpid(), signal.SIGINT))


def test_a_signal_without_checkpoints_closes_the_logs():
    flags = [*ATARI, "--checkpoint-frequency", "0"]
    status, errors = children.run(children.dqn_atari, *flags, before=children.receive, args=("training", 20, signal.SIGTERM))
    assert status == 128 + signal.SIGTERM, errors
    assert "--resume" not in errors
    assert json.loads((the_run() / "config.json").read_text())["status"] == "stopped"


# --- What is refused ---

STOPPED = [*VECTORS, "--checkpoint-frequency", "100"]


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory) -> Path:
    """The folder `runs` of a run of dqn.py that was killed behind its fourth checkpoint."""
    folder, before = tmp_path_factory.mktemp("stopped"), Path.cwd()
    os.chdir(folder)
    children.run(children.dqn, *STOPPED, before=children.die, args=("training", 450))
    os.chdir(before)
    return folder / "runs"


@pytest.fixture
def stopped(stopped_once) -> Path:
    """A copy of it."""
    shutil.copytree(stopped_once, "runs")
    return the_run()


def change_version(_) -> None:
    versions = run_.versions
    run_.versions = lambda: versions() | {"torch": "2.0.0"}


@pytest.mark.parametrize(
    ("flags", "before", "says"),
    [
        (["--threads", "3"], None, "threads 1 then, 3 now"),
        pytest.param([], change_version, "2.0.0 now", marks=pytest.mark.slow),
    ],
)
def test_other_settings_are_refused_unless_resumed_anyway(stopped, flags, before, says):
    files = contents(stopped)
    status, errors = children.run(children.dqn, "--resume", str(stopped), *flags, before=before)
    assert status == 2
    assert says in errors
    assert "--resume-anyway" in errors
    assert contents(stopped) == files
    status, errors = children.run(children.dqn, "--resume", str(stopped), "--resume-anyway", *flags, before=before)
    assert status == 0, errors
    assert "will not be those of an uninterrupted run" in errors


@pytest.mark.parametrize("step", [5, 900], ids=["before its next checkpoint is due", "after"])
def test_a_run_resumed_with_other_threads_goes_on_with_them(stopped, step):
    other = ["--threads", "3", "--resume-anyway"]
    children.run(children.dqn, "--resume", str(stopped), *other, before=children.die, args=("training", step))
    status, errors = children.run(children.dqn, "--resume", str(stopped))
    assert status == 0, errors
    assert json.loads((stopped / "config.json").read_text())["protocol"]["threads"] == 3


@pytest.mark.parametrize(
    ("name", "flags", "loop", "step"),
    [
        ("dqn", [*STOPPED, "--num-envs", "4", "--buffer-size", "10"], "training", 150),
        pytest.param("qdagger_dqn_atari_impalacnn", [*BOTH, "--buffer-size", "3"], "online", 60, marks=pytest.mark.slow),
    ],
)
def test_a_run_whose_buffer_was_enlarged_is_resumed(name, flags, loop, step):
    script = getattr(children, name)
    children.run(script, *flags, before=children.die, args=(loop, step))
    status, errors = children.run(script, "--resume", str(the_run()))
    assert status == 0, errors
    assert "is raised to" in errors


def test_a_run_is_resumed_from_its_own_folder_under_its_name(stopped, monkeypatch):
    monkeypatch.chdir(stopped)
    status, errors = children.run(children.dqn, "--resume", ".")
    assert status == 0, errors
    assert f"run folder: {Path.cwd()}" in errors


def test_a_run_is_resumed_without_the_model_that_it_started_from():
    model = Path(shutil.copy(ZOO / "CartPole-v1-dqn-seed1/dqn.cleanrl_model", "."))
    flags = [*STOPPED, "--hidden-units", "64", "64", "--initial-model", str(model)]
    children.run(children.dqn, *flags, before=children.die, args=("training", 450))
    model.unlink()
    status, errors = children.run(children.dqn, "--resume", str(the_run()))
    assert status == 0, errors


def contents(folder: Path) -> dict[Path, bytes]:
    """All files of a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_flags_beside_resume_are_refused_but_those_of_the_run(stopped, refused):
    assert "where it is 1500" in refused(dqn, "--resume", str(stopped), "--total-timesteps", "200")
    assert "--config" in refused(dqn, "--resume", str(stopped), "--config", "x.yaml")
    assert children.run(children.dqn, "--resume", str(stopped), "--total-timesteps", "1500")[0] == 0
    assert "is complete" in refused(dqn, "--resume", str(stopped))


def test_a_run_of_another_script_is_refused(stopped, refused):
    assert "is a run of dqn, not of dqn_jax" in refused(dqn_jax, "--resume", str(stopped))


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"flags": 1}', '{"flags": {"seed": "x"}, "script": "dqn_atari"}', "[" * 10**5]
)
def test_what_is_no_run_folder_is_refused(refused, content):
    Path("somewhere").mkdir()
    if content is not None:
        Path("somewhere/config.json").write_text(content)
    assert "--resume somewhere" in refused(dqn_atari, "--resume", "somewhere")
    assert "--resume nowhere" in refused(dqn_atari, "--resume", "nowhere")


def test_a_run_without_checkpoints_cannot_be_resumed(train, refused, monkeypatch):
    monkeypatch.setattr(dqn_atari, "epsilon_greedy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(dqn_atari, *TINY_RUN, "--checkpoint-frequency", "0")
    assert "holds no checkpoint: --checkpoint-frequency was 0" in refused(dqn_atari, "--resume", str(the_run()))


@pytest.mark.skipif(sys.platform != "linux", reason="flock")
def test_a_run_that_is_still_going_is_not_resumed(stopped, refused):
    import fcntl

    descriptor = os.open(stopped, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert "is still running" in refused(dqn, "--resume", str(stopped))
    os.close(descriptor)


# --- Damage ---


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def empty(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "damage", [flip, pytest.param(truncate, marks=pytest.mark.slow), pytest.param(empty, marks=pytest.mark.slow)]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(stopped, left_alone, damage):
    *_, before, newest = sorted((stopped / "checkpoints").iterdir())
    newest.write_bytes(damage(newest.read_bytes()))
    status, errors = children.run(children.dqn, "--resume", str(stopped))
    assert status == 0, errors
    assert f"{newest.name} is damaged" in errors
    assert f"going on from {before.name}" in errors
    assert differing(outcome(stopped), left_alone("dqn")) == []


def test_without_a_whole_checkpoint_nothing_is_changed(stopped, refused):
    for path in (stopped / "checkpoints").iterdir():
        path.write_bytes(flip(path.read_bytes()))
    files = contents(stopped)
    said = refused(dqn, "--resume", str(stopped))
    assert all(path.name in said for path in (stopped / "checkpoints").iterdir())
    assert contents(stopped) == files


def test_the_checkpoint_of_another_run_is_refused(stopped, refused):
    """Here of another seed: what it holds has the same shapes."""
    other = Path("other")
    other.mkdir()
    os.chdir(other)
    children.run(children.dqn, *STOPPED, "--seed", "2", before=children.die, args=("training", 450))
    foreign = max(the_run().glob("checkpoints/*")).absolute()
    os.chdir("..")
    for path in (stopped / "checkpoints").iterdir():
        shutil.copy(foreign, path)
    assert "is of another run: --seed 2" in refused(dqn, "--resume", str(stopped))


def rewritten(path: Path, change) -> None:
    """The checkpoint with its tree changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    tree = json.loads(members[archives.STATE])
    change(tree)
    members[archives.STATE] = json.dumps(tree).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tree: tree["state"].pop("rb"), "lacks rb"),
        (lambda tree: tree["state"].update(luck=1), "holds luck"),
        (lambda tree: tree.update(format=1), "was written by version 0.1 (format 1); this version reads format 2"),
        (lambda tree: tree.update(format=3), "is no checkpoint of this version"),
    ],
    ids=["missing", "unknown", "old", "newer"],
)
def test_a_state_that_does_not_fit_is_refused_by_name(stopped, refused, change, says):
    for path in (stopped / "checkpoints").iterdir():
        rewritten(path, change)
    files = contents(stopped)
    assert says in refused(dqn, "--resume", str(stopped))
    assert contents(stopped) == files


def test_games_that_do_not_come_back_are_told_and_the_checkpoint_is_kept():
    children.run(children.dqn_atari, *ATARI, before=children.die, args=("training", 25))
    files = contents(the_run())
    status, errors = children.run(children.dqn_atari, "--resume", str(the_run()), before=other_seeds)
    assert status == 1
    (line,) = (line for line in errors.splitlines() if line.startswith("error:"))
    assert "PongNoFrameskip-v4 does not reproduce what the checkpoint saw" in line
    assert "ale-py" in line
    assert "Traceback" not in errors
    assert contents(the_run()) == files


def other_seeds(_) -> None:
    """As another emulator would: what the actions lead to is something else."""
    seeds = atari.env_seeds
    atari.env_seeds = lambda *about: seeds(*about) + 1


def test_a_complete_run_keeps_its_last_checkpoint_where_that_is_asked_for():
    assert children.run(children.dqn, *VECTORS, "--keep-checkpoint")[0] == 0
    (path,) = (the_run() / "checkpoints").iterdir()
    assert path.name.endswith("-training-1500.zip")
    assert archives.Archive(path).tree["state"].keys() == {field.name for field in dataclasses.fields(dqn.State)}


# --- The file ---


class Kept:
    """An object of which a checkpoint keeps some attributes."""

    KEPT = ("numbers", "count", "nested")

    def __init__(self, value: float) -> None:
        self.numbers, self.count, self.nested = np.full((3, 2), value), int(value), {"a": jnp.full(4, value)}
        self.left_out = value


def through_a_file(value, like):
    """What `like` becomes when a value is written and read into it."""
    with Path("x.zip").open("wb") as file:
        archives.write(file, {"value": value})
    archive = archives.Archive(Path("x.zip"))
    result = archive.fill(like, archive.tree["value"])
    archive.close()
    return result


def test_values_come_back_as_they_were():
    for value, like in (
        (None, None),
        (float("-inf"), 0.0),
        ([1, "a", True], None),
        (deque([1.0, 2.0], maxlen=2), deque([5.0], maxlen=2)),
        (Evaluation([1.0], [2], 0), None),
        ({"a": Evaluation([1.0], [2], 0)}, {}),
    ):
        assert through_a_file(value, like) == value
    assert through_a_file(Kept(2.0), kept := Kept(1.0)) is kept
    assert (kept.numbers.tolist(), kept.count, kept.left_out) == ([[2.0, 2.0]] * 3, 2, 1.0)
    assert kept.nested["a"].tolist() == [2.0] * 4


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64", "float32"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 3), (2, 2, 2)])
@pytest.mark.parametrize("piece", [8, 1 << 24])
def test_arrays_come_back_from_and_into_every_framework(dtype, shape, piece, monkeypatch):
    monkeypatch.setattr(archives, "PIECE", piece)
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 200, size=shape).astype(dtype)
    kinds = {"numpy": np.array, "torch": torch.as_tensor}
    if dtype != "int64":  # JAX has 32 bits
        kinds["jax"] = jnp.asarray
    for source, target in itertools.product(kinds.values(), kinds.values()):
        like = target(np.zeros_like(values))
        found = through_a_file(source(values), like)
        assert type(found) is type(like)
        assert np.array_equal(np.asarray(found), values)


def test_an_optimizer_goes_on_with_the_tensors_that_compiled_code_reads():
    def made():
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(4, 3, 5).to(memory_format=torch.channels_last)
        rate = torch.tensor(0.1)
        return layer, rate, torch.optim.Adam(layer.parameters(), lr=rate, fused=True)

    def steps(layer, optimizer, count):
        for i in range(count):
            optimizer.zero_grad()
            (layer(torch.full((2, 4, 8, 8), i + 1.0)) ** 2).sum().backward()
            optimizer.step()

    layer, rate, optimizer = made()
    steps(layer, optimizer, 3)
    other_layer, other_rate, other = made()
    through_a_file(layer, other_layer)
    through_a_file(optimizer, other)
    for rate_of in (rate, other_rate):
        rate_of.fill_(0.01)
    steps(layer, optimizer, 2)
    steps(other_layer, other, 2)
    assert torch.equal(layer.weight, other_layer.weight)
    assert other.param_groups[0]["lr"] is other_rate
    assert other.state[other_layer.weight]["exp_avg"].stride() == other_layer.weight.stride()


@pytest.mark.parametrize(
    "like", [np.zeros((2, 3)), np.zeros((3, 2), np.float32), torch.zeros(6), jnp.zeros((3, 2), jnp.int32)]
)
def test_what_does_not_fit_is_refused(like):
    with pytest.raises(archives.ArchiveError, match="where this run has"):
        through_a_file(np.ones((3, 2)), like)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kilobytes")
def test_a_large_buffer_is_written_and_read_without_a_second_place_in_memory():
    status, errors = children.run(children.dqn_atari, before=write_much)
    assert status == 0, errors
    written, read = map(float, errors.split()[-2:])
    assert written < 100, "of 400 MB"
    assert read < 100


def write_much(_) -> None:
    frames = torch.ones((50_000, 1000), dtype=torch.int64)  # 400 MB
    grown = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
    with Path("x.zip").open("wb") as file:
        archives.write(file, {"value": frames})
    grown.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    archive = archives.Archive(Path("x.zip"))
    archive.fill(frames, archive.tree["value"])
    grown.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print(*np.diff(grown) / 1000, flush=True)  # noqa: T201
    os._exit(0)


# --- The schedule ---


def test_the_last_two_are_kept_and_nothing_else_of_ours(stopped):
    (stopped / "checkpoints" / "notes.txt").write_text("mine")
    (stopped / "checkpoints" / "000009-training-9.zip.tmp").write_bytes(b"half")
    children.run(children.dqn, "--resume", str(stopped), before=children.die, args=("training", 250))
    names = sorted(path.name for path in (stopped / "checkpoints").iterdir())
    assert [name.split("-", 1)[1] for name in names[:2]] == ["training-500.zip", "training-600.zip"]
    assert names[2:] == ["notes.txt"]
    assert children.run(children.dqn, "--resume", str(stopped))[0] == 0
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["notes.txt"]
