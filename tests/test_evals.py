"""Evaluation by whole games."""

from __future__ import annotations

import numpy as np
import pytest

from cleanrl import dqn, dqn_atari
from cleanrl_utils.evals.gym import Episodes
from cleanrl_utils.evals.play import Evaluation, evaluate
from cleanrl_utils.seeds import EVALUATION
from tests.conftest import score


def still(obs: np.ndarray) -> np.ndarray:
    """A player that never moves."""
    return np.zeros(len(obs), dtype=np.int64)


def test_a_player_who_never_moves_loses_every_point_of_pong():
    scores = score(still, "PongNoFrameskip-v4", 2, seed=1, epsilon=0.0)
    assert scores.returns == [-21.0, -21.0]
    assert scores.mean == -21.0
    assert scores.std == 0.0
    assert scores.capped == 0
    assert all(700 < length < 1100 for length in scores.lengths)
    assert str(scores) == "-21.00 +- 0.00"


def test_an_episode_is_the_same_however_many_there_are():
    two, four = (score(still, "BreakoutNoFrameskip-v4", episodes, seed=7, epsilon=1.0) for episodes in (2, 4))
    assert four.returns[:2] == two.returns
    assert four.lengths[:2] == two.lengths
    assert len(set(zip(four.returns, four.lengths, strict=True))) > 1, "episodes differ from each other"


def test_another_seed_is_another_set_of_games():
    first, second = (score(still, "BreakoutNoFrameskip-v4", 3, seed=seed, epsilon=1.0) for seed in (1, 2))
    assert first.lengths != second.lengths


def test_capped_games_are_counted_and_cut_at_the_cap():
    scores = score(still, "PongNoFrameskip-v4", 3, seed=1, epsilon=1.0, eval_max_frames=400)
    assert scores.capped == 3
    assert scores.lengths == [100, 100, 100]


def test_a_lost_life_does_not_end_a_game():
    """A player who only waits loses five lives in Breakout, each relaunched by FIRE."""
    scores = score(still, "BreakoutNoFrameskip-v4", 2, seed=3, epsilon=0.0)
    assert scores.capped == 0
    assert all(length > 5 * 15 for length in scores.lengths)
    assert scores.returns == [0.0, 0.0] or max(scores.returns) < 15


def test_scores_are_raw():
    """A brick row of Breakout is worth up to 7, an invader up to 30: clipped scores would be counts."""
    scores = score(still, "SpaceInvadersNoFrameskip-v4", 2, seed=1, epsilon=1.0)
    assert max(scores.returns) >= 50
    assert all(score % 5 == 0 for score in scores.returns)


def test_epsilon_draws_its_own_random_numbers():
    np.random.seed(0)  # noqa: NPY002 - the global state must stay as it is
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    score(still, "PongNoFrameskip-v4", 1, seed=1, epsilon=0.5, eval_max_frames=80)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
def test_epsilon_is_the_share_of_random_actions(monkeypatch, epsilon):
    played, send = [], dqn_atari.Games.send
    monkeypatch.setattr(
        dqn_atari.Games, "send", lambda self, actions: (played.extend(actions.tolist()), send(self, actions))[1]
    )
    score(still, "PongNoFrameskip-v4", 4, seed=1, epsilon=epsilon, eval_max_frames=2000)
    # The player always does 0; a random action is something else five times in six.
    assert np.mean(np.array(played) != 0) == pytest.approx(epsilon * 5 / 6, abs=0.03)
    assert len(played) == 4 * 500


# What is scored since FIRE is pressed after resets: 20 games of a random player with seed 1, cut at so many raw frames.
RANDOM_BREAKOUT = Evaluation(
    returns=[2, 0, 0, 3, 0, 1, 1, 2, 1, 1, 1, 0, 1, 1, 2, 2, 0, 0, 1, 0],
    lengths=[212, 119, 118, 264, 121, 164, 172, 194, 146, 148, 149, 115, 152, 168, 198, 194, 118, 122, 151, 118],
    capped=1,
    clipped_returns=[2, 0, 0, 3, 0, 1, 1, 2, 1, 1, 1, 0, 1, 1, 2, 2, 0, 0, 1, 0],
)
RANDOM_PONG = Evaluation(
    returns=[-20, -21, -19, -20, -21, -21, -21, -21, -21, -21, -20, -17, -20, -18, -21, -20, -21, -19, -21, -21],
    lengths=[923, 967, 951, 890, 855, 817, 851, 940, 818, 821, 837, 1216, 934, 1246, 884, 940, 896, 1066, 958, 759],
    capped=1,
    clipped_returns=[-20, -21, -19, -20, -21, -21, -21, -21, -21, -21, -20, -17, -20, -18, -21, -20, -21, -19, -21, -21],
)
# And what version 0.1 scored of a player that pushes to where the pole leans, at epsilon 0.2, cut at 60 steps.
LENGTHS = [59, 16, 32, 60, 37, 34, 60, 47, 46, 21, 45, 25, 60, 47, 46, 46, 60, 57, 30, 33]
RULED_CARTPOLE = Evaluation(LENGTHS, LENGTHS, 3, LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("game", "max_frames", "expected"),
    [("Breakout", 1056, RANDOM_BREAKOUT), ("Pong", 4984, RANDOM_PONG)],
)
def test_evaluations_stay_what_they_are(game, max_frames, expected):
    """So scores that are published stay: seeds, exploration, FIRE and the cap are what they were."""
    assert score(still, f"{game}NoFrameskip-v4", 20, seed=1, epsilon=1.0, eval_max_frames=max_frames) == expected


def test_evaluations_on_vectors_are_those_of_version_0_1():
    args = dqn.Args(seed=1)
    result = evaluate(lambda obs: (obs[:, 2] > 0).astype(int), Episodes(args, EVALUATION, 20), 1, 0.2, max_steps=60)
    assert result == RULED_CARTPOLE
