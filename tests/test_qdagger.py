"""qdagger_dqn_atari_impalacnn.py and its JAX twin end to end, from a teacher's folder to saved students, in tiny sizes."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from cleanrl import qdagger_dqn_atari_impalacnn as in_torch
from cleanrl import qdagger_dqn_atari_jax_impalacnn as in_jax
from cleanrl_utils import curves
from cleanrl_utils.models.files import load_into, load_weights, save_params
from cleanrl_utils.run import run as run_module
from cleanrl_utils.run.checkpoint import Checkpoints
from cleanrl_utils.run.estimate import estimate, seconds_left
from cleanrl_utils.run.run import Run
from cleanrl_utils.run.tracker import Tracker
from tests.conftest import TEACHER, TINY_RUN, TINY_TEACHER, needs_compiler, scalars, twin_is_slow, watch_updates, weights
from tests.support import pages

TINY = [*TINY_RUN, *TINY_TEACHER, "--teacher-policy-hf-repo", str(TEACHER)]


@pytest.fixture(params=twin_is_slow(in_torch, in_jax), ids=["torch", "jax"])
def qdagger(request):
    """Each of the two scripts."""
    return request.param


def test_from_teacher_folder_to_saved_students(train, qdagger, monkeypatch):
    monkeypatch.setattr(qdagger, "LOG_FREQUENCY", 100)
    monkeypatch.setattr(qdagger, "OFFLINE_LOG_FREQUENCY", 10)
    flags = "--total-timesteps 100 --train-frequency 10 --exploration-fraction 1".split()
    flags += "--offline-steps 20 --offline-eval-frequency 10 --student impala256 --save-model".split()
    folder = train(qdagger, *TINY, *flags)

    run = json.loads((folder / "config.json").read_text())
    assert run["status"] == "complete"
    assert list(run["evaluations"]) == ["random", "teacher", "offline student", "online student"]
    assert run["protocol"]["teacher"] == TEACHER.name, "no local folder in what may be shared"
    offline, last = weights(qdagger, folder, "-offline"), weights(qdagger, folder)
    in_torch.ImpalaCNN(6).load_state_dict(last, strict=True)
    assert not all(torch.equal(offline[key], last[key]) for key in last), "the online phase learned"

    logged = scalars(folder)
    of_games = {"charts/episodic_return", "charts/episodic_length"}  # none may have ended
    assert logged.keys() | of_games == pages.metrics("docs/rl-algorithms/qdagger.md")
    logged = {tag: series for tag, series in logged.items() if tag not in of_games}
    steps = {tag: [step for step, _ in series] for tag, series in logged.items()}
    assert steps == {
        "charts/teacher/avg_episodic_return": [0],
        "charts/offline/loss": [10, 20],
        "charts/offline/q_loss": [10, 20],
        "charts/offline/distill_loss": [10, 20],
        "charts/offline/q_values": [10, 20],
        "charts/offline/avg_episodic_return": [10, 20],
        "charts/epsilon": [100],
        "charts/SPS": [100],
        "charts/distill_coeff": [100],
        "losses/loss": [100],
        "losses/td_loss": [100],
        "losses/distill_loss": [100],
        "losses/q_values": [100],
        "eval/episodic_return": [100],
    }
    value = {tag: series[-1][1] for tag, series in logged.items()}
    assert value["losses/loss"] == pytest.approx(
        value["losses/td_loss"] + value["charts/distill_coeff"] * value["losses/distill_loss"], rel=1e-4
    )
    assert value["charts/distill_coeff"] == 3.0
    # The exploration clock runs on from the 20 offline steps: 20 + 98 is past the 100 steps of exploration, where
    # 98 alone would give 0.03.
    assert value["charts/epsilon"] == pytest.approx(0.01, abs=1e-6)


@pytest.mark.slow
def test_same_seed_gives_identical_weights(train, qdagger):
    first, second = (weights(qdagger, train(qdagger, *TINY, "--save-model")) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_offline_training_brings_the_student_to_its_teacher(train, qdagger, monkeypatch):
    """The distillation loss over the teacher's whole data falls to less than half, from the student's side alone."""
    losses, train_offline = [], qdagger.train_offline
    guide = in_torch.NatureCNN(6)
    load_into(guide, TEACHER / "dqn_atari.cleanrl_model")

    @torch.no_grad()
    def loss(learner, rb) -> float:
        index, student = np.arange(8, 70), in_torch.NatureCNN(6)
        if qdagger is in_torch:
            student, obs = learner.q_network, rb.sample(torch.from_numpy(index)).obs
        else:
            save_params(learner.q_state.params, Path("student"))
            load_into(student, Path("student"))
            obs = torch.tensor(np.asarray(rb.sample(index).obs))
        return in_torch.distillation_loss(student(obs), guide(obs), 0.03).item()

    def watch(state, *rest):
        losses.append(loss(state.learner, state.rb))
        train_offline(state, *rest)
        losses.append(loss(state.learner, state.rb))

    monkeypatch.setattr(qdagger, "train_offline", watch)
    flags = "--offline-steps 100 --offline-eval-frequency 0 --teacher-steps 80 --temperature 0.03 --learning-rate 3e-4"
    flags += " --batch-size 32 --total-timesteps 2"
    train(qdagger, *TINY, *flags.split())
    assert losses[1] < 0.5 * losses[0]


def test_online_learning_waits_for_steps_whose_transitions_the_online_buffer_holds(train, qdagger, monkeypatch):
    sizes = watch_updates(monkeypatch, qdagger, lambda rb: (rb.num_rows, rb.num_valid))
    train(qdagger, *TINY, "--learning-starts", "40", "--buffer-size", "500")
    offline, online = ([valid for rows, valid in sizes if rows == wanted] for wanted in (32, 250))
    assert offline == [64] * 8, "offline: 8 updates on the teacher's 64 transitions"
    assert len(online) == (64 - 40) // 4
    assert min(online) >= 40


def test_phases_hand_over_a_level_target_a_kept_optimizer_and_a_freed_buffer(train, qdagger, monkeypatch):
    buffers, seen = [], {}
    replay = qdagger.ReplayBuffer

    def remembered(*args):
        rb = replay(*args)
        buffers.append(weakref.ref(rb.frames if qdagger is in_torch else rb.rings.frames))
        return rb

    train_online = qdagger.train_online

    def online(state, *args):
        gc.collect()
        learner = state.learner
        if qdagger is in_torch:
            online_weights, target_weights = learner.q_network.parameters(), learner.target_network.parameters()
            steps = {int(state["step"]) for state in learner.optimizer.state.values()}
        else:
            online_weights, target_weights = map(jax.tree.leaves, (learner.q_state.params, learner.q_state.target_params))
            steps = {int(learner.q_state.opt_state.count)}
        pairs = zip(online_weights, target_weights, strict=True)
        seen["level"] = all(bool((a == b).all()) for a, b in pairs)
        seen["adam"] = steps
        seen["alive"] = [ref() is not None for ref in buffers]
        return train_online(state, *args)

    monkeypatch.setattr(qdagger, "ReplayBuffer", remembered)
    remembered.min_rows = replay.min_rows
    monkeypatch.setattr(qdagger, "train_online", online)
    train(qdagger, *TINY, "--offline-steps", "7")
    assert seen == {"level": True, "adam": {7}, "alive": [False, True]}


def test_distillation_fades_with_the_learning_rate(train, qdagger, monkeypatch):
    monkeypatch.setattr(qdagger, "fading", lambda *_: 0.25)
    rates = []
    if qdagger is in_torch:
        set_rates = qdagger.Learner.set_rates

        def watch(learner, *args):
            set_rates(learner, *args)
            rates.append((learner.coefficient.item(), learner.optimizer.param_groups[0]["lr"].item()))

        monkeypatch.setattr(qdagger.Learner, "set_rates", watch)
    else:
        update = qdagger.Learner.update

        def watch(learner, rb, indices, learning_rate, coefficient):
            if np.any(indices):  # all zeros: the warm-up
                rates.append((coefficient, learning_rate))
            return update(learner, rb, indices, learning_rate, coefficient)

        monkeypatch.setattr(qdagger.Learner, "update", watch)
    flags = ["--distill-coefficient", "3", "--learning-rate", "1e-3", "--learning-rate-end", "2e-4", "--offline-steps", "3"]
    flags += ["--offline-learning-rate-end", "4e-4"]
    train(qdagger, *TINY, *flags)
    assert [rate for pair in rates[:3] for rate in pair] == pytest.approx([3, 1e-3, 3, 8e-4, 3, 6e-4])
    # Online the rate goes on from where the offline phase left it: 2e-4 + (4e-4 - 2e-4) * 0.25.
    assert rates[-1] == pytest.approx((0.75, 2.5e-4))


def test_with_no_flag_the_teacher_is_the_model_in_the_box_for_both(qdagger, capsys):
    network, *params, source = qdagger.load_teacher(qdagger.Args(env_id="PongNoFrameskip-v4"), 6)
    assert source == str(TEACHER)
    assert qdagger.load_teacher(qdagger.Args(env_id="ALE/Pong-v5"), 6)[-1] == str(TEACHER)
    said = [line for line in capsys.readouterr().err.splitlines() if "using that" in line]
    assert len(said) == (0 if qdagger is in_torch else 2), "the one in the box is torch's"
    expected = load_weights(TEACHER / "dqn_atari.cleanrl_model")
    if params:
        save_params(*params, Path("teacher"))
        network = in_torch.NatureCNN(6)
        load_into(network, Path("teacher"))
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_a_teacher_under_another_name_is_found_by_it(qdagger, tmp_path):
    (tmp_path / "mine").mkdir()
    shutil.copy(TEACHER / "dqn_atari.cleanrl_model", tmp_path / "mine" / "other.cleanrl_model")
    args = qdagger.Args(teacher_policy_hf_repo=str(tmp_path / "mine"), teacher_model_exp_name="other")
    assert qdagger.load_teacher(args, 6)[-1] == str(tmp_path / "mine")


@pytest.mark.slow
def test_a_teacher_of_either_framework_serves_a_student_of_the_other(train, qdagger, jax_teacher):
    """A JAX teacher here; the one in the box, which all other runs have, is torch's."""
    runs = [train(qdagger, *TINY, "--teacher-policy-hf-repo", str(source)) for source in (jax_teacher, TEACHER)]
    scores = [json.loads((run / "config.json").read_text())["evaluations"]["teacher"] for run in runs]
    assert scores[0] == scores[1], "the same games"


