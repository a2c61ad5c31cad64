"""What `main` and the phases hand to the formulas: known values are learned, every stored row is what a real game showed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv

from cleanrl_utils.models.files import load_into, load_params
from cleanrl_utils.seeds import EVALUATION, TRAINING, env_seeds
from tests.conftest import DQN, QDAGGER, all_slow, evaluations, require_names_of_metrics, scalars, twin_is_slow
from tests.support.chain import VALUES, play_chain, stacks

TINY = (
    "--num-envs 4 --total-timesteps 400 --learning-starts 40 --buffer-size 400 --batch-size 8 --train-frequency 8 "
    "--target-network-frequency 16 --gamma 0.5 --learning-rate 1e-3 --eval-episodes 2 --start-e 1 --end-e 0.5 --no-compile "
    "--device cpu --save-model --checkpoint-frequency 0"
).split()
LONG = [*TINY, "--total-timesteps", "1600", "--buffer-size", "1600", "--end-e", "1"]
TEACHING = "--teacher-steps 80 --offline-steps 40 --offline-target-network-frequency 8 --student nature".split()
TEACHING += "--teacher-eval-episodes 4 --teacher-start-e 0 --teacher-end-e 0 --offline-eval-frequency 0".split()


def q_values(script: ModuleType, folder: Path, suffix: str = "") -> np.ndarray:
    """Q-values (5, 2) of the chain's screens, by the model that a run saved."""
    model, jax_twin = folder / f"{script.Args().exp_name}{suffix}.cleanrl_model", "jax" in script.__name__
    if not jax_twin:
        network = script.NatureCNN(2)
        load_into(network, model)
        return network(torch.from_numpy(stacks())).detach().numpy()
    network = script.NatureCNN(2)
    blank = network.init(jax.random.key(0), stacks()[:1])
    return np.asarray(network.apply(load_params(network, blank, model), stacks()))


VARIANTS = ["--n-step", "3", "--double-q", "--huber"]


@pytest.fixture(params=twin_is_slow(*DQN), ids=["torch", "jax"])
def dqn(request):
    """Each of the two DQN scripts."""
    return request.param


@pytest.mark.parametrize("flags", [*all_slow([]), VARIANTS], ids=["plain", "variants"])
def test_dqn_learns_the_values_of_the_chain(train, monkeypatch, dqn, flags):
    """Rewards by their sign, life losses and ends as terminations, cuts bootstrapped, resets left out."""
    play_chain(monkeypatch, dqn)
    assert q_values(dqn, train(dqn, *LONG, *flags)) == pytest.approx(VALUES, abs=0.1)


