"""Checkpoints: a run that was stopped and resumed ends as the run left alone, bit for bit."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
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
from cleanrl import dqn_atari, dqn_atari_jax
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.run import archive as archives
from cleanrl_utils.run import tracker
from tests.conftest import TINY_DQN, TINY_RUN, TINY_TEACHER, scalars
from tests.support import children

VECTORS = [*TINY_DQN, "--save-model", "--eval-frequency", "500", "--checkpoint-frequency", "300"]
ATARI = [*TINY_RUN, "--save-model", "--total-timesteps", "300", "--eval-frequency", "100", "--checkpoint-frequency", "40"]
BOTH = [
    *ATARI,
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
IN_TRAINING, IN_PHASES = {"training": (20, 80)}, {"collection": (20, 45), "offline": (40, 80), "online": (20, 80)}
RUNS = {
    "dqn": (VECTORS, {"training": (300, 1000)}),
    "dqn_jax": (VECTORS, {"training": (300, 1000)}),
    "dqn_atari": (ATARI, IN_TRAINING),
    "dqn_atari_jax": (ATARI, IN_TRAINING),
    "qdagger_dqn_atari_impalacnn": (BOTH, IN_PHASES),
    "qdagger_dqn_atari_jax_impalacnn": (BOTH, IN_PHASES),
}
"""Flags of each script's run, and between which steps of each phase to kill it: after its first checkpoint."""


def the_run() -> Path:
    """The only run under runs/."""
    (folder,) = Path("runs").iterdir()
    return folder


def resume(script) -> list[str]:
    """Flags that go on with the only run, or start it where it has left no checkpoint."""
    if list(the_run().glob("checkpoints/[0-9]*.zip")):
        return ["--resume", str(the_run())]
    shutil.rmtree("runs")
    return RUNS[script.__name__.split(".")[1]][0]


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


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_at_random_moments_ends_as_the_run_left_alone(name, left_alone):
    """In each phase, in a checkpoint that this phase writes, in the middle of an event, and around the flushing of files.

    QDagger's scripts, which are slow to start, in each phase at one of the first two, and at one of the others.
    """
    script, (flags, phases) = getattr(children, name), RUNS[name]
    seed = random.SystemRandom().randrange(2**32)
    rng = np.random.default_rng(seed)
    draws = [[(phase, phases[phase]), ("writing", (1, 40))] for phase in phases]
    draws.append([("logging", (1, 4)), ("flushing", (1, 7)), ([*phases][-1], (1, 20))])
    if "qdagger" in name:
        draws = [[places[rng.integers(len(places))]] for places in draws]
    kills = [(place, int(rng.integers(*range_))) for places in draws for place, range_ in places]
    for kill in kills:
        status, errors = children.run(script, *flags, before=children.die, args=kill)
        assert status == -signal.SIGKILL, (seed, kill, errors)
        flags = resume(script)
    status, errors = children.run(script, *flags)
    assert status == 0, (seed, errors)
    assert differing(outcome(the_run()), left_alone(name)) == [], (seed, kills)


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
    assert 0 < ends[0]["charts/distill_coeff"][1][2] < 1


def end_games(script, *kill) -> None:
    """Report a game at every step, with returns between a random player's and the teacher's, and die if asked to."""

    class Endless(script.Episodes):
        calls = 0

        def step(self, rewards, infos):
            self.calls += 1
            return super().step(rewards, infos)[0], [(-4.0 + self.calls % 7 * 0.5, 1)]

    script.Episodes = Endless
    if kill:
        children.die(script, *kill)


def test_the_global_random_states_go_on_too():
    """Of an environment that draws from them; the first part of both runs is one run, which no seed repeats."""
    flags = [*VECTORS, "--env-id", "tests.support.probes:Careless-v0"]
    children.run(children.dqn, *flags, before=children.die, args=("training", 950))
    shutil.copytree("runs", "again/runs")
    ends = []
    for folder, kill in ((Path.cwd(), None), (Path("again").absolute(), children.die)):
        os.chdir(folder)
        if kill is not None:
            assert children.run(children.dqn, "--resume", str(the_run()), before=kill, args=("training", 400))[0] == -9
        assert children.run(children.dqn, "--resume", str(the_run()))[0] == 0
        ends.append(outcome(the_run()))
    assert differing(*ends) == []