@pytest.mark.slow
def test_learning_starts_can_be_reached_with_a_smaller_buffer(train, qdagger, monkeypatch):
    rows = watch_updates(monkeypatch, qdagger, lambda rb: rb.num_rows)
    train(qdagger, *TINY, "--learning-starts", "40", "--buffer-size", "20")
    assert rows.count(10) == (64 - 40) // 4, "and others of the teacher's data"


@pytest.mark.slow
def test_finished_games_reach_the_fading(train, qdagger, monkeypatch):
    """A player at epsilon 1 loses its first games within 2,000 steps; their returns are what counts."""
    seen = []
    monkeypatch.setattr(qdagger, "fading", lambda returns, *_: seen.append(list(returns)) or 1.0)
    flags = "--total-timesteps 4000 --start-e 1 --end-e 1 --learning-starts 100000".split()
    folder = train(qdagger, *TINY, *flags)
    logged = [value for _, value in scalars(folder)["charts/episodic_return"]]
    assert logged
    assert seen[-1] == logged[: len(seen[-1])] != []
    assert seen[0] == []


@pytest.mark.slow
def test_curves_of_a_run_with_an_offline_phase(train):
    pytest.importorskip("matplotlib")
    train(in_torch, *TINY, "--offline-steps", "100")
    assert curves.main(curves.Args()).stat().st_size > 10_000


