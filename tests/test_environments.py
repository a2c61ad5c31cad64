"""The games that the scripts play: against Gymnasium's wrappers, the ends of real games, and games that are put back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ale_py.env import AtariEnv
from ale_py.vector_env import AtariVectorEnv

from cleanrl import dqn_atari as dqn
from cleanrl_utils.errors import BadInput, CannotGoOn
from cleanrl_utils.evals import atari
from cleanrl_utils.evals.atari import count_actions, game_settings
from cleanrl_utils.record import versions
from cleanrl_utils.run import archive
from cleanrl_utils.seeds import EVALUATION, TRAINING, env_seeds
from tests.conftest import all_slow

slow = pytest.mark.slow


def games_of(env_id: str, num_games: int, purpose: int = TRAINING, **flags: Any) -> dqn.Games:
    """Games as the scripts play them: test_scripts.py holds that `Games` is the same in all."""
    return dqn.Games(dqn.Args(env_id=env_id, **flags), purpose, num_games)


def play(games: dqn.Games, actions: np.ndarray) -> dqn.Step:
    """Send and receive."""
    games.send(actions)
    return games.recv()


@pytest.mark.parametrize("game", ["breakout", *all_slow("pong")])
def test_frames_and_rewards_equal_gymnasiums_for_1000_steps(game):
    envs = AtariVectorEnv(game, 1, noop_max=0, use_fire_reset=False, reward_clipping=False)
    wrapped = gym.wrappers.AtariPreprocessing(AtariEnv(game, frameskip=1, repeat_action_probability=0.0), noop_max=0)
    wrapped = gym.wrappers.FrameStackObservation(wrapped, 4, padding_type="zero")
    rng = np.random.default_rng(0)
    obs, _ = envs.reset(seed=np.array([1]))
    expected, _ = wrapped.reset(seed=1)
    ended = False
    for _ in range(1000):
        assert np.array_equal(obs[0], expected)
        action = rng.integers(1, 4)
        obs, rewards, terminations, truncations, _ = envs.step(np.array([action]))
        if ended:  # NEXT_STEP: this step was the reset
            expected, _ = wrapped.reset()
            reward, ended = 0, False
        else:
            expected, reward, terminated, truncated, _ = wrapped.step(action)
            assert (terminated, truncated) == (terminations[0], truncations[0])
            ended = terminated or truncated
        assert rewards[0] == reward


@pytest.mark.parametrize(("game", "n_step", "life_loss"), [("Breakout", 3, True), ("Breakout", 1, False), ("Pong", 2, True)])
def test_replay_rebuilds_what_real_games_showed(monkeypatch, game, n_step, life_loss, cpu):
    monkeypatch.setattr(dqn, "MAX_FRAMES", 300)
    games, rng = games_of(f"{game}NoFrameskip-v4", 3, life_loss=life_loss), np.random.default_rng(0)
    rb = dqn.ReplayBuffer(3 * 150, 3, n_step, 0.9, cpu)
    seen, ended = [games.obs], []
    for _ in range(250):
        obs = torch.from_numpy(games.obs)
        actions = games.send(rng.integers(0, 4, 3))
        step = games.recv()
        rb.add(obs, actions, step._replace(rewards=np.sign(step.rewards)))
        seen.append(games.obs)
        ended.append((step.terminations, step.truncations, step.resets))
    terminations, truncations, resets = (np.array(column) for column in zip(*ended, strict=True))
    assert truncations.sum() >= 6
    assert (resets[1:] >= truncations[:-1]).all(), "a cut game is reset in the next step"
    if game == "Breakout" and life_loss:
        assert terminations.sum() > 6
        assert not resets[1:][terminations[:-1] & ~truncations[:-1]].all(), "a lost life does not reset the game"

    compared = 0
    for t in range(250 - 150 + 3, 250 - n_step):
        for env in range(3):
            if resets[t, env]:
                continue
            batch = rb.sample(torch.tensor([t % 150 * 3 + env]))
            assert np.array_equal(batch.obs[0], seen[t][env])
            ends = (terminations | truncations)[t : t + n_step, env]
            taken = int(ends.argmax()) + 1 if ends.any() else n_step
            terminated = terminations[t : t + taken, env].any()
            assert batch.discounts.item() == pytest.approx(0 if terminated else 0.9**taken, abs=1e-6)
            if not terminated:
                assert np.array_equal(batch.next_obs[0], seen[t + taken][env])
            compared += 1
    assert compared > 400


def test_a_lost_life_terminates_the_return_and_the_game_goes_on():
    games, ends, finished = games_of("BreakoutNoFrameskip-v4", 1), [], []
    while not finished:
        step = play(games, np.zeros(1, dtype=np.int64))
        ends.append((bool(step.terminations[0]), bool(step.resets[0])))
        finished = step.finished
    assert sum(terminated for terminated, _ in ends) == 5, "five lives"
    assert sum(reset for _, reset in ends) == 1
    assert ends[-2:] == [(True, False), (False, True)], "the reset comes in the step after the last life"
    assert finished[0][1] == len(ends) - 1, "the reset is no step of the game"


def test_without_fire_breakout_waits_for_ever_after_a_lost_life():
    games = games_of("BreakoutNoFrameskip-v4", 1)
    games.envs.waits_for_fire = False
    for _ in range(400):
        play(games, np.zeros(1, dtype=np.int64))
    assert games.envs.lives[0] == 4


@pytest.mark.parametrize(
    ("env_id", "fire", "waits"),
    [
        ("BreakoutNoFrameskip-v4", True, True),
        ("BreakoutNoFrameskip-v4", False, False),
        pytest.param("MsPacmanNoFrameskip-v4", True, False, marks=slow),
    ],
)
def test_send_returns_what_is_played_fire_after_a_reset_and_a_lost_life(monkeypatch, env_id, fire, waits):
    """Else what was given. Only where a game waits for it, and the flag is on."""
    games, rng, sent = games_of(env_id, 2, fire=fire), np.random.default_rng(0), []
    envs_send = games.envs.envs.send
    monkeypatch.setattr(games.envs.envs, "send", lambda actions: (sent.append(actions), envs_send(actions))[1])
    due, lost, ended = np.ones(2, dtype=bool), 0, 0
    for _ in range(4000):
        given = rng.choice([0, 2, 3], 2)  # never fire
        played, lives = games.send(given), games.envs.lives
        assert np.array_equal(played, np.where(due & waits, 1, given))
        assert np.array_equal(sent[-1], played)
        assert np.array_equal(games.envs.history.actions[games.envs.history.end - 1], played)
        resets = games.recv().resets
        died = (games.envs.lives < lives) & ~resets
        due = died | resets
        lost, ended = lost + died.sum(), ended + resets.sum()
        if (lost >= 5 and ended >= 2) or (not fire and len(sent) == 300):
            return
    pytest.fail("no game ended")


@pytest.mark.parametrize("purpose", [*all_slow(TRAINING), EVALUATION])
def test_under_sticky_actions_every_game_of_breakout_begins_with_a_ball(purpose):
    """The reset's own FIRE lasts one raw frame, which 0.25 sticky actions replace in one game of four."""
    games, moved = games_of("ALE/Breakout-v5", 10, purpose), np.zeros(10, dtype=bool)
    first = games.obs[:, -1, 55:80].copy()  # between the bricks and the paddle
    for _ in range(20):
        play(games, np.zeros(10, dtype=np.int64))
        moved |= (games.obs[:, -1, 55:80] != first).any((1, 2))
    assert moved.all()


