"""dqn_atari.py and its JAX twin end to end on a real game, with tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
import torch

from cleanrl import dqn_atari, dqn_atari_jax
from cleanrl_utils.models import files
from cleanrl_utils.models.files import load_into, load_weights, save_params
from tests.conftest import DQN, TINY_RUN, needs_compiler, scalars, twin_is_slow, watch_updates, weights
from tests.support import pages


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[bool]:
    """Whether two models are the same, tensor by tensor."""
    assert first.keys() == second.keys()
    return [torch.equal(first[key], second[key]) for key in first]


@pytest.fixture(params=twin_is_slow(*DQN), ids=["torch", "jax"])
def dqn(request):
    """Each of the two scripts."""
    return request.param


def test_a_run_leaves_model_config_and_metrics(train, dqn):
    folder = train(dqn, *TINY_RUN, "--total-timesteps", "2000", "--train-frequency", "100", "--save-model")
    name = dqn.Args().exp_name
    assert folder.parent == Path("runs")
    assert folder.name.startswith(f"PongNoFrameskip-v4__{name}__1__")

    run = json.loads((folder / "config.json").read_text())
    assert run["status"] == "complete"
    assert run["steps"] == 2000
    assert run["flags"]["env_id"] == "PongNoFrameskip-v4"
    framework = jax if "jax" in name else torch
    assert framework.__version__.startswith(run["versions"][framework.__name__])  # a CUDA build adds its own
    assert len(run["evaluations"]["agent"]["returns"]) == 1
    assert run["evaluations"]["agent"]["capped"] == 1
    assert run["wall_time"] > 0

    load_into(dqn_atari.NatureCNN(6), folder / f"{name}.cleanrl_model")
    assert not list(folder.glob("*.tmp"))

    logged = scalars(folder)
    assert set(logged) == pages.metrics("docs/rl-algorithms/dqn.md")
    assert [step for step, _ in logged["charts/SPS"]] == [1000, 2000]
    # The exploration fraction is 0.1 of 2000 steps; the value logged at 1000 is that of the step before.
    assert logged["charts/epsilon"][0][1] == pytest.approx(0.01)
    assert all(-21 <= value <= 21 for _, value in logged["charts/episodic_return"])


@pytest.mark.slow
def test_both_frameworks_play_the_same_games_at_random(train):
    """Same seed, same exploration, same environments: what is played before learning does not depend on the framework."""
    flags = "--env-id BreakoutNoFrameskip-v4 --total-timesteps 800".split()  # whose first games are lost at once
    flags += "--learning-starts 100000 --start-e 1 --end-e 1".split()
    games = [scalars(train(script, *TINY_RUN, *flags))["charts/episodic_return"] for script in (dqn_atari, dqn_atari_jax)]
    assert games[0] == games[1] != []


@pytest.mark.slow
def test_same_seed_gives_identical_weights_and_another_seed_does_not(train, dqn):
    first, second, other = (
        weights(dqn, train(dqn, *TINY_RUN, "--n-step", "3", "--double-q", "--save-model", "--seed", seed))
        for seed in ("1", "1", "2")
    )
    assert all(equal(first, second))
    assert not all(equal(first, other))


@pytest.mark.parametrize(
    ("num_envs", "sync_period", "num_syncs"),
    [pytest.param(1, 50, 10, marks=pytest.mark.slow), pytest.param(6, 50, 10, marks=pytest.mark.slow), (16, 7, 32)],
)
def test_one_update_per_train_frequency_steps_and_syncs_by_steps(train, dqn, monkeypatch, num_envs, sync_period, num_syncs):
    syncs, shares, sync = [], [], dqn.sync
    updates = watch_updates(monkeypatch, dqn, id)

    def counted(*args):
        syncs.append(len(updates))
        shares.append(args[-1])
        return sync(*args)

    monkeypatch.setattr(dqn, "sync", counted)
    flags = ["--num-envs", str(num_envs), "--total-timesteps", "640", "--learning-starts", "128", "--batch-size", "2"]
    flags += ["--buffer-size", "1000", "--target-network-frequency", str(sync_period), "--tau", "0.1"]
    train(dqn, *TINY_RUN, *flags)
    first, last = (-(-steps // num_envs) * num_envs for steps in (128, 640))  # in whole vector steps
    assert len(updates) == last // 4 - first // 4
    # Multiples of 50 in (128, 640]: 150 .. 600. Of 7 there are two or three in each step of 16 games: one sync for them.
    assert len([sync for sync in syncs if sync]) == num_syncs, "and those without an update before them are the warm-up's"
    left = np.prod([1 - share for before, share in zip(syncs, shares, strict=True) if before])
    assert left == pytest.approx(0.9 ** (last // sync_period - first // sync_period)), "as many periods were mixed in"


class InTurn:
    """Environments that step before `send` returns, so that nothing is learned while they do."""

    def __init__(self, envs):
        self.envs = envs

    def __getattr__(self, name):
        return getattr(self.envs, name)

    def send(self, actions):
        self.envs.send(actions)
        self.received = self.envs.recv()

    def recv(self):
        return self.received


def test_learning_while_the_environments_step_changes_nothing(train, dqn, monkeypatch):
    overlapped = weights(dqn, train(dqn, *TINY_RUN, "--save-model"))

    class GamesInTurn(dqn.Games):
        def __init__(self, *given):
            super().__init__(*given)
            self.envs.envs = InTurn(self.envs.envs)

    monkeypatch.setattr(dqn, "Games", GamesInTurn)
    assert all(equal(overlapped, weights(dqn, train(dqn, *TINY_RUN, "--save-model"))))


def initial_weights(script: ModuleType, seed: int) -> dict[str, torch.Tensor]:
    """What a run begins with."""
    if script is dqn_atari:
        torch.manual_seed(seed)
        return dqn_atari.NatureCNN(6).state_dict()
    obs = np.zeros((1, 4, 84, 84), np.uint8)
    save_params(jax.jit(dqn_atari_jax.NatureCNN(6).init)(jax.random.key(seed), obs), Path("initial"))
    return load_weights(Path("initial"))


def test_updates_change_the_weights_only_after_learning_starts(train, dqn):
    initial = initial_weights(dqn, seed=1)
    untouched = weights(dqn, train(dqn, *TINY_RUN, "--learning-starts", "1000", "--save-model"))
    trained = weights(dqn, train(dqn, *TINY_RUN, "--save-model"))
    assert all(equal(untouched, initial))
    assert not any(equal(trained, initial))


@pytest.mark.parametrize("first", twin_is_slow(dqn_atari, dqn_atari_jax), ids=["of torch", "of jax"])
def test_a_run_starts_from_the_weights_it_is_given_by_either_framework(train, dqn, first):
    folder = train(first, *TINY_RUN, "--save-model", "--seed", "5")
    model = str(folder / f"{first.Args().exp_name}.cleanrl_model")
    second = train(dqn, *TINY_RUN, "--save-model", "--initial-model", model, "--learning-starts", "1000")
    assert all(equal(weights(first, folder), weights(dqn, second)))


def test_the_learning_rate_falls_on_a_line(train, monkeypatch):
    rates, adamw = [], torch.optim.AdamW

    class Watched(adamw):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"].item())
            return super().step(*args)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    train(dqn_atari, *TINY_RUN, *FALLING)
    assert rates == pytest.approx(FALLEN)
    rates.clear()
    train(dqn_atari, *TINY_RUN, *CYCLE)
    assert rates == pytest.approx(CYCLED)


FALLING = "--num-envs 4 --learning-rate 1e-3 --learning-rate-end 2e-4 --learning-starts 32".split()
FALLEN = [1e-3 - 8e-4 * step / 64 for step in range(32, 64, 4)]
"""An update at each of the steps 32, 36 .. 60 of 64: 1e-3 - 8e-4 * step / 64."""


CYCLE = "--num-envs 4 --learning-rate 1e-3 --one-cycle --learning-starts 32".split()
CYCLED = [dqn_atari.one_cycle(1e-3, 64, step) for step in range(32, 64, 4)]


@pytest.mark.slow
def test_the_learning_rate_falls_on_a_line_in_jax(train, monkeypatch):
    rates, make_learn = [], dqn_atari_jax.make_learn

    def watched(*args, **options):
        learn = make_learn(*args, **options)
        return lambda q_state, rb, indices, rate: (rates.append(rate), learn(q_state, rb, indices, rate))[1]

    monkeypatch.setattr(dqn_atari_jax, "make_learn", watched)
    train(dqn_atari_jax, *TINY_RUN, *FALLING)
    assert rates[1:] == pytest.approx(FALLEN), "the first is the warm-up's"
    rates.clear()
    train(dqn_atari_jax, *TINY_RUN, *CYCLE)
    assert rates[1:] == pytest.approx(CYCLED)


@pytest.mark.parametrize("decay", [0.0, 50.0])
def test_weight_decay_shrinks_the_weights_by_its_share_of_the_learning_rate(train, dqn, decay):
    """One update: 1 - 1e-3 * 50 = 0.95 of each weight stays, beside Adam's first step of 1e-3 at most."""
    flags = "--total-timesteps 20 --learning-starts 16 --num-envs 4 --learning-rate 1e-3 --save-model".split()
    folder = train(dqn, *TINY_RUN, *flags, "--weight-decay", str(decay))
    before, after = initial_weights(dqn, 1), weights(dqn, folder)
    for key, value in before.items():
        assert torch.allclose(after[key], (1 - 1e-3 * decay) * value, atol=1.01e-3)