@pytest.mark.slow
def test_jax_compiles_nothing_while_it_counts_steps(train, monkeypatch):
    compilations, phases, begin, finish, warm_up = [], [], Tracker.begin, Run.finish, in_jax.Learner.warm_up
    save, saving = Checkpoints.save, []

    def hear(event, _, **about):
        if "backend_compile" in event and not saving:
            compilations.append(about)

    def saved(*given):
        """The clock stands while a checkpoint is written."""
        saving.append(True)
        save(*given)
        saving.pop()

    jax.monitoring.register_event_duration_secs_listener(hear)

    def began(tracker, name, *rest):
        phases.append((name, len(compilations)))
        return begin(tracker, name, *rest)

    def warmed_up(*given):
        phases.append(("set-up", len(compilations)))
        return warm_up(*given)

    def ended(run, *results):
        phases.append(("the end", len(compilations)))
        return finish(run, *results)

    class Watched(in_jax.ReplayBuffer):
        def __init__(self, *args):
            phases.append(("set-up", len(compilations)))
            super().__init__(*args)

    monkeypatch.setattr(Tracker, "begin", began)
    monkeypatch.setattr(Checkpoints, "save", saved)
    monkeypatch.setattr(in_jax.Learner, "warm_up", warmed_up)
    monkeypatch.setattr(Run, "finish", ended)
    monkeypatch.setattr(in_jax, "ReplayBuffer", Watched)
    train(in_jax, *TINY, "--num-envs", "6", "--total-timesteps", "600", "--eval-frequency", "300", "--eval-episodes", "3")
    jax.monitoring.unregister_event_duration_listener(hear)
    names = [name for name, _ in phases]
    assert names == [
        "set-up", "teacher's data", "set-up", "offline training", "set-up", "set-up", "online training", "the end",
    ]  # fmt: skip
    assert compilations, "the listener hears of compilations"
    for (name, before), (_, after) in itertools.pairwise(phases):
        assert name == "set-up" or compilations[before:after] == [], name