def test_flags_reach_the_emulator():
    def first_frames(**flags: Any) -> np.ndarray:
        games = games_of("BreakoutNoFrameskip-v4", 3, **flags)
        return np.array([games.envs.frame_numbers, games.obs.sum((1, 2, 3))])

    assert len(set(first_frames()[0])) > 1, "a random number of no-ops"
    assert first_frames(noop_max=0, fire=False).std(1).tolist() == [0, 0]
    assert first_frames(noop_max=0, fire=False)[0, 0] + 1 == first_frames(noop_max=0)[0, 0], "FIRE for one frame"
    assert games_of("BreakoutNoFrameskip-v4", 1, full_action_space=True).num_actions == 18
    play(games_of("BreakoutNoFrameskip-v4", 1, full_action_space=True), np.array([17]))
    assert not games_of("MsPacmanNoFrameskip-v4", 1, full_action_space=True).fire.any(), "action 1 of all 18 is FIRE"
    assert games_of("BreakoutNoFrameskip-v4", 1, full_action_space=True).fire.all()


def test_without_life_loss_only_the_games_end_terminates():
    games, count = games_of("BreakoutNoFrameskip-v4", 1, life_loss=False), 0
    while not count:
        count += int(play(games, np.zeros(1, dtype=np.int64)).terminations[0])
    assert games.envs.lives[0] == 0