class Teacher(torch.nn.Module):
    """Q-values by the newest screen: action 1 on screens 0 and 2, else action 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("screens", torch.from_numpy(stacks()[:, -1]).float())

    def forward(self, obs: torch.Tensor, bf16: bool = False) -> torch.Tensor:  # noqa: ARG002
        at = (obs[:, -1, None].float() - self.screens).abs().sum((2, 3)).argmin(1)
        return torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], device=obs.device)[at]


class JaxTeacher:
    """The same, as a Flax module is called."""

    def apply(self, params: Any, obs: Any, *_: Any, **__: Any) -> Any:  # noqa: ARG002
        at = abs(obs[:, -1, None].astype(jax.numpy.float32) - stacks()[:, -1].astype(np.float32)).sum((2, 3)).argmin(1)
        return jax.numpy.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])[at]

    def bind(self, params: Any) -> Any:
        return lambda obs, *_: self.apply(params, obs)


BEST = np.array([1, 0, 1, 0, 0])


@pytest.fixture(params=twin_is_slow(*QDAGGER), ids=["torch", "jax"])
def taught(request, monkeypatch):
    """A QDagger script that plays the chain with the teacher; and its games."""
    script = request.param
    teacher = (JaxTeacher(), {}, "a teacher") if "jax" in script.__name__ else (Teacher(), "a teacher")
    monkeypatch.setattr(script, "load_teacher", lambda *_: teacher)
    return script, play_chain(monkeypatch, script)


def test_the_teacher_is_measured_and_plays_its_data(train, taught):
    script, games = taught
    folder = train(script, *TINY, *TEACHING)
    scores = json.loads((folder / "config.json").read_text())["evaluations"]
    # Of games that are cut, and games that go on: 7 for action 1 on screen 0, -3, and 1 if screen 4 is left.
    assert scores["teacher"]["returns"] == [4, 5, 4, 5]
    assert set(scores["random"]["returns"]) <= {-3, -2, 4, 5}
    assert scores["random"]["returns"] != scores["teacher"]["returns"]
    collection = next(game for game in games if game.purpose == TRAINING)
    for at, actions, _ in collection.history:
        assert np.array_equal(actions, BEST[at]), "the teacher's actions, without exploration"
    assert len(collection.history) == 80 / 4


def test_the_student_takes_over_its_teachers_actions_offline(train, taught):
    script, _ = taught
    flags = "--offline-steps 150 --distill-coefficient 10 --temperature 0.3 --total-timesteps 8".split()
    folder = train(script, *TINY, *TEACHING, *flags)
    assert (q_values(script, folder, "-offline").argmax(1) == BEST).all()


def test_a_student_that_offline_training_leaves_blind_is_told(train, taught, capsys):
    script, _ = taught
    flags = "--offline-steps 40 --huber --total-timesteps 8 --learning-rate".split()
    for learning_rate, told in (("0.1", True), ("1e-4", False)):
        train(script, *TINY, *TEACHING, *flags, learning_rate)
        assert ("Q-values are the same for every observation" in capsys.readouterr().err) == told


def test_the_distillation_fades_by_the_students_return_between_random_and_teacher(train, taught, monkeypatch):
    script, games = taught
    monkeypatch.setattr(script, "LOG_FREQUENCY", 4)
    folder = train(script, *TINY, *TEACHING, "--distill-coefficient", "2")
    evaluations = json.loads((folder / "config.json").read_text())["evaluations"]
    teacher, random = (float(np.mean(evaluations[name]["returns"])) for name in ("teacher", "random"))
    online = [game for game in games if game.purpose not in (TRAINING, EVALUATION)]
    assert len(online) == 1
    latest, expected = [], []
    for _, _, step in online[0].history:
        mean = np.mean(latest[-10:]) if len(latest) >= 10 else random
        expected.append(2 * float(np.clip(1 - (mean - random) / (teacher - random), 0, 1)))
        latest += [episodic_return for episodic_return, _ in step.finished]
    found = [value for _, value in scalars(folder)["charts/distill_coeff"]]
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(set(found)) > 3


def test_the_distillation_is_off_from_its_last_step_on(train, taught, monkeypatch):
    script, _ = taught
    monkeypatch.setattr(script, "LOG_FREQUENCY", 4)
    folder = train(script, *TINY, *TEACHING, "--distill-decay-steps", "120")
    coefficients = dict(scalars(folder)["charts/distill_coeff"])
    assert all((value == 0) == (step > 120) for step, value in coefficients.items())


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], VARIANTS], ids=["plain", "variants"])
def test_a_student_without_distillation_learns_the_values_of_the_chain(train, taught, flags):
    script, _ = taught
    offline = ["--teacher-steps", "400", "--teacher-start-e", "1", "--teacher-end-e", "1", "--offline-steps", "200"]
    flags = [
        *TINY,
        *TEACHING,
        "--batch-size",
        "16",
        *offline,
        "--total-timesteps",
        "8",
        "--distill-coefficient",
        "0",
        *flags,
    ]
    assert q_values(script, train(script, *flags), "-offline") == pytest.approx(VALUES, abs=0.1)


def test_online_a_student_learns_the_values_of_the_chain(train, taught):
    script, _ = taught
    flags = [*LONG, *TEACHING, "--offline-steps", "2", "--distill-coefficient", "0", "--exploration-fraction", "0"]
    flags += ["--batch-size", "32"]  # rounding alone would move values past the tolerance with smaller ones
    assert q_values(script, train(script, *flags)) == pytest.approx(VALUES, abs=0.1)


def acting(monkeypatch, script: ModuleType, games: list[Any]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each step that a script will learn in: the greedy actions, those of its network and those of its target network."""
    acted, learners, epsilon_greedy, make = [], [], script.epsilon_greedy, script.Learner.__init__

    def made(learner: Any, *about: Any) -> None:
        learners.append(learner)
        make(learner, *about)

    def watched(greedy: np.ndarray, *about: Any) -> np.ndarray:
        (learner,), obs = learners, games[-1].obs
        if "jax" in script.__name__:
            policies = [script.player(learner.act, getattr(learner.q_state, name)) for name in ("params", "target_params")]
        else:
            policies = [script.player(network, learner.device) for network in (learner.q_network, learner.target_network)]
        acted.append((greedy, *(policy(obs) for policy in policies)))
        return epsilon_greedy(greedy, *about)

    monkeypatch.setattr(script.Learner, "__init__", made)
    monkeypatch.setattr(script, "epsilon_greedy", watched)
    return acted


NO_SYNC = ["--target-network-frequency", "100000", "--learning-rate", "1e-2"]


def test_dqn_acts_by_the_network_that_learns(train, monkeypatch, dqn):
    acted = acting(monkeypatch, dqn, play_chain(monkeypatch, dqn))
    train(dqn, *TINY, *NO_SYNC)
    assert all(np.array_equal(greedy, own) for greedy, own, _ in acted)
    assert any((own != target).any() for _, own, target in acted), "or this could not fail"


