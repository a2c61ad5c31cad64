"""Episodes of vector environments, begun each with its own seed and put back; the history that both kinds of games keep."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cleanrl import dqn
from cleanrl_utils.evals import history as histories
from cleanrl_utils.evals.gym import Episodes
from cleanrl_utils.evals.history import History
from cleanrl_utils.run import archive
from cleanrl_utils.seeds import EVALUATION, TRAINING, env_seeds

pytestmark = pytest.mark.filterwarnings("ignore:.*WARN")  # Gymnasium on environments that are odd on purpose


def episodes_of(env_id: str, num_envs: int = 3, purpose: int = TRAINING, seed: int = 1) -> Episodes:
    """Episodes as the scripts play them."""
    return Episodes(dqn.Args(env_id=env_id, seed=seed), purpose, num_envs)


def save(episodes: Episodes, name: str) -> None:
    """Write what a checkpoint keeps."""
    with Path(name).open("wb") as file:
        archive.write(file, {"envs": episodes})


def restored(episodes: Episodes, name: str) -> Episodes:
    """The episodes, put to where those were that were written."""
    saved = archive.Archive(Path(name))
    saved.fill(episodes, saved.tree["envs"])
    saved.close()
    return episodes


def same(ours: tuple, theirs: tuple) -> bool:
    """Whether two steps brought the same."""
    return ours[4] == theirs[4] and all(np.array_equal(*pair) for pair in zip(ours[:4], theirs[:4], strict=True))


# --- Episodes ---


def test_environments_have_seeds_of_their_own():
    first, again, other = (episodes_of("CartPole-v1", 4, seed=seed) for seed in (1, 1, 2))
    assert len(np.unique(first.obs, axis=0)) == 4
    assert np.array_equal(first.obs, again.obs)
    assert not np.isin(first.obs, other.obs).any()
    assert isinstance(first.envs.unwrapped, gym.vector.SyncVectorEnv)


def test_each_episode_is_the_one_of_its_seed_stepped_by_itself():
    """Every environment of three against one of its own; a pole that an agent drops at random."""
    episodes, rng = episodes_of("CartPole-v1", seed=5), np.random.default_rng(0)
    alone, numbers, rewards_of = [gym.make("CartPole-v1") for _ in range(3)], np.zeros(3, dtype=int), [[], [], []]
    begin = lambda i: alone[i].reset(seed=int(env_seeds(5, TRAINING, numbers)[i]))[0]  # noqa: E731
    seen, over = np.array([begin(i) for i in range(3)]), np.zeros(3, dtype=bool)
    for _ in range(150):
        assert np.array_equal(episodes.obs, seen)
        actions = episodes.send(rng.integers(0, 2, 3))
        step, finished = episodes.recv(), []
        assert np.array_equal(step.resets, over)
        for i, env in enumerate(alone):
            if over[i]:
                numbers[i] += 1
                seen[i], rewards_of[i], over[i] = begin(i), [], False
                assert not (step.terminations | step.truncations)[i]
                continue
            seen[i], reward, terminated, truncated, _ = env.step(actions[i])
            assert (step.rewards[i], step.terminations[i], step.truncations[i]) == (reward, terminated, truncated)
            rewards_of[i].append(reward)
            over[i] = terminated or truncated
            if over[i]:
                finished.append((sum(rewards_of[i]), len(rewards_of[i])))
        assert step.finished == finished, "told in the step that ends them"
    assert numbers.min() >= 2


def test_in_evaluation_no_episode_is_begun_twice(monkeypatch):
    episodes = episodes_of("CartPole-v1", purpose=EVALUATION)
    monkeypatch.setattr(episodes.envs, "reset", None)  # cannot be called
    for _ in range(30):
        episodes.send(np.zeros(3, dtype=int))
        episodes.recv()


@pytest.mark.parametrize(("env_id", "num_steps"), [("CartPole-v1", 100), ("MountainCar-v0", 420)])
@pytest.mark.parametrize("moment", ["begin", "end", "reset", "late"])
def test_episodes_that_are_put_back_go_on_as_those_that_were_never_stopped(env_id, num_steps, moment):
    """Poles that fall one by one, and cars that are all cut in the same step."""
    episodes, rng, saved_at = episodes_of(env_id, seed=3), np.random.default_rng(0), None
    actions, seen, ended = rng.integers(0, episodes.num_actions, (num_steps + 200, 3)), [], 0
    for t in range(num_steps + 200):
        resets = t > 0 and seen[-1][1].resets.any()
        now = {"begin": True, "end": ended and episodes.ended.any(), "reset": ended > 3 and resets, "late": t == num_steps}
        if saved_at is None and now[moment]:
            saved_at = t
            save(episodes, "envs.zip")
        obs = episodes.obs.copy()
        episodes.send(actions[t])
        seen.append((obs, episodes.recv()))
        ended += len(seen[-1][1].finished)
    assert ended >= 6

    again = restored(episodes_of(env_id, seed=3), "envs.zip")
    assert again.cut_at is None
    for t in range(saved_at, min(saved_at + 200, len(seen))):
        assert np.array_equal(again.obs, seen[t][0]), t
        again.send(actions[t])
        assert same(again.recv(), seen[t][1]), t


def test_an_environment_that_does_not_come_back_says_so_and_begins_anew():
    """What it shows is drawn from generators that no seed of the run sets."""
    episodes = episodes_of("tests.support.probes:Careless-v0")
    for _ in range(3):
        episodes.send(np.zeros(3, dtype=int))
        episodes.recv()
    save(episodes, "envs.zip")
    again = restored(episodes_of("tests.support.probes:Careless-v0"), "envs.zip")
    assert np.array_equal(again.cut_at, episodes.obs)
    again.begin_anew()
    assert again.history.numbers.tolist() == [1] * 3
    assert again.history.lengths.tolist() == [0] * 3
    assert not again.ended.any()
    assert again.returns.tolist() == [0] * 3
    assert not np.array_equal(again.obs, episodes.obs)
    for t in range(5):
        again.send(np.zeros(3, dtype=int))
        assert len(again.recv().finished) == (3 if t == 4 else 0), "whole episodes of five steps"


def test_episodes_that_are_too_long_to_be_kept_begin_anew():
    episodes, other = episodes_of("CartPole-v1"), episodes_of("CartPole-v1")
    episodes.history.limit = other.history.limit = 4
    for _ in range(5):
        episodes.send(np.zeros(3, dtype=int))
        episodes.recv()
    save(episodes, "envs.zip")
    assert np.array_equal(restored(other, "envs.zip").cut_at, episodes.obs)
    other.begin_anew()
    assert other.history.numbers.tolist() == [1] * 3
    assert other.history.whole


# --- History ---


class Lists:
    """A slow, obvious history: every action of every game."""

    def __init__(self, num_envs: int) -> None:
        self.numbers, self.games = [0] * num_envs, [[] for _ in range(num_envs)]

    def add(self, actions: np.ndarray) -> None:
        """Note the actions of a step."""
        for game, action in zip(self.games, actions.tolist(), strict=True):
            game.append(action)

    def begin(self, resets: np.ndarray) -> None:
        """Begin new games."""
        for i in np.flatnonzero(resets):
            self.numbers[i], self.games[i] = self.numbers[i] + 1, []


def assert_same(history: History, expected: Lists, limit: int) -> None:
    """Numbers, lengths, and the actions that are kept: all of them, or the last `limit`."""
    lengths = [len(game) for game in expected.games]
    assert history.numbers.tolist() == expected.numbers
    assert history.lengths.tolist() == lengths
    assert history.whole == (max(lengths) <= limit)
    saved = history.saved()
    assert len(saved["actions"]) == min(max(lengths), limit)
    for i, game in enumerate(expected.games):
        kept = min(len(game), len(saved["actions"]))
        assert saved["actions"][len(saved["actions"]) - kept :, i].tolist() == game[len(game) - kept :]


@settings(max_examples=60, deadline=None)
@given(
    num_envs=st.integers(1, 3),
    limit=st.sampled_from([1, 7, 300, 10_000]),
    games=st.lists(
        st.tuples(st.integers(0, 300), st.lists(st.booleans(), min_size=3, max_size=3), st.booleans()), max_size=8
    ),
    seed=st.integers(0, 100),
)
def test_a_history_is_that_of_the_lists(num_envs, limit, games, seed):
    """It grows, drops what no game needs, and is written and read between games."""
    history, expected, rng, longest = History(num_envs, limit), Lists(num_envs), np.random.default_rng(seed), 0
    for length, resets, through_a_checkpoint in games:
        for _ in range(length):
            actions = rng.integers(0, 18, num_envs)
            history.add(actions)
            expected.add(actions)
        assert_same(history, expected, limit)
        longest = max(longest, *(len(game) for game in expected.games))
        assert len(history.actions) <= max(256, 4 * min(limit, longest)), "memory of a game, however many there were"
        if through_a_checkpoint:
            saved = {name: values.copy() for name, values in history.saved().items()}
            history = History(num_envs, limit)
            history.restore(saved)
            assert_same(history, expected, limit)
        history.begin(np.array(resets[:num_envs]))
        expected.begin(np.array(resets[:num_envs]))
    assert_same(history, expected, limit)


def test_playing_again_sends_each_game_its_actions_from_its_beginning():
    history, expected, rng = History(3), Lists(3), np.random.default_rng(0)
    for t in range(700):
        resets = np.array([t == 100, t in (350, 500), t == 699])
        actions = rng.integers(1, 18, 3)
        history.add(actions)
        expected.add(actions)
        history.begin(resets)
        expected.begin(resets)
    played = Lists(3)
    history.play_again(played.begin, played.add)
    assert [len(game) for game in played.games] == [599, 199, 0]
    assert played.games == expected.games
    assert played.numbers == [1, 1, 1], "each is begun once"


def test_playing_again_shows_how_far_it_is_when_it_takes_long(monkeypatch, capsys):
    monkeypatch.setattr(histories, "error_console", lambda: Console(stderr=True, force_terminal=True))
    history = History(1)
    for _ in range(600):
        history.add(np.zeros(1))
    history.play_again(lambda _: None, lambda _: None)
    assert "playing" not in capsys.readouterr().err
    monkeypatch.setattr(histories, "SHOW_AFTER", -1.0)
    history.play_again(lambda _: None, lambda _: None)
    assert "playing the running games again" in capsys.readouterr().err