def test_finished_games_have_their_raw_whole_game_returns():
    games, rewards_of, rng = games_of("PongNoFrameskip-v4", 2), np.zeros(2), np.random.default_rng(0)
    finished = []
    while not finished:
        step = play(games, rng.integers(0, 6, 2))
        rewards_of, finished = rewards_of + step.rewards, step.finished
    assert finished[0][0] == rewards_of[int(np.flatnonzero(step.resets)[0])] <= -14
    assert finished[0][1] > 700


@pytest.mark.parametrize(
    ("env_id", "sticky", "steps", "stretch"),
    [
        ("ALE/Breakout-v5", None, 700, 250),
        pytest.param("SpaceInvadersNoFrameskip-v4", 0.0, 500, 0, marks=slow),
        pytest.param("BreakoutNoFrameskip-v4", 0.0, 500, 27_000, marks=slow),
    ],
)
def test_each_game_is_the_one_of_its_seed_stepped_by_itself(monkeypatch, env_id, sticky, steps, stretch):
    """Every environment of three against a vector environment of one, seeded by hand after `stretch` actions."""
    monkeypatch.setattr(atari, "STRETCH", stretch)
    games, rng = games_of(env_id, 3, seed=5, sticky_actions=sticky), np.random.default_rng(0)
    game, of_id = game_settings(env_id)
    chance = of_id if sticky is None else sticky
    alone = [AtariVectorEnv(game, 1, reward_clipping=False, repeat_action_probability=chance) for _ in range(3)]
    numbers, ages = np.zeros(3, dtype=int), np.zeros(3, dtype=int)
    returns, lengths, over = np.zeros(3), np.zeros(3, dtype=int), np.zeros(3, dtype=bool)
    seen = np.concatenate([env.reset(seed=env_seeds(5, TRAINING, numbers)[i : i + 1])[0] for i, env in enumerate(alone)])
    ended = 0
    for _ in range(steps):
        assert np.array_equal(games.obs, seen)
        actions, finished = games.send(rng.integers(0, games.num_actions, 3)), []
        step, seen, ages = games.recv(), seen.copy(), ages + 1
        assert np.array_equal(step.resets, over)
        for i, env in enumerate(alone):
            obs, rewards, terminations, truncations, _ = env.step(actions[i : i + 1])
            if over[i]:
                finished.append((returns[i], lengths[i]))
                returns[i], lengths[i], over[i], ended = 0, 0, False, ended + 1
                if ages[i] > stretch:
                    numbers[i], ages[i] = numbers[i] + 1, 0
                    obs, _ = env.reset(seed=env_seeds(5, TRAINING, numbers)[i : i + 1])
                seen[i] = obs[0]
                continue
            seen[i], over[i] = obs[0], terminations[0] or truncations[0]
            assert step.rewards[i] == rewards[0]
            returns[i], lengths[i] = returns[i] + rewards[0], lengths[i] + 1
        assert step.finished == finished
        assert np.array_equal(games.envs.lengths, lengths)
        assert np.array_equal(games.envs.returns, returns)
        assert np.array_equal(games.envs.history.lengths, ages)
    assert ended >= 2
    assert numbers.sum() >= 2 or stretch == 27_000
    assert ended > numbers.sum() or not stretch, "some games follow from the seed of a game before"


@pytest.mark.parametrize(("stretch", "num_games"), [(25, 12), pytest.param(0, 100, marks=slow)])
def test_an_environment_is_seeded_once_at_the_first_end_after_its_stretch(monkeypatch, stretch, num_games):
    monkeypatch.setattr(dqn, "MAX_FRAMES", 40)
    monkeypatch.setattr(atari, "STRETCH", stretch)
    games, rng, calls, ended = games_of("PongNoFrameskip-v4", 4), np.random.default_rng(0), [], 0
    reset = games.envs.envs.reset
    monkeypatch.setattr(games.envs.envs, "reset", lambda **given: (calls.append(given), reset(**given))[1])
    numbers, ages = games.envs.history.numbers.copy(), np.zeros(4, dtype=int)
    assert numbers.tolist() == [0] * 4
    while ended < num_games:
        called, cut = len(calls), games.envs.frame_numbers
        step = play(games, rng.integers(0, 6, 4))
        ages += 1
        seeded = step.resets & (ages > stretch)
        numbers, ages, ended = numbers + seeded, np.where(seeded, 0, ages), ended + step.resets.sum()
        assert np.array_equal(games.envs.history.numbers, numbers)
        assert len(calls) - called == seeded.any(), "no call where no environment is seeded"
        if seeded.any():
            assert np.array_equal(calls[-1]["options"]["reset_mask"], seeded)
            assert np.array_equal(calls[-1]["seed"], env_seeds(1, TRAINING, numbers)[seeded])
        assert len(step.finished) == step.resets.sum()
        assert all(0 < length <= 10 for _, length in step.finished)
        assert (cut[step.resets] >= 40).all(), "the game before had come to its limit"
        assert (games.envs.lengths <= 10).all()
    assert calls


