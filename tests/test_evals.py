"""Evaluation by whole games."""

from __future__ import annotations

import numpy as np
import pytest

from cleanrl_utils.evals import atari
from cleanrl_utils.evals.atari import evaluate


def still(obs: np.ndarray) -> np.ndarray:
    """A player that never moves."""
    return np.zeros(len(obs), dtype=np.int64)


def test_a_player_who_never_moves_loses_every_point_of_pong():
    scores = evaluate(still, "PongNoFrameskip-v4", episodes=2, seed=1, epsilon=0.0)
    assert scores.returns == [-21.0, -21.0]
    assert scores.mean == -21.0
    assert scores.std == 0.0
    assert scores.capped == 0
    assert all(700 < length < 1100 for length in scores.lengths)
    assert str(scores) == "-21.00 +- 0.00"


def test_an_episode_is_the_same_however_many_there_are():
    two, four = (evaluate(still, "BreakoutNoFrameskip-v4", episodes, 7, epsilon=1.0) for episodes in (2, 4))
    assert four.returns[:2] == two.returns
    assert four.lengths[:2] == two.lengths
    assert len(set(zip(four.returns, four.lengths, strict=True))) > 1, "episodes differ from each other"


def test_another_seed_is_another_set_of_games():
    first, second = (evaluate(still, "BreakoutNoFrameskip-v4", 3, seed, epsilon=1.0) for seed in (1, 2))
    assert first.lengths != second.lengths


def test_capped_games_are_counted_and_cut_at_the_cap():
    scores = evaluate(still, "PongNoFrameskip-v4", episodes=3, seed=1, epsilon=1.0, max_frames=400)
    assert scores.capped == 3
    assert scores.lengths == [100, 100, 100]


def test_a_lost_life_does_not_end_a_game():
    """A player who only waits loses five lives in Breakout, each relaunched by FIRE."""
    scores = evaluate(still, "BreakoutNoFrameskip-v4", episodes=2, seed=3, epsilon=0.0)
    assert scores.capped == 0
    assert all(length > 5 * 15 for length in scores.lengths)
    assert scores.returns == [0.0, 0.0] or max(scores.returns) < 15


def test_scores_are_raw():
    """A brick row of Breakout is worth up to 7, an invader up to 30: clipped scores would be counts."""
    scores = evaluate(still, "SpaceInvadersNoFrameskip-v4", episodes=2, seed=1, epsilon=1.0)
    assert max(scores.returns) >= 50
    assert all(score % 5 == 0 for score in scores.returns)


def test_epsilon_draws_its_own_random_numbers():
    np.random.seed(0)  # noqa: NPY002 - the global state must stay as it is
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    evaluate(still, "PongNoFrameskip-v4", episodes=1, seed=1, epsilon=0.5, max_frames=80)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
def test_epsilon_is_the_share_of_random_actions(monkeypatch, epsilon):
    played = []

    class Watched(atari.AtariVectorEnv):
        def step(self, actions):
            played.extend(actions.tolist())
            return super().step(actions)

    monkeypatch.setattr(atari, "AtariVectorEnv", Watched)
    evaluate(still, "PongNoFrameskip-v4", episodes=4, seed=1, epsilon=epsilon, max_frames=2000)
    # The player always does 0; a random action is something else five times in six.
    assert np.mean(np.array(played) != 0) == pytest.approx(epsilon * 5 / 6, abs=0.03)
    assert len(played) == 4 * 500