def test_a_run_without_checkpoints_learns_other_weights(left_alone):
    """Else nothing here would show anything: checkpoints reset the games."""
    flags = [*ATARI, "--checkpoint-frequency", "0"]
    assert children.run(children.dqn_atari, *flags)[0] == 0
    assert "dqn_atari.cleanrl_model" in differing(outcome(the_run()), left_alone("dqn_atari"))
    assert not (the_run() / "checkpoints").exists()


# --- Signals ---


def test_sigterm_writes_a_checkpoint_that_resumes_validly_and_deterministically():
    script, flags = children.qdagger_dqn_atari_impalacnn, BOTH
    for place, step in (("collection", 34), ("offline", 17), ("online", 34)):
        status, errors = children.run(script, *flags, before=children.receive, args=(place, 17, signal.SIGTERM))
        assert status == 128 + signal.SIGTERM, errors
        assert f"step {step} of {place}: --resume {the_run()}" in errors
        assert json.loads((the_run() / "config.json").read_text())["status"] == "stopped"
        flags = ["--resume", str(the_run())]
    shutil.copytree("runs", "again/runs")
    ends = []
    for folder in (Path.cwd(), Path("again").absolute()):
        os.chdir(folder)
        assert children.run(script, *flags)[0] == 0
        ends.append(outcome(the_run()))
    assert differing(*ends) == []
    assert (ends[0]["status"], ends[0]["steps"]) == ("complete", 300)


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
    assert [step for step, _ in scalars(the_run())["eval/episodic_return"]] == [200, 300]


def interrupt_evaluation(script) -> None:
    """Ctrl-C in the middle of the first evaluation, at step 100: only evaluations call `step`."""
    step, calls = script.AtariVectorEnv.step, iter(range(10**9))

    def watched_step(envs, actions):
        if next(calls) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return step(envs, actions)

    script.AtariVectorEnv.step = watched_step


def interrupt_twice(_) -> None:
    """Ctrl-C in training, and again while its checkpoint is written."""
    children.at_tick("training", 5, lambda: os.kill(os.getpid(), signal.SIGINT))
    children.at_tick("writing", 12, lambda: os.kill(os.getpid(), signal.SIGINT))


def test_a_signal_without_checkpoints_closes_the_logs():
    flags = [*ATARI, "--checkpoint-frequency", "0"]
    status, errors = children.run(children.dqn_atari, *flags, before=children.receive, args=("training", 20, signal.SIGTERM))
    assert status == 128 + signal.SIGTERM, errors
    assert "--resume" not in errors
    assert json.loads((the_run() / "config.json").read_text())["status"] == "stopped"


# --- What is refused ---


@pytest.fixture
def stopped() -> Path:
    """A run of dqn_atari that was killed behind its second checkpoint."""
    children.run(children.dqn_atari, *ATARI, before=children.die, args=("training", 65))
    return the_run()


def set_threads(_) -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


def change_version(_) -> None:
    versions = tracker.versions
    tracker.versions = lambda: versions() | {"torch": "2.0.0"}


@pytest.mark.parametrize(("before", "says"), [(set_threads, r"threads \d then, \d now"), (change_version, "2.0.0 now")])
def test_other_settings_are_refused_unless_resumed_anyway(stopped, before, says):
    files = contents(stopped)
    status, errors = children.run(children.dqn_atari, "--resume", str(stopped), before=before)
    assert status == 2
    assert re.search(says, errors)
    assert "--resume-anyway" in errors
    assert contents(stopped) == files
    status, errors = children.run(children.dqn_atari, "--resume", str(stopped), "--resume-anyway", before=before)
    assert status == 0, errors
    assert "will not be those of the run left alone" in errors