def test_online_the_student_acts_by_its_own_network(train, monkeypatch, taught):
    script, games = taught
    acted = acting(monkeypatch, script, games)
    train(script, *TINY, *TEACHING, *NO_SYNC, "--distill-coefficient", "0")
    online = acted[80 // 4 :]
    assert len(online) == 400 / 4
    assert all(np.array_equal(greedy, own) for greedy, own, _ in online)
    assert any((own != BEST[at]).any() for (_, own, _), (at, *_) in zip(online, games[-2].history, strict=True))


def test_the_exploration_of_the_student_goes_on_from_the_offline_phase(train, monkeypatch, taught):
    script, _ = taught
    monkeypatch.setattr(script, "LOG_FREQUENCY", 4)
    flags = "--exploration-fraction 0.5 --schedule-timesteps 800 --end-e 0.1".split()
    found = dict(scalars(train(script, *TINY, *TEACHING, *flags))["charts/epsilon"])
    # 40 updates offline, then 4 steps at a time: on a line from 1 to 0.1 over 400 of both.
    assert found == pytest.approx({step: max(0.1, 1 - 0.9 * (40 + step - 4) / 400) for step in range(4, 404, 4)})


EVALUATING = ["--eval-episodes", "3", "--eval-epsilon", "0.3", "--seed", "5", "--eval-frequency", "200"]


def test_dqn_is_evaluated_by_the_flags(train, monkeypatch, dqn):
    play_chain(monkeypatch, dqn)
    made = evaluations(monkeypatch, dqn)
    train(dqn, *TINY, *EVALUATING)
    assert made == [(3, 5, 0.3)] * 2, "after 200 steps, and at the end"


def test_everybody_is_evaluated_by_the_flags(train, monkeypatch, taught):
    script, _ = taught
    made = evaluations(monkeypatch, script)
    train(script, *TINY, *TEACHING, *EVALUATING)
    assert made == [(4, 5, 1.0), (4, 5, 0.3), *[(3, 5, 0.3)] * 3], "random player, teacher, offline student, online twice"


def test_the_target_network_moves_by_tau_in_both_phases_and_is_level_once_between(train, monkeypatch, taught):
    script, _ = taught
    shares, sync = [], script.sync

    def watched(*about: Any) -> Any:
        shares.append(about[-1])
        return sync(*about)

    monkeypatch.setattr(script, "sync", watched)
    train(script, *TINY, *TEACHING, "--tau", "0.25")
    level = shares.index(1.0)
    assert set(shares[:level] + shares[level + 1 :]) == {0.25}
    assert level >= 40 / 8
    assert len(shares) - level > 360 / 16


def test_what_dqn_logs_has_the_names_of_what_it_is(train, monkeypatch, dqn):
    play_chain(monkeypatch, dqn)
    monkeypatch.setattr(dqn, "LOG_FREQUENCY", 100)
    require_names_of_metrics(monkeypatch, dqn, lambda: train(dqn, *TINY))


def test_metrics_have_the_names_of_what_they_are(train, taught, monkeypatch):
    """The loss is the TD loss and the weighted distillation, in both phases."""
    script, _ = taught
    monkeypatch.setattr(script, "OFFLINE_LOG_FREQUENCY", 10)
    monkeypatch.setattr(script, "LOG_FREQUENCY", 100)
    logged = scalars(train(script, *TINY, *TEACHING, "--distill-coefficient", "3", "--temperature", "0.5"))
    last = {tag: series[-1][1] for tag, series in logged.items()}
    offline = {name: last[f"charts/offline/{name}"] for name in ("loss", "q_loss", "distill_loss", "q_values")}
    assert offline["loss"] == pytest.approx(offline["q_loss"] + 3 * offline["distill_loss"], rel=1e-4)
    online = {name: last[f"losses/{name}"] for name in ("loss", "td_loss", "distill_loss", "q_values")}
    coefficient = last["charts/distill_coeff"]
    assert online["loss"] == pytest.approx(online["td_loss"] + coefficient * online["distill_loss"], rel=1e-4)
    assert offline["q_loss"] != pytest.approx(offline["distill_loss"])


# --- Flags ---

DQN_FLAGS = (
    "--seed 2|--gamma 0.9|--adam-eps 0.1|--learning-rate 1e-2|--learning-rate-end 0|--one-cycle|--weight-decay 0.5|--tau 0.3"
    "|--target-network-frequency 48|--batch-size 9|--start-e 0.2|--end-e 1|--exploration-fraction 1|--learning-starts 80"
    "|--train-frequency 16|--n-step 2|--double-q|--huber|--num-envs 8|--buffer-size 40|--schedule-timesteps 4000"
).split("|")
QDAGGER_FLAGS = (
    "--seed 2|--gamma 0.9|--adam-eps 0.1|--learning-rate 1e-2|--learning-rate-end 0|--offline-learning-rate-end 0|--tau 0.3"
    "|--target-network-frequency 48|--offline-target-network-frequency 3|--batch-size 9|--end-e 1"
    "|--start-e 0.2 --exploration-fraction 1"
    "|--learning-starts 80|--train-frequency 16|--n-step 2|--double-q|--huber|--temperature 0.3"
    "|--distill-coefficient 5|--distill-decay-steps 60|--teacher-steps 160|--teacher-start-e 1|--teacher-end-e 1"
    "|--offline-steps 41|--buffer-size 40"
).split("|")


@pytest.mark.parametrize("flag", DQN_FLAGS)
def test_every_flag_of_the_algorithm_changes_what_dqn_learns(unchanged, monkeypatch, dqn, flag):
    play_chain(monkeypatch, dqn)
    assert not unchanged(dqn, *TINY, more=flag)


@pytest.mark.slow
@pytest.mark.parametrize("flag", QDAGGER_FLAGS)
def test_every_flag_of_the_algorithm_changes_what_a_student_learns(unchanged, taught, flag):
    assert not unchanged(taught[0], *TINY, *TEACHING, more=flag)


# --- A recording run on a real game ---


SCRIPTS = [*twin_is_slow(*DQN), *(pytest.param(script, marks=pytest.mark.slow) for script in QDAGGER)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_stored_row_is_what_a_real_game_showed(train, monkeypatch, script):
    """Each environment is stepped again by itself, with the seed it should have and the actions that were stored."""
    rings: dict[str, Any] = {}

    def keep(run: Any, state: Any) -> None:  # noqa: ARG001
        rings[getattr(state, "phase", "training")] = state.rb

    monkeypatch.setattr(script.Run, "save", keep)
    flags = "--env-id BreakoutNoFrameskip-v4 --sticky-actions 0.25 --noop-max 7 --num-envs 2 --total-timesteps 700 --seed 4"
    flags += " --buffer-size 1000 --learning-starts 100000 --start-e 1 --end-e 1 --eval-episodes 1 --eval-max-frames 40"
    flags += " --no-compile --device cpu --checkpoint-frequency 0"
    purposes = {"training": TRAINING}
    if script in QDAGGER:
        flags += " --teacher-steps 700 --teacher-start-e 1 --teacher-end-e 1 --offline-steps 1 --student nature"
        flags += " --teacher-eval-episodes 3 --eval-max-frames 4000"
        purposes = {"collection": TRAINING, "online": 5}
    train(script, *flags.split())
    for phase, purpose in purposes.items():
        compare(rings[phase], purpose)


def compare(rb: Any, purpose: int) -> None:
    """Every row of a replay buffer against games that are stepped one by one."""
    rows, stored = rb.num_stored, getattr(rb, "rings", rb)
    ring = {
        name: np.asarray(getattr(stored, name)) for name in ("actions", "rewards", "terminations", "truncations", "ages")
    }
    ring = {name: values[: 2 * rows].reshape(rows, 2) for name, values in ring.items()}
    frames = np.asarray(stored.frames)[: 2 * rows].view(np.uint8).reshape(rows, 2, 84, 84)
    seeds, fires, lost, ended = env_seeds(4, purpose, np.zeros(2, dtype=int)), 0, 0, 0
    for i in range(2):
        game = AtariVectorEnv("breakout", 1, reward_clipping=False, repeat_action_probability=0.25, noop_max=7)
        obs, info = game.reset(seed=seeds[i : i + 1])
        lives, over, fire, age = int(info["lives"][0]), False, True, 0
        for t in range(rows):
            assert np.array_equal(frames[t, i], obs[0, -1]), (i, t)
            assert ring["ages"][t, i] == min(age, 3), (i, t)
            assert rb.valid[t, i] == (not over)
            if fire:
                assert ring["actions"][t, i] == 1, "FIRE was played, and is what was stored"
                fires += 1
            obs, rewards, terminations, truncations, info = game.step(ring["actions"][t, i : i + 1].astype(np.int64))
            died = int(info["lives"][0]) < lives
            assert ring["rewards"][t, i] == np.sign(rewards[0])
            assert ring["terminations"][t, i] == (terminations[0] or died)
            assert ring["truncations"][t, i] == truncations[0]
            age = 0 if over else age + 1
            fire, over = over or died, bool(terminations[0] or truncations[0])
            lives, lost, ended = int(info["lives"][0]), lost + died, ended + over
        game.close()
    assert min(fires, lost, ended) >= 2
