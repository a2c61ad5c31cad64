"""dqn_atari.py end to end on a real game, with tiny sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cleanrl import dqn_atari as dqn
from cleanrl_utils import models
from tests.conftest import TINY_RUN


def test_a_run_leaves_model_config_and_metrics(train):
    folder = train(dqn, *TINY_RUN, "--total-timesteps", "4000", "--train-frequency", "32", "--save-model")
    assert folder.parent == Path("runs")
    assert folder.name.startswith("PongNoFrameskip-v4__dqn_atari__1__")

    run = json.loads((folder / "config.json").read_text())
    assert run["status"] == "complete"
    assert run["steps"] == 4000
    assert run["flags"]["env_id"] == "PongNoFrameskip-v4"
    assert run["versions"]["torch"] == torch.__version__
    assert len(run["evaluations"]["agent"]["returns"]) == 1
    assert run["evaluations"]["agent"]["capped"] == 1
    assert run["wall_time"] > 0

    models.load_into(dqn.NatureCNN(6), folder / "dqn_atari.cleanrl_model")
    assert not list(folder.glob("*.tmp"))

    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) == {
        "charts/episodic_return", "charts/episodic_length", "charts/epsilon", "charts/SPS", "losses/td_loss",
        "losses/q_values", "eval/episodic_return",
    }  # fmt: skip
    assert [event.step for event in events.Scalars("charts/SPS")] == [1000, 2000, 3000, 4000]
    # The exploration fraction is 0.1 of 4000 steps; the value logged at 1000 is that of the step before.
    assert events.Scalars("charts/epsilon")[0].value == pytest.approx(0.01)
    assert all(-21 <= event.value <= 21 for event in events.Scalars("charts/episodic_return"))


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return models.load_weights(folder / "dqn_atari.cleanrl_model")


def test_same_seed_gives_identical_weights_and_another_seed_does_not(train):
    first, second, other = (
        final_weights(train(dqn, *TINY_RUN, "--n-step", "3", "--double-q", "--save-model", "--seed", seed))
        for seed in ("1", "1", "2")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(("num_envs", "sync_period", "num_syncs"), [(1, 100, 10), (8, 100, 10), (64, 100, 10), (64, 30, 16)])
def test_one_update_per_train_frequency_steps_and_syncs_by_steps(train, monkeypatch, num_envs, sync_period, num_syncs):
    updates, syncs = [], []
    make_update, sync = dqn.make_update, dqn.sync

    def counting_update(*args):
        update = make_update(*args)
        return lambda index: (updates.append(1), update(index))[1]

    monkeypatch.setattr(dqn, "make_update", counting_update)
    monkeypatch.setattr(dqn, "sync", lambda *args: (syncs.append(1), sync(*args)))
    flags = ["--num-envs", str(num_envs), "--total-timesteps", "1280", "--learning-starts", "256", "--batch-size", "1"]
    train(dqn, *TINY_RUN, *flags, "--buffer-size", "2000", "--target-network-frequency", str(sync_period))
    assert len(updates) == (1280 - 256) // 4
    # Multiples of 100 in (256, 1280]: 300 .. 1200. Of 30 there are two in each step of 64 games: one sync each.
    assert len(syncs) == num_syncs


def test_updates_change_the_weights_only_after_learning_starts(train):
    torch.manual_seed(1)
    initial = dqn.NatureCNN(6).state_dict()
    untouched = final_weights(train(dqn, *TINY_RUN, "--learning-starts", "1000", "--save-model"))
    trained = final_weights(train(dqn, *TINY_RUN, "--save-model"))
    assert all(torch.equal(untouched[key], initial[key]) for key in initial)
    assert not any(torch.equal(trained[key], initial[key]) for key in initial)


def test_a_run_starts_from_the_weights_it_is_given(train):
    first = train(dqn, *TINY_RUN, "--save-model", "--seed", "5")
    model = str(first / "dqn_atari.cleanrl_model")
    second = train(dqn, *TINY_RUN, "--save-model", "--initial-model", model, "--learning-starts", "1000")
    before, after = final_weights(first), final_weights(second)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_learning_rate_falls_on_a_line(train, monkeypatch):
    rates, adam = [], torch.optim.Adam

    class Watched(adam):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"].item())
            return super().step(*args)

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    train(
        dqn,
        *TINY_RUN,
        "--num-envs",
        "4",
        "--learning-rate",
        "1e-3",
        "--learning-rate-end",
        "2e-4",
        "--learning-starts",
        "32",
    )
    # An update at each of the steps 32, 36 .. 60 of 64: 1e-3 - 8e-4 * step / 64.
    assert rates == pytest.approx([1e-3 - 8e-4 * step / 64 for step in range(32, 64, 4)])


def test_toy_sizes_run_and_the_buffer_is_raised_with_one_line(train, capsys):
    flags = "--learning-starts 10 --total-timesteps 16 --buffer-size 10 --batch-size 4 --num-envs 8".split()
    train(dqn, *TINY_RUN, *flags)
    raised = [line for line in capsys.readouterr().err.splitlines() if "--buffer-size" in line]
    assert raised == ["--buffer-size 10 is raised to 40, the least that these settings need"]


def test_the_best_evaluated_weights_are_kept_beside_the_last(train, monkeypatch):
    scores = iter([1.0, 5.0, 3.0])

    def fake_scores(policy, **protocol):  # the scores are made up; what is kept when is the claim
        result = evaluate(policy, **protocol)
        score = next(scores)
        return dqn.Evaluation([score], result.lengths, result.capped)

    evaluate = dqn.evaluate
    saved = []
    save_weights = models.save_weights
    monkeypatch.setattr(dqn, "evaluate", fake_scores)
    monkeypatch.setattr(models, "save_weights", lambda weights, path: (saved.append(path.stem), save_weights(weights, path)))
    folder = train(dqn, *TINY_RUN, "--eval-frequency", "30", "--total-timesteps", "64", "--save-model")
    assert saved == ["dqn_atari-best", "dqn_atari-best", "dqn_atari"]
    best, last = (models.load_weights(folder / f"{name}.cleanrl_model") for name in ("dqn_atari-best", "dqn_atari"))
    assert not all(torch.equal(best[key], last[key]) for key in best)


@pytest.mark.parametrize("flags", [["--life-loss"], ["--no-life-loss", "--huber", "--bf16", "--env-id", "ALE/Breakout-v5"]])
def test_protocol_flags_run(train, flags):
    run = json.loads((train(dqn, *TINY_RUN, *flags) / "config.json").read_text())
    assert run["protocol"]["life_loss"] == (flags[0] == "--life-loss")
    assert run["protocol"]["sticky_actions"] == (0.25 if "ALE/Breakout-v5" in flags else 0.0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_and_plain_runs_learn_the_same(train):
    flags = ["--total-timesteps", "40", "--learning-starts", "8", "--save-model"]
    folders = [train(dqn, *TINY_RUN, *flags, flag) for flag in ("--no-compile", "--compile")]
    assert [json.loads((folder / "config.json").read_text())["protocol"]["compiled"] for folder in folders] == [False, True]
    plain, compiled = map(final_weights, folders)
    assert all(torch.allclose(plain[key], compiled[key], atol=1e-4) for key in plain)


def test_without_a_compiler_a_run_is_plain_and_says_so(train, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    folder = train(dqn, *TINY_RUN, "--compile")
    assert len([line for line in capsys.readouterr().err.splitlines() if "no-such-compiler" in line]) == 1
    assert json.loads((folder / "config.json").read_text())["protocol"]["compiled"] is False


def test_an_interrupted_run_says_running(train, monkeypatch):
    monkeypatch.setattr(dqn, "epsilon_greedy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(dqn, *TINY_RUN)
    (config,) = Path("runs").glob("*/config.json")
    assert json.loads(config.read_text())["status"] == "running"


def test_a_video_is_a_whole_game(train):
    pytest.importorskip("moviepy")
    folder = train(dqn, *TINY_RUN, "--capture-video")
    (video,) = Path("videos", folder.name).glob("*.mp4")
    assert video.stat().st_size > 1000
