"""A teacher's own replay as a student's first data: our files, Dopamine's, and the ways to reincarnate that follow."""

from __future__ import annotations

import copy
import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cleanrl import dqn_atari
from cleanrl import qdagger_dqn_atari_impalacnn as in_torch
from cleanrl import qdagger_dqn_atari_jax_impalacnn as in_jax
from cleanrl_utils.errors import BadInput
from cleanrl_utils.run import archive, dopamine, replay
from cleanrl_utils.run.archive import ArchiveError
from cleanrl_utils.run.run import Run
from tests.conftest import TINY_RUN, TINY_TEACHER, twin_is_slow, weights
from tests.support import children
from tests.support.oracles import IN_JAX, IN_TORCH, Games

KINDS = {"torch": IN_TORCH, "jax": IN_JAX}
TINY = [*TINY_RUN, *TINY_TEACHER]
ONLINE, BOTH = ["online student"], ["offline student", "online student"]
OFFLINE = [*TINY, "--offline-steps", "12", "--save-model"]


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    """Each framework's buffer."""
    return request.param


def at(rb, index: np.ndarray):
    """The batch at some indices, in NumPy."""
    kind = IN_TORCH if isinstance(rb, dqn_atari.ReplayBuffer) else IN_JAX
    return [np.asarray(values) for values in rb.sample(kind.array(index))]


def drawn(rb) -> list[int]:
    """All indices that a buffer draws."""
    return np.unique(rb.draw(100, 60, np.random.default_rng(0))).tolist()


# --- Our files ---


@pytest.fixture
def saved(tmp_path):
    """20 steps of 4 games in a ring of 16, by each framework: the buffer, its file, and what is read from it."""
    found = {}
    for name, kind in KINDS.items():
        rb, path = kind.make(64, 4, 2), tmp_path / f"{name}.zip"
        kind.play(rb, Games(4, 5, 0.1, 0.1, 0.1), 20)
        with path.open("wb") as file:
            replay.write(file, rb, "PongNoFrameskip-v4", 6)
        found[name] = rb, path, replay.read(path)
    return found


def test_a_replay_file_holds_the_buffer_from_its_oldest_row_and_is_the_same_from_both_frameworks(saved):
    (rb, _, of_torch), (_, _, of_jax) = saved["torch"], saved["jax"]
    assert (of_torch.env_id, of_torch.num_actions, of_torch.valid.shape) == ("PongNoFrameskip-v4", 6, (16, 4))
    assert rb.head == 4
    for name in replay.RINGS[1:]:
        rows = getattr(rb, name).numpy().reshape(16, 4)
        np.testing.assert_array_equal(getattr(of_torch, name), np.roll(rows, -4, 0))
        np.testing.assert_array_equal(getattr(of_jax, name), getattr(of_torch, name))
    np.testing.assert_array_equal(of_torch.valid, np.roll(rb.valid, -4, 0))
    for read in (of_torch, of_jax):
        for index, frames in read.pieces():
            rows = rb.frames.numpy().view(np.uint8).reshape(16, 4, 84, 84)
            np.testing.assert_array_equal(frames, np.roll(rows, -4, 0).reshape(-1, 84, 84)[index])


def test_what_is_no_replay_or_is_damaged_is_not_read(saved, tmp_path):
    _, path, _ = saved["torch"]
    content, other = bytearray(path.read_bytes()), tmp_path / "other.zip"
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="damaged"):
        replay.read(path)
    rows = {"valid": np.ones((4, 2), bool), "head": 0, "env_id": "PongNoFrameskip-v4"}
    whole = {"format": replay.FORMAT, **rows, **{name: np.zeros(8, np.uint8) for name in replay.RINGS[1:]}}
    for tree, says in (
        ({"format": 2}, "holds no replay"),
        ({"format": replay.FORMAT}, "holds no whole replay"),
        (whole | {"num_stored": 4, "frames": np.zeros((8, 7))}, "holds no whole replay"),
        (whole | {"num_stored": 10**9, "frames": np.zeros((8, 84 * 84), np.uint8)}, "1000000000 rows of 4"),
        (whole | {"num_stored": 4, "head": "x", "frames": np.zeros((8, 84 * 84), np.uint8)}, "holds no whole replay"),
    ):
        with other.open("wb") as file:
            archive.write(file, tree)
        with pytest.raises(ArchiveError, match=says):
            replay.read(other)


