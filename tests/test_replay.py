"""The replay buffer against a slow, obvious one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanrl.dqn_atari import ReplayBuffer
from tests.replay_oracle import Games

probability = st.sampled_from([0.0, 0.05, 0.3])


@settings(max_examples=60, deadline=None)
@given(
    num_envs=st.integers(1, 5),
    spare_rows=st.integers(0, 9),
    n_step=st.integers(1, 5),
    num_steps=st.integers(1, 40),
    seed=st.integers(0, 2**16),
    p_end=probability,
    p_life=probability,
    p_cut=probability,
)
def test_every_drawable_transition_equals_the_obvious_one(
    num_envs, spare_rows, n_step, num_steps, seed, p_end, p_life, p_cut
):
    games = Games(num_envs, seed, p_end, p_life, p_cut)
    num_rows = ReplayBuffer.min_rows(n_step) + spare_rows
    rb = ReplayBuffer(num_rows * num_envs, num_envs, n_step, 0.9, torch.device("cpu"))
    for _ in range(num_steps):
        obs, *rest = games.step()
        rb.add(torch.from_numpy(obs), *rest)

    allowed = games.drawable(num_rows, n_step)
    indices = rb.draw(20, 10, np.random.default_rng(seed))
    if not allowed:
        assert indices.shape == (0, 10)
        return
    drawn = {
        ((len(games.steps) - 1 - (rb.head - 1 - i // num_envs) % num_rows), i % num_envs) for i in indices.flatten().tolist()
    }
    assert drawn <= allowed

    wanted = sorted(allowed)
    index = torch.tensor([t % num_rows * num_envs + env for t, env in wanted])
    batch = rb.sample(index)
    for i, (t, env) in enumerate(wanted):
        obs, action, reward, next_obs, discount = games.transition(t, env, n_step, 0.9)
        assert np.array_equal(batch.obs[i], obs)
        assert batch.actions[i] == action
        assert batch.rewards[i].item() == pytest.approx(reward, abs=1e-6)
        assert batch.discounts[i].item() == pytest.approx(discount, abs=1e-6)
        if discount:  # after a termination the next observation has no meaning for the target
            assert np.array_equal(batch.next_obs[i], next_obs)


def test_draw_is_uniform_over_valid_transitions():
    games = Games(3, seed=0, p_end=0.2, p_life=0.1, p_cut=0.1)
    rb = ReplayBuffer(20 * 3, 3, 2, 0.9, torch.device("cpu"))
    for _ in range(50):
        obs, *rest = games.step()
        rb.add(torch.from_numpy(obs), *rest)
    allowed = games.drawable(20, 2)
    indices = rb.draw(1000, 50, np.random.default_rng(0))
    counts = np.unique(indices, return_counts=True)[1]
    assert len(counts) == len(allowed)
    expected = indices.size / len(allowed)
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_draw_gives_the_same_indices_from_the_same_generator():
    rb = ReplayBuffer(100, 2, 1, 0.99, torch.device("cpu"))
    games = Games(2, seed=1, p_end=0.1, p_life=0, p_cut=0)
    for _ in range(30):
        obs, *rest = games.step()
        rb.add(torch.from_numpy(obs), *rest)
    first, second = (rb.draw(3, 32, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, second)


def test_draw_leaves_out_rows_whose_stack_would_reach_around_the_ring():
    rb = ReplayBuffer(10, 1, 1, 0.99, torch.device("cpu"))
    games = Games(1, seed=2, p_end=0, p_life=0, p_cut=0)
    for _ in range(15):  # the head, the oldest row, is row 5
        obs, *rest = games.step()
        rb.add(torch.from_numpy(obs), *rest)
    assert set(rb.draw(100, 10, np.random.default_rng(0)).flatten()) == {8, 9, 0, 1, 2, 3}


def test_memory_per_transition_is_at_most_7200_bytes():
    rb = ReplayBuffer(8000, 8, 3, 0.99, torch.device("cpu"))
    rings = [value for value in vars(rb).values() if isinstance(value, torch.Tensor | np.ndarray)]
    assert sum(ring.nbytes for ring in rings) / 8000 <= 7200


def test_a_ring_without_room_for_a_stack_is_refused():
    with pytest.raises(ValueError, match="too few"):
        ReplayBuffer(4 * 8, 8, 1, 0.99, torch.device("cpu"))
