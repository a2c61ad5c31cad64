"""How runs begin and end: nothing that was learned is lost, and nothing goes wrong without a line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from cleanrl import dqn as dqn_vector
from cleanrl import dqn_atari, dqn_atari_jax, dqn_jax, fqi
from cleanrl_utils import console
from cleanrl_utils import flags as flags_module
from cleanrl_utils.benchmark.plan import as_json
from cleanrl_utils.devices import common, in_torch
from cleanrl_utils.devices.common import require_memory
from cleanrl_utils.errors import BadInput
from cleanrl_utils.run import replay, tracker
from cleanrl_utils.run.folder import new_folder
from tests.conftest import (
    TINY_DQN,
    TINY_FQI,
    TINY_RUN,
    TINY_TEACHER,
    all_slow,
    needs_compiler,
    scalars,
    twin_is_slow,
    weights,
)
from tests.support import children
from tests.support.slurm import wait
from tests.test_checkpoint import the_run

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "cleanrl/dqn.py"
NO_CHECKPOINTS = ["--checkpoint-frequency", "0", "--save-model"]


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


# --- The last evaluation ---


@pytest.mark.parametrize("number", [*all_slow(signal.SIGINT), signal.SIGTERM])
@pytest.mark.parametrize("script", twin_is_slow(dqn_vector, dqn_jax), ids=["torch", "jax"])
def test_what_was_learned_is_on_the_disk_when_the_last_evaluation_is_interrupted(script, number, train):
    flags = [*TINY_DQN, *NO_CHECKPOINTS, "--total-timesteps", "300"]
    status, errors = children.run(script, *flags, before=children.receive, args=("evaluation", 2, number))
    assert status == 128 + number, errors
    interrupted = the_run()
    assert config(interrupted)["status"] == "stopped"
    found = weights(script, interrupted)
    shutil.rmtree("runs")
    expected = weights(script, train(script, *flags))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_data_of_fqi_are_on_the_disk_when_the_last_evaluation_is_interrupted():
    status, _ = children.run(
        fqi,
        *TINY_FQI,
        "--save-model",
        "--eval-frequency",
        "0",
        before=children.receive,
        args=("evaluation", 2, signal.SIGINT),
    )
    assert status == 128 + signal.SIGINT
    fqi.load_run(the_run())


@pytest.mark.slow
def test_a_student_stopped_in_its_last_evaluation_has_left_its_weights_and_the_scores_so_far(qdagger, teacher):
    flags = [*TINY_RUN, *TINY_TEACHER, "--teacher-policy-hf-repo", str(teacher), *NO_CHECKPOINTS, "--eval-max-frames", "400"]
    status, errors = children.run(qdagger, *flags, before=children.receive, args=("evaluation", 120, signal.SIGTERM))
    assert status == 128 + signal.SIGTERM, errors
    assert list(config(the_run())["evaluations"]) == ["random", "teacher", "offline student"]
    assert weights(qdagger, the_run()).keys() == weights(qdagger, the_run(), "-offline").keys()


# --- Films ---


def test_a_film_that_cannot_be_written_is_a_line(train, capsys):
    Path("videos").touch()
    folder = train(dqn_atari, *TINY_RUN, "--capture-video", "--save-model")
    assert config(folder)["status"] == "complete"
    assert weights(dqn_atari, folder)
    lines = [line for line in capsys.readouterr().err.splitlines() if "--capture-video" in line]
    assert len(lines) == 1
    assert "cannot be written" in lines[0]


@pytest.mark.parametrize("script", [dqn_vector, fqi], ids=["dqn", "fqi"])
def test_an_environment_that_cannot_be_drawn_after_all_is_a_line(train, capsys, script):
    tiny = TINY_DQN if script is dqn_vector else TINY_FQI
    folder = train(script, *tiny, "--env-id", "tests.support.probes:Undrawn-v0", "--capture-video")
    assert config(folder)["status"] == "complete"
    assert "(no pencil); the run goes on" in capsys.readouterr().err


def test_a_game_without_no_ops_is_filmed(train):
    folder = train(dqn_atari, *TINY_RUN, "--env-id", "ALE/Backgammon-v5", "--capture-video")
    assert list(Path("videos", folder.name).glob("*.mp4"))


def test_an_ffmpeg_that_does_not_run_is_found_before_anything_is_trained(refused, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nonexistent/ffmpeg")
    assert "ffmpeg, which does not run here" in refused(dqn_atari, *TINY_RUN, "--capture-video")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", shutil.which("false"))
    assert "ffmpeg, which does not run here" in refused(dqn_vector, *TINY_DQN, "--capture-video")


# --- Folders ---


def test_runs_that_start_in_the_same_second_have_folders_of_their_own():
    made, start = [], threading.Barrier(12)

    def make() -> None:
        start.wait()
        made.append(new_folder(dqn_vector.Args()))

    threads = [threading.Thread(target=make) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 12
    assert all(folder.is_dir() for folder in made)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"WANDB_MODE": "online", "WANDB_API_KEY": "short"}, "`wandb login`, or WANDB_MODE=offline"),
        ({"WANDB_MODE": "ofline"}, "Weights & Biases refuses"),
        ({"WANDB_MODE": "offline", "WANDB_TAGS": "t" * 65}, "Weights & Biases refuses"),
    ],
)
def test_a_tracker_that_refuses_leaves_no_folder(refused, monkeypatch, settings, says):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it keeps what the environment said first
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    line = refused(dqn_vector, *TINY_DQN, "--track")
    assert line.startswith("error: --track on: ")
    assert says in line


# --- What is said ---


def test_where_there_is_no_terminal_lines_say_how_far_a_run_is(train, capsys, monkeypatch):
    monkeypatch.setattr(console, "LONGEST_SILENCE", 0.001)
    folder = train(dqn_vector, *TINY_DQN, "--total-timesteps", "300")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"run folder: {folder}"
    assert lines[1] == "training: 0/300 steps"
    assert any(re.match(r"training: \d+/300 steps, [\d,]+/s, 0:00:\d\d left, last return \d+", line) for line in lines)
    assert any(line.endswith("evaluating") for line in lines)


def test_a_line_comes_now_and_then_whatever_the_loop_is_busy_with(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "LONGEST_SILENCE", 0.001)
    lines, enough = [], threading.Event()

    def notice(line: str) -> None:
        lines.append(line)
        if len(lines) == 5:
            enough.set()

    monkeypatch.setattr(tracker, "notice", notice)
    told = tracker.Tracker(tmp_path, [])
    try:
        told.begin("training", 10, "steps", 0)
        told.advance(4)
        with told.paused("evaluating"):
            assert enough.wait(30)
    finally:
        told.close({})
    assert all(line.startswith("training: 4/10 steps, ") and line.endswith(", evaluating") for line in lines[-3:])
    assert len({re.search(r"([\d.,]+)/s", line).group() for line in lines[-3:]}) == 1  # the clock is stopped


def test_long_work_without_a_bar_is_a_line_where_there_is_no_terminal(capsys, monkeypatch):
    with console.working("compiling"):
        pass
    assert not capsys.readouterr().err
    monkeypatch.setattr(console, "SHOW_AFTER", 0.0)
    said = threading.Event()
    again = threading.Event()

    def notice(line: str) -> None:
        (said if line == "compiling" else again).set()
        assert re.fullmatch(r"compiling(: \d+ s)?", line)

    monkeypatch.setattr(console, "notice", notice)
    monkeypatch.setattr(console, "LONGEST_SILENCE", 0.001)
    with console.working("compiling"):
        assert said.wait(30)
        assert again.wait(30)


@pytest.mark.parametrize("script", [dqn_vector, fqi], ids=["dqn", "fqi"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_without_checkpoints_that_is_stopped_says_where_it_was_and_is_no_longer_running(script, number):
    tiny = [*TINY_DQN, "--total-timesteps", "300"] if script is dqn_vector else TINY_FQI
    status, errors = children.run(script, *tiny, before=children.receive, args=("evaluation", 2, number))
    assert status == 128 + number
    assert config(the_run())["status"] == "stopped"
    assert re.search(rf"stopped in (training|fitting), \d+ steps done; run folder: {the_run()}$", errors.strip())
    assert "evaluating" in errors


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--total-timesteps", "90"], "nothing will be learned in --total-timesteps 90 (--learning-starts 100"),
        (["--total-timesteps", "100"], "nothing will be learned"),
        (["--total-timesteps", "101"], "--target-network-frequency 20 never comes due after --learning-starts 100"),
        (["--total-timesteps", "121"], ""),
        (["--total-timesteps", "300", "--train-frequency", "400"], "nothing will be learned"),
        (
            ["--total-timesteps", "190", "--target-network-frequency", "99"],
            "--target-network-frequency 99 never comes due",
        ),
        (["--total-timesteps", "300", "--keep-checkpoint"], "--keep-checkpoint keeps nothing"),
        (["--total-timesteps", "300", "--learning-starts", "0", "--n-step", "300"], "nothing will be learned"),
        (["--total-timesteps", "300", "--target-network-frequency", "301"], "the target network keeps its first weights"),
    ],
)
def test_flags_that_leave_a_loop_nothing_to_do_are_told(train, capsys, monkeypatch, flags, line):
    monkeypatch.setattr(dqn_vector, "LOG_FREQUENCY", 1)
    folder = train(dqn_vector, *TINY_DQN, *flags)
    told = [line for line in capsys.readouterr().err.splitlines() if re.search("nothing|first weights", line)]
    assert (len(told) == 1 and line in told[0]) if line else not told
    assert ("losses/td_loss" in scalars(folder)) == ("nothing will be learned" not in line)


@pytest.mark.parametrize(("n_step", "learned"), [("3", False), ("2", True)])
def test_too_many_steps_are_summed_to_learn_from_the_rows_that_were_stored_before(train, capsys, n_step, learned):
    steps = ["--total-timesteps", "10", "--learning-starts", "0", "--n-step", n_step]  # the last update has 3 rows
    found = weights(dqn_atari, train(dqn_atari, *TINY_RUN, "--save-model", *steps))
    assert ("nothing will be learned" in capsys.readouterr().err) != learned
    torch.manual_seed(1)
    first = dqn_atari.NatureCNN(6).state_dict()
    assert all(torch.equal(found[key], first[key]) for key in first) != learned


@pytest.mark.parametrize(
    "stream",
    [
        "2>&-",
        *all_slow("--track 2>/dev/full", "2>/dev/full", "2>&1 | true", "--track 2>&1 | head -1"),
    ],
)
def test_a_run_whose_readers_have_gone_is_complete(stream):
    command = " ".join([sys.executable, str(SCRIPT), *TINY_DQN, "--total-timesteps", "300", "--save-model"])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command} {stream}"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert config(the_run())["status"] == "complete"
    assert weights(dqn_vector, the_run())


# --- A run that is trained further ---


@pytest.mark.parametrize(
    "script",
    [dqn_vector, *all_slow(dqn_jax, dqn_atari)],
    ids=["dqn", "dqn_jax", "dqn_atari"],
)
def test_a_complete_run_that_is_trained_further_is_the_longer_run_with_the_schedules_of_the_first(train, script):
    atari = script is dqn_atari
    tiny, first, more = (TINY_RUN, "64", "128") if atari else ([*TINY_DQN, "--total-timesteps", "300"], "300", "600")
    flags = [*tiny, "--save-model", *(["--learning-rate-end", "1e-6"] if atari else [])]
    longer = weights(script, train(script, *flags, "--total-timesteps", more, "--schedule-timesteps", first))
    shutil.rmtree("runs")
    frequency = [] if atari else ["--checkpoint-frequency", "1000"]
    folder = train(script, *flags, *frequency, "--keep-checkpoint")
    before = weights(script, folder)
    assert train(script, "--resume", str(folder), "--total-timesteps", more) == folder
    assert config(folder)["steps"] == int(more)
    recorded = config(folder)
    assert recorded["flags"]["schedule_timesteps"] == int(first)
    assert recorded["flags"]["resume"] is None
    assert as_json(flags_module.parse(script.Args, recorded["command"][1:])) == recorded["flags"], "of the longer run"
    found = weights(script, folder)
    assert all(torch.equal(found[key], longer[key]) for key in longer)
    assert not all(torch.equal(found[key], before[key]) for key in longer)


def test_a_complete_run_is_trained_further_only_with_more_steps_and_its_checkpoint(train, refused):
    folder = str(train(dqn_vector, *TINY_DQN, "--total-timesteps", "300"))
    for flags in ([], ["--total-timesteps", "300"], ["--total-timesteps", "200"]):
        assert "more --total-timesteps than its 300" in refused(dqn_vector, "--resume", folder, *flags)
    assert "--initial-model" in refused(dqn_vector, "--resume", folder, "--total-timesteps", "400")
    other = ["--total-timesteps", "400", "--schedule-timesteps", "350"]
    assert "--schedule-timesteps 350" in refused(dqn_vector, "--resume", folder, *other)


@pytest.mark.parametrize("first", [dqn_vector, dqn_jax], ids=["of torch", "of jax"])
def test_a_run_on_vectors_starts_from_the_weights_it_is_given_by_either_framework(train, vector_dqn, first):
    folder = train(first, *TINY_DQN, "--save-model", "--total-timesteps", "300", "--seed", "5")
    model = str(folder / f"{first.Args().exp_name}.cleanrl_model")
    flags = ["--save-model", "--total-timesteps", "50", "--initial-model", model]
    second = weights(vector_dqn, train(vector_dqn, *TINY_DQN, *flags))
    assert all(torch.equal(value, second[key]) for key, value in weights(first, folder).items())


# --- Bad numbers, too little memory, a broken compiler ---


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ("Infinite", "a reward that is not finite at step 3"),
        ("NotANumber", "an observation that is not finite at step 3"),
        ("NotANumberLater", "an observation that is not finite at "),
    ],
)
def test_data_that_are_not_finite_are_named_with_their_step(agent, env, line):
    tiny = TINY_FQI if agent is fqi else TINY_DQN
    status, errors = children.run(agent, *tiny, "--env-id", f"tests.support.probes:{env}-v0")
    assert status == 1
    if env == "NotANumberLater":
        line += "the reset after step 4" if agent is fqi else "step 0 of an episode"
    assert errors.strip().splitlines()[-1].startswith(f"error: tests.support.probes:{env}-v0 gave {line}")
    assert "Traceback" not in errors


def test_a_buffer_that_does_not_fit_is_refused_with_what_would(refused, monkeypatch):
    monkeypatch.setattr(common, "free_memory", lambda: 1_000_000_000)
    line = refused(dqn_atari, *TINY_RUN, "--buffer-size", "200000", "--total-timesteps", "200000")
    assert line.endswith("--buffer-size 200,000: needs 1.4 GB of memory, and 1.0 GB are free: at most 141,000 would fit")
    line = refused(dqn_atari, *TINY_RUN, "--buffer-size", "200000", "--total-timesteps", "64")
    assert "needs 1.4 GB of memory" in line, "all of it is taken at the start"
    require_memory("--buffer-size", 141_000, 1_000_000_000)
    require_memory("--buffer-size", 200_000, None)  # of a system that does not tell


def test_a_buffer_of_vectors_that_does_not_fit_is_refused(refused, vector_dqn):
    line = refused(vector_dqn, *TINY_DQN, "--buffer-size", "100000000000")
    assert "--buffer-size 100,000,000,000: needs 3100.0 GB of memory" in line  # 31 bytes each: 4 numbers, and 15


def test_a_gpu_is_asked_for_the_whole_ring(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1_000_000_000, 2_000_000_000))
    in_torch.require_memory("--buffer-size", 100_000, torch.device("cuda"))
    with pytest.raises(BadInput, match="at most 141,000 would fit"):
        in_torch.require_memory("--buffer-size", 200_000, torch.device("cuda"))


def test_the_memory_of_a_transition_on_vectors_is_what_is_counted(vector_dqn):
    rb = vector_dqn.ReplayBuffer(100, 2, 7, 1, 0.99)
    rings = [value for value in vars(rb).values() if getattr(value, "shape", ())[:2] == (50, 2)]
    assert sum(ring.nbytes for ring in rings) == 100 * vector_dqn.ReplayBuffer.transition_bytes(7)


def test_a_buffer_that_no_machine_has_is_refused_though_little_of_it_would_be_filled(refused):
    for script in (dqn_atari, dqn_atari_jax):
        assert "needs 70660.0 GB of memory" in refused(script, *TINY_RUN, "--buffer-size", "10000000000")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory_is_at_most_what_the_system_has():
    assert 0 < common.free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "line", "compiled"),
    [
        ({"CXX": shutil.which("false")}, "running uncompiled, slower", False),
        ({"TORCHINDUCTOR_CACHE_DIR": "/proc/nowhere"}, "compiled code is not kept", True),
    ],
)
def test_a_compiler_that_does_not_work_and_a_folder_that_cannot_be_written_are_a_line(broken, line, compiled):
    flags = [*(flag for flag in TINY_RUN if flag != "--no-compile"), "--save-model"]
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(Path("cache").absolute())} | broken
    command = [sys.executable, str(ROOT / "cleanrl/dqn_atari.py"), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(line) == 1
    assert config(the_run())["protocol"]["compiled"] is compiled


COMPILER = f"""#!{sys.executable}
import pathlib, subprocess, sys
log = pathlib.Path(__file__).with_name("compiled") if any(word.endswith(".so") for word in sys.argv) else None
if log:
    log.open("a").write("started\\n")