@pytest.mark.parametrize("source", KINDS)
def test_a_buffer_of_the_same_shape_draws_the_same_transitions(saved, kind, source):
    original, _, read = saved[source]
    rb = kind.make(64, 4, 2)
    replay.load(rb, read)
    ours, theirs = (buffer.draw(10, 8, np.random.default_rng(3)) for buffer in (rb, original))
    assert len(np.unique(ours)) > 20
    for here, there in zip(at(rb, ours.ravel()), at(original, theirs.ravel()), strict=True):
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize(("num_envs", "latest"), [(1, 64), (3, 64), (4, 40), (3, 41)])
def test_in_another_shape_each_transition_is_still_one_of_the_originals(saved, kind, num_envs, latest):
    original, _, read = saved["torch"]
    read = read.latest(latest)
    rb = kind.make(len(read) + 5 * num_envs, num_envs, 2)
    replay.load(rb, read)
    kind.play(rb, Games(num_envs, 9, 0.1, 0.1, 0.1), 3)
    every = np.flatnonzero(original.valid)
    of_original = {hash(obs.tobytes()): others for obs, *others in zip(*at(original, every), strict=True)}
    rows = len(read) // num_envs
    loaded = [index for index in drawn(rb) if index // num_envs < rows]
    assert len(loaded) > len(read) / 3
    for obs, action, reward, next_obs, discount in zip(*at(rb, np.array(loaded)), strict=True):
        expected = of_original[hash(obs.tobytes())]
        assert (action, reward, discount) == (expected[0], expected[1], expected[3])
        if discount:
            np.testing.assert_array_equal(next_obs, expected[2])


# --- Dopamine's files ---


def write_dopamine(folder: Path, games: Games, num_steps: int, size: int, number: int = 0) -> list[int | None]:
    """Store a game as Dopamine does; returns the steps that are there, oldest first, None where it stored zeros."""
    store = {"observation": np.zeros((size, 84, 84), np.uint8), "action": np.zeros(size, np.int32)}
    store |= {"reward": np.zeros(size, np.float32), "terminal": np.zeros(size, np.uint8)}
    steps: list[int | None] = []

    def add(step: int | None, *values) -> None:
        for name, value in zip(store, values, strict=True):
            store[name][len(steps) % size] = value
        steps.append(step)

    begins = True
    for t in range(num_steps):
        obs, actions, rewards, terminations, _, resets = games.step()
        if resets[0]:
            continue
        for _ in range(3 * begins):
            add(None, 0, 0, 0, 0)
        begins = terminations[0]
        add(t, obs[0, -1], actions[0], 3 * rewards[0], terminations[0])
    for name, values in store.items():
        write_array(folder / f"$store$_{name}_ckpt.{number}.gz", values)
    write_array(folder / f"add_count_ckpt.{number}.gz", np.array(len(steps)))
    return steps[-size:]


def write_array(path: Path, values: np.ndarray, **more) -> None:
    """An array of NumPy under gzip."""
    with gzip.open(path, "wb") as file:
        np.save(file, values, **more)


@pytest.mark.parametrize("num_steps", [30, 100], ids=["not full", "wrapped"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_dopamines_transitions_are_those_of_the_game(tmp_path, kind, num_steps, num_envs):
    n_step, games = 2, Games(1, 3, 0.1, 0, 0)
    steps = write_dopamine(tmp_path, games, num_steps, 60)
    read = dopamine.read(tmp_path, 0)
    rb = kind.make(len(read), num_envs, n_step)
    replay.load(rb, read)
    rows, surplus = divmod(len(steps), num_envs)
    place = {index: index % num_envs * rows + index // num_envs + surplus for index in drawn(rb)}
    for obs, action, reward, next_obs, discount, k in zip(*at(rb, np.array(list(place))), place.values(), strict=True):
        expected = games.transition(steps[k], 0, n_step, 0.9)
        np.testing.assert_array_equal(obs, expected[0])
        assert (action, reward, discount) == (expected[1], pytest.approx(expected[2]), pytest.approx(expected[4]))
        if discount:
            np.testing.assert_array_equal(next_obs, expected[3])
    if num_envs == 1:
        assert {*place.values()} == {k for k in range(3, len(steps) - n_step) if steps[k] is not None}
    else:
        assert len(place) > 0.6 * len(steps) - num_envs * (3 + n_step)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("$store$_reward", None, "lacks $store$_reward_ckpt.0.gz"),
        ("$store$_reward", np.zeros(59, np.float32), "59 rewards"),
        ("$store$_observation", np.zeros((60, 42, 42), np.uint8), "of shape (60, 42, 42)"),
        ("$store$_observation", np.zeros((60, 84, 84), np.float32), "of type float32"),
        ("$store$_action", np.array([{}] * 60), "of type object"),
        ("$store$_action", np.full(60, 300), "holds actions from 300"),
        ("$store$_terminal", b"no array", "cannot be read"),
        ("$store$_terminal", "cut", "cannot be read"),
        ("add_count", np.array(0), "0 added"),
    ],
)
def test_files_that_are_none_of_dopamines_are_refused(tmp_path, name, content, says):
    write_dopamine(tmp_path, Games(1, 3, 0.1, 0, 0), 30, 60)
    path = tmp_path / f"{name}_ckpt.0.gz"
    if content is None:
        path.unlink()
    elif isinstance(content, np.ndarray):
        write_array(path, content, allow_pickle=True)
    else:
        path.write_bytes(path.read_bytes()[:-9] if content == "cut" else gzip.compress(content))
    with pytest.raises(ArchiveError) as error:
        dopamine.read(tmp_path, 0)
    assert says in str(error.value)


# --- Runs ---


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of dqn_atari.py with a full ring: its folder, where its replay is, and the buffer as it was in memory."""
    kept, save_replay = {}, Run.save_replay
    flags = [*TINY_RUN, "--save-replay", "--save-model", "--buffer-size", "60", "--total-timesteps", "150"]

    def watched(run, rb, num_actions):
        kept.update({name: copy.copy(getattr(rb, name)) for name in rb.KEPT})
        save_replay(run, rb, num_actions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_replay", watched)
        patch.chdir(tmp_path_factory.mktemp("teacher"))
        return dqn_atari.main(dqn_atari.flags.parse(dqn_atari.Args, flags)).absolute(), kept


@pytest.fixture(scope="module")
def teacher_run(teacher) -> Path:
    """Its folder."""
    return teacher[0]


@pytest.fixture(params=twin_is_slow(in_torch, in_jax), ids=["torch", "jax"])
def qdagger(request):
    """Each of the two scripts."""
    return request.param


@pytest.mark.slow
def test_a_student_of_a_saved_replay_is_that_of_the_buffer_in_memory(train, teacher, monkeypatch):
    folder, kept = teacher
    flags = [*OFFLINE, "--teacher-replay", str(folder), "--teacher-steps", "0"]
    from_file = weights(in_torch, train(in_torch, *flags), "-offline")
    monkeypatch.setattr(in_torch, "load", lambda rb, *_: vars(rb).update(kept))
    in_memory = weights(in_torch, train(in_torch, *flags), "-offline")
    assert all(torch.equal(from_file[name], in_memory[name]) for name in in_memory)


def filled(monkeypatch, script) -> list[int]:
    """How much the teacher's buffer holds when each run of a script begins to learn offline."""
    held, train_offline = [], script.train_offline

    def watched(state, *about):
        held.append(state.rb.num_stored * state.rb.num_envs)
        train_offline(state, *about)

    monkeypatch.setattr(script, "train_offline", watched)
    return held


@pytest.mark.parametrize(
    ("flags", "held", "phases"),
    [
        pytest.param("--teacher-steps 0 --offline-steps 0", None, ONLINE, id="kickstarting"),
        pytest.param("--distill-coefficient 0", 64, BOTH, id="offline TD", marks=pytest.mark.slow),
        pytest.param("--teacher-steps 0 --teacher-replay REPLAY", 60, BOTH, id="replay", marks=pytest.mark.slow),
        pytest.param("--teacher-steps 64 --teacher-replay REPLAY --teacher-replay-size 41", 104, BOTH, id="both"),
    ],
)
def test_each_way_to_use_a_teacher_runs(train, qdagger, teacher_run, monkeypatch, flags, held, phases):
    found = filled(monkeypatch, qdagger)
    folder = train(qdagger, *TINY, *flags.replace("REPLAY", str(teacher_run)).split())
    run = json.loads((folder / "config.json").read_text())
    assert run["status"] == "complete"
    assert run["flags"]["teacher_replay_size"] == (41 if "size" in flags else 0), "as given: a sweep finds its run again"
    assert list(run["evaluations"]) == ["random", "teacher", *phases]
    assert found == ([] if held is None else [held])


def test_without_flags_the_teacher_plays_its_data_or_none_where_none_is_needed():
    def steps(*flags: str) -> int:
        args = in_torch.flags.parse(in_torch.Args, ["--env-id", "PongNoFrameskip-v4", *flags])
        in_torch.check(args)
        return args.teacher_steps

    assert steps() == 500_000
    assert steps("--teacher-replay", "somewhere") == 0
    assert steps("--offline-steps", "0") == 0
    assert steps("--teacher-replay", "somewhere", "--teacher-steps", "100") == 100


@pytest.mark.slow
def test_a_run_from_a_replay_that_is_killed_ends_as_the_run_left_alone(teacher_run):
    flags = [*OFFLINE, "--teacher-replay", str(teacher_run), "--teacher-steps", "40", "--checkpoint-frequency", "8"]
    ends = []
    for kills in ((), (("collection", 9), ("offline", 9), ("online", 9))):
        going_on = flags
        for kill in kills:
            assert children.run(in_torch, *going_on, before=children.die, args=kill)[0] == -9
            going_on = ["--resume", str(next(Path("runs").iterdir()))]
        status, errors = children.run(in_torch, *going_on)
        assert status == 0, errors
        (folder,) = Path("runs").iterdir()
        ends.append(weights(in_torch, folder))
        shutil.rmtree("runs")
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# --- Bad input ---


def pickled() -> bytes:
    """An array with objects in it."""
    file = io.BytesIO()
    np.save(file, np.array([{}]), allow_pickle=True)
    return gzip.compress(file.getvalue())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--teacher-replay nowhere", "must be a run folder with replay.zip"),
        ("--teacher-replay empty", "must be a run folder with replay.zip"),
        ("--teacher-replay damaged", "damaged"),
        ("--teacher-replay damaged/replay.zip", "damaged"),
        ("--teacher-replay pickled", "of type object"),
        ("--teacher-replay pickled/add_count_ckpt.3.gz", "must be a run folder with replay.zip"),
        ("--teacher-replay actions", "has an action 5, where --env-id BreakoutNoFrameskip-v4 has 4"),
        ("--teacher-replay REPLAY", "is of PongNoFrameskip-v4, not of --env-id BreakoutNoFrameskip-v4"),
        ("--teacher-replay REPLAY --env-id PongNoFrameskip-v4 --full-action-space", "has 6 actions, where"),
        ("--teacher-replay-size 5", "limits --teacher-replay, which is not given"),
        ("--teacher-steps 0", "leaves the offline phase without data"),
        ("--offline-steps 0 --teacher-steps 5", "is data for the offline phase"),
        ("--offline-steps 0 --teacher-replay REPLAY", "is data for the offline phase"),
    ],
)
def test_bad_data_is_refused_in_one_line(refused, teacher_run, flags, says):
    for name in ("empty", "damaged", "pickled", "actions"):
        Path(name).mkdir()
    content = bytearray((teacher_run / replay.FILE).read_bytes())
    content[len(content) // 2] ^= 1
    Path("damaged", replay.FILE).write_bytes(content)
    write_dopamine(Path("actions"), Games(1, 3, 0.1, 0, 0), 30, 60)
    write_dopamine(Path("pickled"), Games(1, 3, 0.1, 0, 0), 30, 60)
    Path("pickled/$store$_action_ckpt.0.gz").write_bytes(pickled())
    flags = flags.replace("REPLAY", str(teacher_run)).split()
    game = [] if "--env-id" in flags else ["--env-id", "BreakoutNoFrameskip-v4"]
    assert says in refused(in_torch, *TINY, "--teacher-policy-hf-repo", str(teacher_run), *game, *flags)


def test_a_replay_of_games_too_short_to_draw_from_is_refused(teacher_run, kind):
    size = {"teacher_replay": str(teacher_run), "teacher_replay_size": 24, "n_step": 10, "num_envs": 1, "teacher_steps": 0}
    args = in_torch.Args(env_id="PongNoFrameskip-v4", **size)
    saved, number = in_torch.open_replay(args)
    rb = kind.replay(number, args.num_envs, args.n_step, args.gamma, kind.device)
    with pytest.raises(BadInput, match="too few transitions for --n-step 10 and --num-envs 1: none can be drawn"):
        in_torch.load(rb, saved, args)


def test_frames_that_end_early_are_refused_before_anything_is_written(refused, monkeypatch):
    monkeypatch.setattr(dopamine, "PIECE", 84 * 84 * 8)
    folder = Path("short")
    folder.mkdir()
    write_dopamine(folder, Games(1, 3, 0.1, 0, 0), 30, 60)
    path = folder / "$store$_observation_ckpt.0.gz"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cannot be read" in refused(in_torch, *TINY, "--teacher-replay", "short")


def test_of_several_checkpoints_the_last_is_read_unless_a_file_names_another(tmp_path, capsys):
    for number, seed in ((3, 1), (12, 2)):
        write_dopamine(tmp_path, Games(1, seed, 0.1, 0, 0), 30, 60, number)
    args = in_torch.Args(env_id="PongNoFrameskip-v4", teacher_replay=str(tmp_path), teacher_steps=0)
    last, _ = in_torch.open_replay(args)
    assert "checkpoint 12 of 2" in capsys.readouterr().err
    args = in_torch.Args(env_id="PongNoFrameskip-v4", teacher_replay=str(tmp_path / "add_count_ckpt.3.gz"))
    first, number = in_torch.open_replay(args)
    assert number == len(first)
    np.testing.assert_array_equal(first.actions, dopamine.read(tmp_path, 3).actions)
    np.testing.assert_array_equal(last.actions, dopamine.read(tmp_path, 12).actions)
    assert not np.array_equal(first.actions[:20], last.actions[:20])