def test_in_evaluation_a_lost_life_ends_nothing():
    games = games_of("BreakoutNoFrameskip-v4", 2, EVALUATION, eval_max_frames=600)
    lives, over = [], 0
    while over < 3:
        step = play(games, np.zeros(2, dtype=np.int64))
        over += step.resets.sum()
        lives += games.envs.lives[step.terminations].tolist()
        assert (games.envs.frame_numbers <= 600).all(), "--eval-max-frames"
    assert set(lives) <= {0}


@pytest.mark.parametrize("env_id", ["BreakoutNoFrameskip-v4", "ALE/Breakout-v5"])
def test_both_spellings_of_a_game_work(env_id):
    games = games_of(env_id, 2)
    assert games.obs.shape == (2, 4, 84, 84)
    assert games.num_actions == count_actions(dqn.Args(env_id=env_id)) == 4


def test_sticky_actions_come_from_the_name():
    assert game_settings("PongNoFrameskip-v4") == ("pong", 0.0)
    assert game_settings("ALE/Pong-v5") == ("pong", 0.25)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "PongNoFrameskip", "Pnog"])
def test_other_ids_are_refused(env_id):
    with pytest.raises(BadInput, match="--env-id"):
        game_settings(env_id)


@pytest.mark.parametrize("env_id", ["Pong-v4", "Pong-v0"])
def test_ids_that_skip_a_random_number_of_frames_are_refused(env_id):
    with pytest.raises(BadInput, match="NoFrameskip-v4"):
        game_settings(env_id)


@pytest.mark.parametrize(
    "setting", [{"mode": 1}, {"difficulty": 1}, {"frameskip": 5}, {"continuous": True}, {"max_num_frames_per_episode": 900}]
)
def test_ids_with_settings_that_the_vector_environment_lacks_are_refused_by_name(monkeypatch, setting):
    spec = dataclasses.replace(gym.spec("ALE/Breakout-v5"), id="Mine-v0")
    spec.kwargs = spec.kwargs | setting
    monkeypatch.setitem(gym.registry, "Mine-v0", spec)
    with pytest.raises(BadInput, match=next(iter(setting))):
        game_settings("Mine-v0")


# --- Seeds ---


def test_seeds_differ_between_games_environments_purposes_and_neighbouring_runs():
    seeds = [
        env_seeds(seed, purpose, np.full(10, game)) for seed in range(4) for purpose in (0, 5, 1000) for game in range(5)
    ]
    assert len(np.unique(np.concatenate(seeds))) == 4 * 3 * 5 * 10
    assert np.array_equal(
        env_seeds(3, 1, np.array([7, 2])), [env_seeds(3, 1, np.full(2, n))[i] for i, n in enumerate((7, 2))]
    )


@pytest.mark.parametrize("purpose", [0, 5, 1000])
def test_first_games_have_the_seeds_that_games_had_without_a_number(purpose):
    """So the first game of each environment, and with it every evaluation, is the one of version 0.1."""
    before = [np.random.SeedSequence([3, purpose, i]).generate_state(1)[0] >> 1 for i in range(20)]
    assert env_seeds(3, purpose, np.zeros(20, dtype=int)).tolist() == before


def test_same_seeds_give_the_same_games_and_others_do_not():
    def first_frames(seed: int) -> np.ndarray:
        games, seen = games_of("PongNoFrameskip-v4", 3, seed=seed), []
        for t in range(60):
            play(games, np.full(3, t % 6))
            seen.append(games.obs)
        return np.array(seen)

    assert np.array_equal(first_frames(1), first_frames(1))
    assert not np.array_equal(first_frames(1), first_frames(2))


def test_the_next_game_is_another_one(monkeypatch):
    """With the seed of the first it would begin the same again."""
    monkeypatch.setattr(dqn, "MAX_FRAMES", 120)
    games = games_of("PongNoFrameskip-v4", 2)
    seen, begins = [], [0, 0]
    while len(seen) < 90:
        seen.append(games.obs)
        resets = play(games, np.zeros(2, dtype=np.int64)).resets
        begins = [len(seen) if reset else begin for reset, begin in zip(resets, begins, strict=True)]
    for i, begin in enumerate(begins):
        assert begin
        assert not np.array_equal([obs[i] for obs in seen[:15]], [obs[i] for obs in seen[begin : begin + 15]])


