"""qdagger_dqn_atari_impalacnn.py end to end on a real game, with tiny sizes, from a teacher's folder to saved students."""

from __future__ import annotations

import gc
import json
import shutil
import weakref

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cleanrl import qdagger_dqn_atari_impalacnn as qdagger
from cleanrl_utils import models
from tests.conftest import TEACHER, TINY_RUN, TINY_TEACHER

TINY = [*TINY_RUN, *TINY_TEACHER]
NAME = "qdagger_dqn_atari_impalacnn"


def test_from_teacher_folder_to_saved_students(train, teacher):
    flags = [
        "--total-timesteps",
        "1000",
        "--train-frequency",
        "100",
        "--offline-steps",
        "200",
        "--offline-eval-frequency",
        "100",
    ]
    flags += ["--teacher-policy-hf-repo", str(teacher), "--student", "impala256", "--save-model"]
    folder = train(qdagger, *TINY, *flags)

    run = json.loads((folder / "config.json").read_text())
    assert run["status"] == "complete"
    assert list(run["evaluations"]) == ["random", "teacher", "offline student", "online student"]
    assert run["protocol"]["teacher"] == str(teacher)
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
    # The exploration clock runs on from the 200 offline steps: 200 + 998 of 100 steps of exploration.
    assert value["charts/epsilon"] == pytest.approx(0.01)


def test_same_seed_gives_identical_weights(train, teacher):
    flags = [*TINY, "--teacher-policy-hf-repo", str(teacher), "--save-model"]
    first, second = (models.load_weights(train(qdagger, *flags) / f"{NAME}.cleanrl_model") for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_offline_training_brings_the_student_to_the_teachers_choices(train, teacher):
    """300 updates at a low temperature must leave the student choosing as its teacher far more often than by chance."""
    flags = "--offline-steps 300 --teacher-steps 600 --teacher-start-e 0.5 --temperature 0.03 --learning-rate 1e-3"
    folder = train(
        qdagger, *TINY, *flags.split(), "--batch-size", "32", "--teacher-policy-hf-repo", str(teacher), "--save-model"
    )
    student, guide = qdagger.NatureCNN(6), qdagger.NatureCNN(6)
    models.load_into(student, folder / f"{NAME}-offline.cleanrl_model")
    models.load_into(guide, teacher / "dqn_atari.cleanrl_model")
    envs, obs, _ = qdagger.make_envs(qdagger.Args(env_id="PongNoFrameskip-v4", num_envs=8, seed=77), seed_purpose=0)
    agreed, gap, spread = 0, 0.0, 0.0
    with torch.no_grad():
        for _ in range(100):
            values, choice = guide(torch.as_tensor(obs)), student(torch.as_tensor(obs)).argmax(1)
            agreed += int((values.argmax(1) == choice).sum())
            gap += (values.max(1).values - values.gather(1, choice[:, None])[:, 0]).sum().item()
            spread += (values.max(1).values - values.mean(1)).sum().item()
            obs = envs.step(values.argmax(1).numpy())[0]
    assert gap < 0.6 * spread, "the student's choices cost the teacher less than random ones"
    assert agreed / 800 > 0.25


def test_online_learning_waits_for_transitions_in_the_online_buffer(train, teacher, monkeypatch):
    sizes = []
    make_update = qdagger.make_update

    def watching(loss_fn, optimizer, rb, device):
        update = make_update(loss_fn, optimizer, rb, device)
        return lambda index: (sizes.append((rb.num_rows, rb.num_valid)), update(index))[1]

    monkeypatch.setattr(qdagger, "make_update", watching)
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
    assert rates[-1] == pytest.approx((0.75, 4e-4))


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
