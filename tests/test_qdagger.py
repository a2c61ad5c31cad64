"""qdagger_dqn_atari_impalacnn.py end to end on a real game, with tiny sizes, from a teacher's folder to saved students."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cleanrl import qdagger_dqn_atari_impalacnn as qdagger
from cleanrl_utils import curves, models
from tests.conftest import TEACHER, TINY_RUN, TINY_TEACHER

TINY = [*TINY_RUN, *TINY_TEACHER]
NAME = "qdagger_dqn_atari_impalacnn"


def watch_updates(monkeypatch: pytest.MonkeyPatch, look: Callable[[qdagger.ReplayBuffer], Any]) -> list[Any]:
    """What `look` finds in the buffer before each update of the run to come."""
    seen, make_update = [], qdagger.make_update

    def watched(loss_fn, optimizer, rb, device):
        update = make_update(loss_fn, optimizer, rb, device)
        return lambda index: (seen.append(look(rb)), update(index))[1]

    monkeypatch.setattr(qdagger, "make_update", watched)
    return seen


def test_from_teacher_folder_to_saved_students(train, teacher):
    flags = "--total-timesteps 1000 --train-frequency 100 --exploration-fraction 1".split()
    flags += "--offline-steps 200 --offline-eval-frequency 100 --student impala256 --save-model".split()
    flags += ["--teacher-policy-hf-repo", str(teacher)]
    folder = train(qdagger, *TINY, *flags)

    run = json.loads((folder / "config.json").read_text())
    assert run["status"] == "complete"
    assert list(run["evaluations"]) == ["random", "teacher", "offline student", "online student"]
    assert run["protocol"]["teacher"] == teacher.name, "no local folder in what may be shared"
    offline, last = (models.load_weights(folder / f"{name}.cleanrl_model") for name in (f"{NAME}-offline", NAME))
    qdagger.ImpalaCNN(6).load_state_dict(last, strict=True)
    assert not all(torch.equal(offline[key], last[key]) for key in last), "the online phase learned"

    events = EventAccumulator(str(folder)).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    steps.pop("charts/episodic_return", None), steps.pop("charts/episodic_length", None)
    assert steps == {
        "charts/teacher/avg_episodic_return": [0],
        "charts/offline/loss": [100, 200],
        "charts/offline/q_loss": [100, 200],
        "charts/offline/distill_loss": [100, 200],
        "charts/offline/q_values": [100, 200],
        "charts/offline/avg_episodic_return": [100, 200],
        "charts/epsilon": [1000],
        "charts/SPS": [1000],
        "charts/distill_coeff": [1000],
        "losses/loss": [1000],
        "losses/td_loss": [1000],
        "losses/distill_loss": [1000],
        "losses/q_values": [1000],
        "eval/episodic_return": [1000],
    }
    value = {tag: events.Scalars(tag)[-1].value for tag in steps}
    assert value["losses/loss"] == pytest.approx(
        value["losses/td_loss"] + value["charts/distill_coeff"] * value["losses/distill_loss"], rel=1e-4
    )
    assert value["charts/distill_coeff"] == 1.0
    # The exploration clock runs on from the 200 offline steps: 200 + 998 is past the 1000 steps of exploration, where
    # 998 alone would give 0.012.
    assert value["charts/epsilon"] == pytest.approx(0.01, abs=1e-6)


def test_same_seed_gives_identical_weights(train, teacher):
    flags = [*TINY, "--teacher-policy-hf-repo", str(teacher), "--save-model"]
    first, second = (models.load_weights(train(qdagger, *flags) / f"{NAME}.cleanrl_model") for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_offline_training_brings_the_student_to_its_teacher(train, teacher, monkeypatch):
    """The distillation loss over the teacher's whole data falls to less than half, from the student's side alone."""
    guide, losses, train_offline = qdagger.NatureCNN(6), [], qdagger.train_offline
    models.load_into(guide, teacher / "dqn_atari.cleanrl_model")

    @torch.no_grad()
    def loss(learner, rb) -> float:
        obs = rb.sample(torch.arange(8, 150)).obs
        return qdagger.distillation_loss(learner.q_network(obs), guide(obs), 0.03).item()

    def watch(learner, args, rb, *rest):
        losses.append(loss(learner, rb))
        train_offline(learner, args, rb, *rest)
        losses.append(loss(learner, rb))

    monkeypatch.setattr(qdagger, "train_offline", watch)
    flags = "--offline-steps 400 --teacher-steps 160 --temperature 0.03 --learning-rate 3e-4 --batch-size 32"
    train(qdagger, *TINY, *flags.split(), "--teacher-policy-hf-repo", str(teacher))
    assert losses[1] < 0.5 * losses[0]


def test_online_learning_waits_for_transitions_in_the_online_buffer(train, teacher, monkeypatch):
    sizes = watch_updates(monkeypatch, lambda rb: (rb.num_rows, rb.num_valid))
    train(qdagger, *TINY, "--learning-starts", "40", "--buffer-size", "500", "--teacher-policy-hf-repo", str(teacher))
    offline, online = ([valid for rows, valid in sizes if rows == wanted] for wanted in (32, 250))
    assert offline == [64] * 8, "offline: 8 updates on the teacher's 64 transitions"
    assert len(online) == (64 - 40) // 4
    assert min(online) >= 40


def test_phases_hand_over_a_level_target_a_kept_optimizer_and_a_freed_buffer(train, teacher, monkeypatch):
    buffers, seen = [], {}
    replay = qdagger.ReplayBuffer

    def remembered(*args):
        rb = replay(*args)
        buffers.append(weakref.ref(rb))
        return rb

    train_online = qdagger.train_online

    def online(learner, *args):
        gc.collect()
        online_weights, target_weights = learner.q_network.state_dict(), learner.target_network.state_dict()
        seen["level"] = all(torch.equal(online_weights[key], target_weights[key]) for key in online_weights)
        seen["adam"] = {int(state["step"]) for state in learner.optimizer.state.values()}
        seen["alive"] = [ref() is not None for ref in buffers]
        return train_online(learner, *args)

    monkeypatch.setattr(qdagger, "ReplayBuffer", remembered)
    remembered.min_rows = replay.min_rows
    monkeypatch.setattr(qdagger, "train_online", online)
    train(qdagger, *TINY, "--offline-steps", "7", "--teacher-policy-hf-repo", str(teacher))
    assert seen == {"level": True, "adam": {7}, "alive": [False, True]}


def test_distillation_fades_with_the_learning_rate(train, teacher, monkeypatch):
    monkeypatch.setattr(qdagger, "fading", lambda *_: 0.25)
    rates = []
    set_rates = qdagger.Learner.set_rates

    def watch(learner, *args):
        set_rates(learner, *args)
        rates.append((learner.coefficient.item(), learner.optimizer.param_groups[0]["lr"].item()))

    monkeypatch.setattr(qdagger.Learner, "set_rates", watch)
    flags = ["--distill-coefficient", "3", "--learning-rate", "1e-3", "--learning-rate-end", "2e-4", "--offline-steps", "3"]
    flags += ["--offline-learning-rate-end", "4e-4"]
    train(qdagger, *TINY, *flags, "--teacher-policy-hf-repo", str(teacher))
    assert [rate for pair in rates[:3] for rate in pair] == pytest.approx([3, 1e-3, 3, 8e-4, 3, 6e-4])
    # Online the rate goes on from where the offline phase left it: 2e-4 + (4e-4 - 2e-4) * 0.25.
    assert rates[-1] == pytest.approx((0.75, 2.5e-4))


def test_with_no_flag_the_teacher_is_the_model_in_the_box():
    args = qdagger.Args(env_id="PongNoFrameskip-v4")
    network, source = qdagger.load_teacher(args, 6)
    assert source == str(TEACHER)
    assert qdagger.load_teacher(qdagger.Args(env_id="ALE/Pong-v5"), 6)[1] == str(TEACHER)
    expected = models.load_weights(TEACHER / "dqn_atari.cleanrl_model")
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_a_teacher_under_another_name_is_found_by_it(teacher, tmp_path):
    (tmp_path / "mine").mkdir()
    shutil.copy(teacher / "dqn_atari.cleanrl_model", tmp_path / "mine" / "other.cleanrl_model")
    args = qdagger.Args(teacher_policy_hf_repo=str(tmp_path / "mine"), teacher_model_exp_name="other")
    assert qdagger.load_teacher(args, 6)[1] == str(tmp_path / "mine")


def test_learning_starts_can_be_reached_with_a_smaller_buffer(train, teacher, monkeypatch):
    added = watch_updates(monkeypatch, lambda rb: rb.num_added)
    train(qdagger, *TINY, "--learning-starts", "40", "--buffer-size", "20", "--teacher-policy-hf-repo", str(teacher))
    assert len([count for count in added if count < 64]) == (64 - 40) // 4


def test_finished_games_reach_the_fading(train, teacher, monkeypatch):
    """A player at epsilon 1 loses its first games within 2,000 steps; their returns are what counts."""
    seen = []
    monkeypatch.setattr(qdagger, "fading", lambda returns, *_: seen.append(list(returns)) or 1.0)
    flags = "--total-timesteps 4000 --start-e 1 --end-e 1 --learning-starts 100000".split()
    folder = train(qdagger, *TINY, *flags, "--teacher-policy-hf-repo", str(teacher))
    logged = [e.value for e in EventAccumulator(str(folder)).Reload().Scalars("charts/episodic_return")]
    assert logged
    assert seen[-1] == logged[: len(seen[-1])] != []
    assert seen[0] == []


def test_curves_of_a_run_with_an_offline_phase(train, teacher):
    pytest.importorskip("matplotlib")
    train(qdagger, *TINY, "--offline-steps", "100", "--teacher-policy-hf-repo", str(teacher))
    assert curves.main(curves.Args()).stat().st_size > 10_000


def test_toy_sizes_run(train, teacher, capsys):
    flags = "--learning-starts 10 --total-timesteps 16 --buffer-size 10 --teacher-steps 10 --num-envs 8".split()
    train(qdagger, *TINY, *flags, "--teacher-policy-hf-repo", str(teacher))
    raised = [line.split()[0] for line in capsys.readouterr().err.splitlines() if "is raised to 40" in line]
    assert raised == ["--teacher-steps", "--buffer-size"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_and_plain_runs_learn_the_same(train, teacher):
    flags = [*TINY, "--teacher-policy-hf-repo", str(teacher), "--save-model", "--total-timesteps", "32"]
    plain, compiled = (
        models.load_weights(train(qdagger, *flags, flag) / f"{NAME}.cleanrl_model") for flag in ("--no-compile", "--compile")
    )
    assert all(torch.allclose(plain[key], compiled[key], atol=1e-4) for key in plain)


def test_default_buffers_take_at_most_8_5_gigabytes_at_a_time(cpu):
    args = qdagger.Args()
    for size in (args.teacher_steps, args.buffer_size):  # never both: the first is freed before the second is made
        rb = qdagger.ReplayBuffer(size // 100, args.num_envs, args.n_step, args.gamma, cpu)
        tensors = [value for value in vars(rb).values() if isinstance(value, torch.Tensor)]
        assert 100 * (sum(tensor.nbytes for tensor in tensors) + rb.valid.nbytes) <= 8.5e9