def test_the_time_left_is_that_of_all_updates_and_of_the_online_steps():
    args = in_torch.Args(offline_steps=1000, total_timesteps=400, learning_starts=100, train_frequency=4)
    # 800 updates offline and 75 online at 10 per second, 400 steps at 200 per second.
    assert seconds_left(args, 200, 10.0, 200.0) == pytest.approx(87.5 + 2)
    assert seconds_left(args, 200, 10.0, None) == pytest.approx(87.5)
    assert "about 10 min more, without evaluations;" in estimate(600, with_games=True)
    assert "about 2.5 h more, without evaluations and games;" in estimate(9000, with_games=False)
    assert "about 1 min more" in estimate(3, with_games=True)


def test_the_first_offline_updates_tell_how_long_the_run_takes(train, qdagger, capsys, monkeypatch):
    monkeypatch.setattr(qdagger, "OFFLINE_LOG_FREQUENCY", 5)
    asked = []
    monkeypatch.setattr(run_module, "seconds_left", lambda *about: asked.append(about) or 120.0)
    train(qdagger, *TINY, "--offline-steps", "20")
    assert capsys.readouterr().err.count("at this speed the run takes about 2 min more, without evaluations;") == 1
    ((args, done, updates, steps),) = asked
    assert (args.offline_steps, done) == (20, 5)
    assert min(updates, steps) > 0


@pytest.mark.slow
def test_toy_sizes_run(train, qdagger, capsys):
    flags = "--learning-starts 10 --total-timesteps 16 --buffer-size 10 --teacher-steps 10 --num-envs 8".split()
    train(qdagger, *TINY, *flags)
    raised = [line.split()[0] for line in capsys.readouterr().err.splitlines() if "is raised to 40" in line]
    assert raised == ["--teacher-steps", "--buffer-size"]


@needs_compiler
@pytest.mark.slow
def test_compiled_and_plain_runs_learn_the_same(train):
    flags = [*TINY, "--save-model", "--total-timesteps", "32"]
    folders = [train(in_torch, *flags, flag) for flag in ("--no-compile", "--compile")]
    assert [json.loads((folder / "config.json").read_text())["protocol"]["compiled"] for folder in folders] == [False, True]
    plain, compiled = (weights(in_torch, folder) for folder in folders)
    assert all(torch.allclose(plain[key], compiled[key], atol=1e-4) for key in plain)


@pytest.mark.slow
def test_an_impala_network_is_not_compiled_on_a_cpu(train):
    folder = train(in_torch, *TINY, "--student", "impala256", "--compile")
    assert json.loads((folder / "config.json").read_text())["protocol"]["compiled"] is False


def test_default_buffers_take_at_most_8_5_gigabytes_at_a_time(qdagger):
    args, device = qdagger.Args(), torch.device("cpu") if qdagger is in_torch else jax.devices("cpu")[0]
    qdagger.check(args)
    for size in (args.teacher_steps, args.buffer_size):  # never both: the first is freed before the second is made
        rb = qdagger.ReplayBuffer(size // 100, args.num_envs, args.n_step, args.gamma, device)
        arrays = [value for value in vars(rb).values() if isinstance(value, torch.Tensor | np.ndarray)]
        arrays += getattr(rb, "rings", [])
        assert 6e9 * size / 1e6 <= 100 * sum(array.nbytes for array in arrays) <= 8.5e9