# --- Games that are put back ---


def through_a_file(games: dqn.Games, new: dqn.Games) -> None:
    """What a checkpoint keeps of `games`, put into `new`."""
    with Path("games.zip").open("wb") as file:
        archive.write(file, {"games": games})
    saved = archive.Archive(Path("games.zip"))
    saved.fill(new, saved.tree["games"])
    saved.close()


def same(ours: dqn.Step, theirs: dqn.Step) -> bool:
    """Whether two steps brought the same."""
    return ours.finished == theirs.finished and all(np.array_equal(*pair) for pair in zip(ours[:4], theirs[:4], strict=True))


MOMENTS = ("begin", "life", "end", "reset", "late")


@pytest.mark.parametrize(
    ("game", "sticky", "steps", "stretch", "moments"),
    [
        ("Breakout", 0.25, 300, 200, ("begin", "end")),
        pytest.param("Breakout", 0.25, 300, 200, ("life", "late"), marks=slow),
        pytest.param("Breakout", 0.25, 300, 27_000, ("reset", "late"), marks=slow),
        pytest.param("Breakout", 0.0, 300, 0, MOMENTS, marks=slow),
        pytest.param("SpaceInvaders", 0.25, 450, 27_000, ("end",), marks=slow),
        pytest.param("SpaceInvaders", 0.0, 450, 100, ("life", "late"), marks=slow),
        pytest.param("Pong", 0.0, 900, 0, ("end",), marks=slow),
        pytest.param("Pong", 0.25, 900, 27_000, ("late",), marks=slow),
    ],
)
def test_games_that_are_put_back_go_on_as_those_that_were_never_stopped(monkeypatch, game, sticky, steps, stretch, moments):
    """Stopped before the first step, with FIRE to be pressed, at a game's end, at its reset, and when many have ended."""
    monkeypatch.setattr(atari, "STRETCH", stretch)
    games, rng = games_of(f"{game}NoFrameskip-v4", 4, seed=3, sticky_actions=sticky), np.random.default_rng(0)
    actions, seen = rng.integers(0, games.num_actions, (steps + 200, 4)), []
    saved = {}

    def keep(moment: str, t: int) -> None:
        if moment in moments and moment not in saved:
            saved[moment] = t
            with Path(f"{moment}.zip").open("wb") as file:
                archive.write(file, {"games": games})

    ended = 0
    keep("begin", 0)
    for t in range(steps + 200):
        sent = games.send(actions[t])
        step = games.recv()
        seen.append((games.obs, sent, step))
        ended += step.resets.sum()
        if 40 < t < steps:
            over = (games.envs.lives == 0) & step.terminations & (game != "Pong")
            over |= (np.abs(games.envs.returns) >= 19) & (game == "Pong")
            for moment, now in (("life", games.fire), ("end", over), ("reset", step.resets)):
                if now.any():
                    keep(moment, t + 1)
        if t + 1 == steps:
            keep("late", t + 1)
    games.close()
    assert saved.keys() == set(moments)
    assert ended >= 2

    for moment, first in saved.items():
        again = games_of(f"{game}NoFrameskip-v4", 4, seed=3, sticky_actions=sticky)
        file = archive.Archive(Path(f"{moment}.zip"))
        file.fill(again, file.tree["games"])
        file.close()
        if first:
            assert np.array_equal(again.obs, seen[first - 1][0])
        for t in range(first, first + 200):
            obs, sent, step = seen[t]
            assert np.array_equal(again.send(actions[t]), sent), (moment, t)
            assert same(again.recv(), step), (moment, t)
            assert np.array_equal(again.obs, obs), (moment, t)
        again.close()


@pytest.mark.parametrize("result", ["obs", "traces"])
def test_games_that_do_not_come_back_are_refused_in_one_line(result):
    games, other = games_of("PongNoFrameskip-v4", 2), games_of("PongNoFrameskip-v4", 2)
    for _ in range(20):
        play(games, np.array([2, 3]))
    through_a_file(games, other)
    assert np.array_equal(games.obs, other.obs)
    setattr(games.envs, result, getattr(games.envs, result).copy())
    getattr(games.envs, result).flat[-1] ^= 1
    with pytest.raises(CannotGoOn) as refused:
        through_a_file(games, other)
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith("--resume: PongNoFrameskip-v4 does not reproduce what the checkpoint saw")
    assert all(f"{name} {version}" in line for name, version in versions().items())
