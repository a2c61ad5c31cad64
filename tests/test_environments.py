"""The vector environment against Gymnasium's wrappers, and the ends of real games."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from ale_py.env import AtariEnv
from ale_py.vector_env import AtariVectorEnv

from cleanrl import dqn_atari as dqn
from cleanrl_utils.errors import BadInput
from cleanrl_utils.evals.atari import Episodes, FireAfterLifeLoss, count_actions, game_settings
from cleanrl_utils.seeds import env_seeds


@pytest.mark.parametrize("game", ["breakout", "pong"])
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


@pytest.mark.parametrize(("game", "n_step", "life_loss"), [("breakout", 3, True), ("breakout", 1, False), ("pong", 2, True)])
def test_replay_rebuilds_what_real_games_showed(game, n_step, life_loss, cpu):
    envs = AtariVectorEnv(game, 3, life_loss_info=life_loss, reward_clipping=False, max_num_frames_per_episode=300)
    obs, infos = envs.reset(seed=np.arange(3))
    fire, episodes, rng = FireAfterLifeLoss(envs, infos), Episodes(infos), np.random.default_rng(0)
    rb = dqn.ReplayBuffer(3 * 150, 3, n_step, 0.9, cpu)
    seen, ended = [obs], []
    for _ in range(250):
        actions = fire(rng.integers(0, 4, 3))
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        resets, _ = episodes.step(rewards, infos)
        rb.add(torch.from_numpy(obs), actions, np.sign(rewards), terminations, truncations, resets)
        fire.observe(infos)
        obs = next_obs
        seen.append(obs)
        ended.append((terminations, truncations, resets))
    terminations, truncations, resets = (np.array(column) for column in zip(*ended, strict=True))
    assert truncations.sum() >= 6
    assert (resets[1:] >= truncations[:-1]).all(), "a cut game is reset in the next step"
    if game == "breakout" and life_loss:
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
    args = dqn.Args(env_id="BreakoutNoFrameskip-v4", num_envs=1)
    envs, _, fire, episodes = dqn.make_envs(args, seed_purpose=0)
    ends, finished = [], []
    while not finished:
        _, rewards, terminations, _, infos = envs.step(fire(np.zeros(1, dtype=np.int64)))
        resets, finished = episodes.step(rewards, infos)
        fire.observe(infos)
        ends.append((bool(terminations[0]), bool(resets[0])))
    assert sum(terminated for terminated, _ in ends) == 5, "five lives"
    assert sum(reset for _, reset in ends) == 1
    assert ends[-2:] == [(True, False), (False, True)], "the reset comes in the step after the last life"
    assert finished[0][1] == len(ends) - 1, "the reset is no step of the game"


def test_without_fire_breakout_waits_for_ever_after_a_lost_life():
    args = dqn.Args(env_id="BreakoutNoFrameskip-v4", num_envs=1)
    envs, *_ = dqn.make_envs(args, seed_purpose=0)
    for _ in range(400):
        _, _, _, _, infos = envs.step(np.zeros(1, dtype=np.int64))
    assert infos["lives"][0] == 4


def test_without_life_loss_only_the_games_end_terminates():
    args = dqn.Args(env_id="BreakoutNoFrameskip-v4", num_envs=1, life_loss=False)
    envs, _, fire, _ = dqn.make_envs(args, seed_purpose=0)
    count, lives = 0, 5
    while not count:
        _, _, terminations, _, infos = envs.step(fire(np.zeros(1, dtype=np.int64)))
        fire.observe(infos)
        count += int(terminations[0])
        lives = infos["lives"][0]
    assert lives == 0


def test_episodes_report_raw_whole_game_returns():
    envs = AtariVectorEnv("pong", 2, reward_clipping=False, life_loss_info=True)
    _, infos = envs.reset(seed=np.array([1, 2]))
    episodes, rewards_of, finished = Episodes(infos), [0, 0], []
    rng = np.random.default_rng(0)
    while not finished:
        _, rewards, _, _, infos = envs.step(rng.integers(0, 6, 2))
        resets, finished = episodes.step(rewards, infos)
        rewards_of = [total + reward for total, reward in zip(rewards_of, rewards, strict=True)]
    assert finished[0][0] == rewards_of[int(np.flatnonzero(resets)[0])] <= -14
    assert finished[0][1] > 700


@pytest.mark.parametrize("env_id", ["BreakoutNoFrameskip-v4", "ALE/Breakout-v5"])
def test_both_spellings_of_a_game_work(env_id):
    envs, obs, *_ = dqn.make_envs(dqn.Args(env_id=env_id, num_envs=2), seed_purpose=0)
    assert obs.shape == (2, 4, 84, 84)
    assert envs.single_action_space.n == count_actions(env_id) == 4


def test_sticky_actions_come_from_the_name():
    assert game_settings("PongNoFrameskip-v4") == ("pong", 0.0)
    assert game_settings("ALE/Pong-v5") == ("pong", 0.25)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "PongNoFrameskip", "Pnog"])
def test_other_ids_are_refused(env_id):
    with pytest.raises(BadInput, match="--env-id"):
        game_settings(env_id)


def test_seeds_differ_between_games_purposes_and_neighbouring_runs():
    seeds = [env_seeds(seed, purpose, 0, 50) for seed in range(4) for purpose in (0, 5, 1000)]
    assert len(np.unique(np.concatenate(seeds))) == 4 * 3 * 50
    assert np.array_equal(env_seeds(3, 1, 10, 5), env_seeds(3, 1, 0, 15)[10:])


def test_same_seeds_give_the_same_games_and_others_do_not():
    def first_frames(seed: int) -> np.ndarray:
        envs, *_ = dqn.make_envs(dqn.Args(env_id="PongNoFrameskip-v4", num_envs=3, seed=seed), seed_purpose=0)
        return np.array([envs.step(np.full(3, t % 6))[0] for t in range(60)])

    assert np.array_equal(first_frames(1), first_frames(1))
    assert not np.array_equal(first_frames(1), first_frames(2))


def test_games_after_a_checkpoint_are_others():
    """Seeds come from the step too: else each checkpoint would bring the same beginnings again."""
    args = dqn.Args(env_id="PongNoFrameskip-v4", num_envs=4)
    seen = []
    for step in (0, 0, 400):
        envs, *_ = dqn.make_envs(args, 0, step)
        for _ in range(30):
            obs, *_ = envs.step(np.zeros(4, dtype=np.int64))
        seen.append(obs)
        envs.close()
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])
