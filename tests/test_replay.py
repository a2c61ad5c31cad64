"""The replay buffer against a slow, obvious one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from cleanrl import dqn_atari, dqn_atari_jax
from tests.support.oracles import IN_JAX, IN_TORCH, Games, Kind

probability = st.sampled_from([0.0, 0.05, 0.3])


@pytest.fixture(params=[IN_TORCH, IN_JAX], ids=["torch", "jax"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


transitions = given(
    num_envs=st.integers(1, 5),
    spare_rows=st.integers(0, 9),
    n_step=st.integers(1, 5),
    num_steps=st.integers(1, 40),
    seed=st.integers(0, 2**16),
    p_end=probability,
    p_life=probability,
    p_cut=probability,
)


@settings(max_examples=60, deadline=None)
@transitions
def test_every_drawable_transition_equals_the_obvious_one(**example):
    check_transitions(IN_TORCH, **example)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)  # each compiles anew
@transitions
def test_every_drawable_transition_equals_the_obvious_one_in_jax(**example):
    check_transitions(IN_JAX, **example)


def check_transitions(kind, num_envs, spare_rows, n_step, num_steps, seed, p_end, p_life, p_cut):
    games = Games(num_envs, seed, p_end, p_life, p_cut)
    num_rows = kind.replay.min_rows(n_step) + spare_rows
    rb = kind.make(num_rows * num_envs, num_envs, n_step)
    kind.play(rb, games, num_steps)

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
    batch = rb.sample(kind.array(np.array([t % num_rows * num_envs + env for t, env in wanted])))
    for i, (t, env) in enumerate(wanted):
        obs, action, reward, next_obs, discount = games.transition(t, env, n_step, 0.9)
        assert np.array_equal(batch.obs[i], obs)
        assert batch.actions[i] == action
        assert batch.rewards[i].item() == pytest.approx(reward, abs=1e-6)
        assert batch.discounts[i].item() == pytest.approx(discount, abs=1e-6)
        if discount:  # after a termination the next observation has no meaning for the target
            assert np.array_equal(batch.next_obs[i], next_obs)


def test_draw_is_uniform_over_valid_transitions(kind):
    games = Games(3, seed=0, p_end=0.2, p_life=0.1, p_cut=0.1)
    rb = kind.make(20 * 3, 3, 2)
    kind.play(rb, games, 50)
    allowed = games.drawable(20, 2)
    indices = rb.draw(1000, 50, np.random.default_rng(0))
    counts = np.unique(indices, return_counts=True)[1]
    assert len(counts) == len(allowed)
    expected = indices.size / len(allowed)
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_draw_gives_the_same_indices_from_the_same_generator_in_both():
    drawn = []
    for kind in (IN_TORCH, IN_JAX):
        rb = kind.make(100, 2, 1)
        kind.play(rb, Games(2, seed=1, p_end=0.1, p_life=0, p_cut=0), 30)
        drawn += [rb.draw(3, 32, np.random.default_rng(5)) for _ in range(2)]
    assert all(np.array_equal(indices, drawn[0]) for indices in drawn)


@pytest.mark.parametrize("n_step", [1, 3])
def test_the_same_indices_are_the_same_batches_in_both(n_step):
    index, batches = np.arange(8, 100), []
    for kind in (IN_TORCH, IN_JAX):
        rb = kind.make(150, 2, n_step)
        kind.play(rb, Games(2, seed=1, p_end=0.1, p_life=0.1, p_cut=0.1), 70)
        batches.append(rb.sample(kind.array(index)))
    for ours, theirs in zip(*batches, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_draw_leaves_out_rows_whose_stack_would_reach_around_the_ring(kind):
    rb = kind.make(10, 1, 1)
    kind.play(rb, Games(1, seed=2, p_end=0, p_life=0, p_cut=0), 15)  # the head, the oldest row, is row 5
    assert set(rb.draw(100, 10, np.random.default_rng(0)).flatten()) == {8, 9, 0, 1, 2, 3}


def test_memory_per_transition_is_at_most_7200_bytes(kind):
    rb = kind.make(8000, 8, 3)
    rings = [value for value in vars(rb).values() if isinstance(value, torch.Tensor | np.ndarray)]
    rings += getattr(rb, "rings", [])
    assert 7000 <= sum(ring.nbytes for ring in rings) / 8000 <= 7200


def test_a_ring_without_room_for_a_stack_is_refused(kind):
    with pytest.raises(ValueError, match="too few"):
        kind.make(4 * 8, 8, 1)


class Copies(TorchDispatchMode):
    """Counts copies from the host to the device `meta`, which holds nothing."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ARG002
        kwargs = kwargs or {}
        from_host = any(isinstance(arg, torch.Tensor) and arg.device.type == "cpu" for arg in args)
        self.count += from_host and (kwargs.get("device") or args[0].device) == torch.device("meta")
        return func(*args, **kwargs)


def test_what_a_step_brought_goes_to_the_device_in_one_copy():
    rb = dqn_atari.ReplayBuffer(800, 8, 1, 0.99, torch.device("meta"))
    nothing, no = np.zeros(8), np.zeros(8, dtype=bool)
    obs = torch.zeros((8, 4, 84, 84), dtype=torch.uint8, device="meta")
    with Copies() as copies:
        rb.add(obs, np.arange(8), dqn_atari.Step(nothing, no, no, no, []))
    assert copies.count == 1


# What JAX must not do: copy the rings.


def test_jax_stores_in_place():
    rb = IN_JAX.make(1000, 2, 1)
    before = [ring.unsafe_buffer_pointer() for ring in rb.rings]
    IN_JAX.play(rb, Games(2, seed=0, p_end=0, p_life=0, p_cut=0), 3)
    assert [ring.unsafe_buffer_pointer() for ring in rb.rings] == before


def test_jax_neither_stores_nor_samples_through_a_copy_of_the_rings():
    rb = IN_JAX.make(10_000, 2, 3)
    size = rb.rings.frames.nbytes
    obs, *values = Games(2, seed=0, p_end=0, p_life=0, p_cut=0).step()
    values = [value.astype(ring.dtype) for value, ring in zip(values, rb.rings[1:], strict=True)]
    stored = dqn_atari_jax.store.lower(rb.rings, 0, obs, *values).compile().memory_analysis()
    assert stored.alias_size_in_bytes >= size, "the rings are donated"
    assert stored.temp_size_in_bytes < size / 100
    sampled = dqn_atari_jax.gather.lower(rb.rings, np.zeros((2, 32), int), 2, 3, 0.9).compile().memory_analysis()
    assert sampled.temp_size_in_bytes < size / 10
    assert sampled.output_size_in_bytes < size / 10


def test_jax_samples_many_batches_at_once_as_one_by_one():
    rb = IN_JAX.make(200, 2, 3)
    IN_JAX.play(rb, Games(2, seed=0, p_end=0.1, p_life=0.1, p_cut=0.1), 80)
    indices = rb.draw(3, 8, np.random.default_rng(0))
    at_once = rb.sample(indices)
    for k, index in enumerate(indices):
        for many, one in zip(at_once, rb.sample(index), strict=True):
            np.testing.assert_array_equal(many[k], one)