def test_toy_sizes_run_and_the_buffer_is_raised_with_one_line(train, dqn, capsys):
    flags = "--learning-starts 10 --total-timesteps 16 --buffer-size 10 --batch-size 4 --num-envs 8".split()
    train(dqn, *TINY_RUN, *flags)
    raised = [line for line in capsys.readouterr().err.splitlines() if "--buffer-size" in line]
    assert raised == ["--buffer-size 10 is raised to 40, the least that these settings need"]


def test_the_best_evaluated_weights_are_kept_beside_the_last(train, dqn, monkeypatch):
    scores = iter([1.0, 5.0, 3.0])

    def fake_scores(*given):  # the scores are made up; what is kept when is the claim
        result = evaluate(*given)
        return dqn.Evaluation([next(scores)], result.lengths, result.capped)

    evaluate = dqn.evaluate
    saved, replacing, name = [], files.replacing, dqn.Args().exp_name
    monkeypatch.setattr(dqn, "evaluate", fake_scores)
    monkeypatch.setattr(files, "replacing", lambda path: (saved.append(path.stem), replacing(path))[1])
    folder = train(dqn, *TINY_RUN, "--eval-frequency", "30", "--total-timesteps", "64", "--save-model")
    assert saved == [f"{name}-best", f"{name}-best", name]
    assert not all(equal(weights(dqn, folder, "-best"), weights(dqn, folder)))