def contents(folder: Path) -> dict[Path, bytes]:
    """All files of a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_flags_beside_resume_are_refused_but_those_of_the_run(stopped, refused):
    assert "where it is 300" in refused(dqn_atari, "--resume", str(stopped), "--total-timesteps", "400")
    assert "--config" in refused(dqn_atari, "--resume", str(stopped), "--config", "x.yaml")
    assert children.run(children.dqn_atari, "--resume", str(stopped), "--total-timesteps", "300")[0] == 0
    assert "is complete" in refused(dqn_atari, "--resume", str(stopped))


def test_a_run_of_another_script_is_refused(stopped, refused):
    assert "is a run of dqn_atari, not of dqn_atari_jax" in refused(dqn_atari_jax, "--resume", str(stopped))


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
        train(dqn_atari, *TINY_RUN)
    assert "holds no checkpoint: --checkpoint-frequency was 0" in refused(dqn_atari, "--resume", str(the_run()))


@pytest.mark.skipif(sys.platform != "linux", reason="flock")
def test_a_run_that_is_still_going_is_not_resumed(stopped, refused):
    import fcntl

    descriptor = os.open(stopped, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert "is still running" in refused(dqn_atari, "--resume", str(stopped))
    os.close(descriptor)


# --- Damage ---


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def empty(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(stopped, left_alone, damage):
    *_, before, newest = sorted((stopped / "checkpoints").iterdir())
    newest.write_bytes(damage(newest.read_bytes()))
    status, errors = children.run(children.dqn_atari, "--resume", str(stopped))
    assert status == 0, errors
    assert f"{newest.name} is damaged" in errors
    assert f"going on from {before.name}" in errors
    assert differing(outcome(stopped), left_alone("dqn_atari")) == []


def test_without_a_whole_checkpoint_nothing_is_changed(stopped, refused):
    for path in (stopped / "checkpoints").iterdir():
        path.write_bytes(flip(path.read_bytes()))
    files = contents(stopped)
    said = refused(dqn_atari, "--resume", str(stopped))
    assert all(path.name in said for path in (stopped / "checkpoints").iterdir())
    assert contents(stopped) == files


def test_the_checkpoint_of_another_run_is_refused(stopped, refused):
    """Here of another seed: what it holds has the same shapes."""
    other = Path("other")
    other.mkdir()
    os.chdir(other)
    children.run(children.dqn_atari, *ATARI, "--seed", "2", before=children.die, args=("training", 65))
    foreign = max(the_run().glob("checkpoints/*")).absolute()
    os.chdir("..")
    for path in (stopped / "checkpoints").iterdir():
        shutil.copy(foreign, path)
    assert "is of another run: --seed 2" in refused(dqn_atari, "--resume", str(stopped))


def test_a_damaged_buffer_of_the_teacher_is_noticed(left_alone):
    """Checkpoints of the offline phase refer to it: the last one of the phase before serves, if it is still there."""
    script = children.qdagger_dqn_atari_impalacnn
    children.run(script, *BOTH, before=children.die, args=("offline", 20))
    (buffer,) = the_run().glob("checkpoints/rb-*.zip")
    buffer.write_bytes(flip(buffer.read_bytes()))
    status, errors = children.run(script, "--resume", str(the_run()))
    assert f"needs {buffer.name}, which is damaged or missing" in errors
    assert "-collection-" in errors
    assert status == 0, errors
    assert differing(outcome(the_run()), left_alone("qdagger_dqn_atari_impalacnn")) == []


def test_the_teachers_buffer_is_written_once_and_all_of_its_phase_needs_it(refused):
    script = children.qdagger_dqn_atari_impalacnn
    children.run(script, *BOTH, before=children.die, args=("offline", 45))
    (buffer,) = the_run().glob("checkpoints/rb-*.zip")
    written = buffer.stat().st_mtime_ns
    children.run(script, "--resume", str(the_run()), before=children.die, args=("offline", 42))
    files = sorted(path.name for path in (the_run() / "checkpoints").iterdir())
    assert [name.split("-", 1)[1] for name in files[:-1]] == ["offline-40.zip", "offline-80.zip"]
    assert files[-1] == buffer.name
    assert buffer.stat().st_mtime_ns == written
    with zipfile.ZipFile(the_run() / "checkpoints" / files[0]) as archive:
        assert not [name for name in archive.namelist() if name.startswith("kept/rb")]
    buffer.write_bytes(flip(buffer.read_bytes()))
    assert "no whole checkpoint" in refused(script, "--resume", str(the_run()))


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


def test_short_periods_are_warned_of():
    _, errors = children.run(children.dqn_atari, *ATARI, before=children.die, args=("training", 1))
    assert "fewer than 20,000 steps (10,000 per environment) favour short ones" in errors


def test_the_last_two_are_kept_and_nothing_else_of_ours(stopped):
    (stopped / "checkpoints" / "notes.txt").write_text("mine")
    (stopped / "checkpoints" / "000009-training-9.zip.tmp").write_bytes(b"half")
    assert children.run(children.dqn_atari, "--resume", str(stopped))[0] == 0
    names = sorted(path.name for path in (stopped / "checkpoints").iterdir())
    assert [name.split("-", 1)[1] for name in names[:2]] == ["training-280.zip", "training-300.zip"]
    assert names[2:] == ["notes.txt"]


def test_the_protocol_names_the_frequency(stopped):
    assert json.loads((stopped / "config.json").read_text())["protocol"]["checkpoint_frequency"] == 40