status = subprocess.run(["g++", *sys.argv[1:]]).returncode  # it fails where torch asks what it can do
if log:
    log.open("a").write("ended\\n")
sys.exit(status)
"""


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no groups of processes")
def test_a_signal_that_reaches_the_compiler_too_leaves_no_code_that_is_cut_short(tmp_path):
    Path("compiler").write_text(COMPILER)
    Path("compiler").chmod(0o755)
    program = "with in_torch.compiling(True): torch.compile(lambda x: x.cos() + 1, dynamic=False)(torch.ones(8))"
    command = [sys.executable, "-c", f"import torch\nfrom cleanrl_utils.devices import in_torch\n{program}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CXX": str(Path("compiler").absolute())}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    wait(lambda: Path("compiled").exists(), "the compiler")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    lines = Path("compiled").read_text().split()
    assert lines.count("started") == lines.count("ended") > 0
    assert all(path.stat().st_size > 0 for path in (tmp_path / "cache").rglob("*.so"))


def test_free_memory_of_a_device_that_does_not_tell_is_unknown():
    assert in_torch.free_memory(torch.device("mps")) is None


@pytest.mark.parametrize("script", twin_is_slow(dqn_atari, dqn_atari_jax))
def test_a_run_leaves_its_replay_where_that_is_asked_for(train, script):
    saved = replay.read(train(script, *TINY_RUN, "--save-replay") / replay.FILE)
    assert (saved.env_id, saved.num_actions) == ("PongNoFrameskip-v4", 6)
    assert saved.valid.shape == (32, 2), "64 steps in a ring of 100 rows"
    frames = np.concatenate([frames for _, frames in saved.pieces()])
    assert len(frames) == 64
    assert frames.any(axis=(1, 2)).all()
    assert len(np.unique(saved.actions)) > 2