@pytest.mark.parametrize("flags", [["--life-loss"], ["--no-life-loss", "--huber", "--bf16", "--env-id", "ALE/Breakout-v5"]])
def test_protocol_flags_run(train, dqn, flags):
    run = json.loads((train(dqn, *TINY_RUN, *flags) / "config.json").read_text())
    assert run["protocol"]["life_loss"] == (flags[0] == "--life-loss")
    assert run["protocol"]["sticky_actions"] == (0.25 if "ALE/Breakout-v5" in flags else 0.0)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 1e-2)])
def test_compiled_and_plain_updates_have_the_same_losses_on_the_same_batches(cpu, bf16, tolerance):
    def losses(compiled: bool) -> list[float]:
        torch.manual_seed(0)
        rb, rng = dqn_atari.ReplayBuffer(200, 2, 3, 0.99, cpu), np.random.default_rng(0)
        for _ in range(100):
            obs = torch.from_numpy(rng.integers(256, size=(2, 4, 84, 84), dtype=np.uint8))
            rewards, ends = rng.integers(-1, 2, 2).astype(float), rng.random((3, 2)) < 0.05
            rb.add(obs, rng.integers(6, size=2), dqn_atari.Step(rewards, *ends, finished=[]))
        args = dqn_atari.Args(env_id="PongNoFrameskip-v4", num_envs=2, batch_size=8, learning_rate=1e-3, double_q=True)
        learner = dqn_atari.Learner(args, cpu)
        learner.target_network = dqn_atari.NatureCNN(6)
        learner.compiled, learner.bf16 = compiled, bf16
        update = learner.updater(rb, args)
        return [float(update(index)[0]) for index in torch.from_numpy(rb.draw(6, 8, rng))]

    plain = losses(compiled=False)
    assert plain == pytest.approx(losses(compiled=True), rel=tolerance)
    assert len(set(plain)) == 6


@pytest.mark.slow
@needs_compiler
def test_compiled_and_plain_runs_learn_the_same(train):
    flags = ["--total-timesteps", "40", "--learning-starts", "8", "--save-model"]
    flags += ["--batch-size", "8", "--n-step", "3", "--double-q"]  # as in the test above, so that this compiles nothing new
    folders = [train(dqn_atari, *TINY_RUN, *flags, flag) for flag in ("--no-compile", "--compile")]
    assert [json.loads((folder / "config.json").read_text())["protocol"]["compiled"] for folder in folders] == [False, True]
    plain, compiled = (weights(dqn_atari, folder) for folder in folders)
    assert all(torch.allclose(plain[key], compiled[key], atol=1e-4) for key in plain)


def test_without_a_compiler_a_run_is_plain_and_says_so(train, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    folder = train(dqn_atari, *TINY_RUN, "--compile")
    assert len([line for line in capsys.readouterr().err.splitlines() if "no-such-compiler" in line]) == 1
    assert json.loads((folder / "config.json").read_text())["protocol"]["compiled"] is False


@pytest.mark.slow
def test_jax_says_that_it_leaves_bf16_on_a_cpu(train, capsys):
    folder = train(dqn_atari_jax, *TINY_RUN, "--bf16")
    assert len([line for line in capsys.readouterr().err.splitlines() if "--bf16" in line]) == 1
    assert json.loads((folder / "config.json").read_text())["protocol"]["bf16"] is False


def test_an_interrupted_run_says_stopped(train, dqn, monkeypatch):
    monkeypatch.setattr(dqn, "epsilon_greedy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(dqn, *TINY_RUN)
    (config,) = Path("runs").glob("*/config.json")
    assert json.loads(config.read_text())["status"] == "stopped"


def test_a_video_is_a_whole_game(train, dqn):
    pytest.importorskip("imageio_ffmpeg")
    folder = train(dqn, *TINY_RUN, "--capture-video")
    (video,) = Path("videos", folder.name).glob("*.mp4")
    assert video.stat().st_size > 1000
