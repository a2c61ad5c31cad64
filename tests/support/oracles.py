"""A slow, obvious replay: every observation and every game kept whole, no ring, no stacking. And the buffers to compare."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from cleanrl import dqn_atari, dqn_atari_jax


class Games:
    """N made-up environments that follow ALE's NEXT_STEP autoreset, with every stacked observation kept.

    `observations[t]` is what the agent saw before step t; each frame is unique, so that a misplaced frame shows.
    """

    def __init__(self, num_envs: int, seed: int, p_end: float, p_life: float, p_cut: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.num_envs, self.p_end, self.p_life, self.p_cut = num_envs, p_end, p_life, p_cut
        self.stacks = np.zeros((num_envs, 4, 84, 84), dtype=np.uint8)
        self.ended = np.zeros(num_envs, dtype=bool)
        self.observations, self.steps = [self._see(np.ones(num_envs, dtype=bool))], []

    def _see(self, cleared: np.ndarray) -> np.ndarray:
        frames = self.rng.integers(0, 256, (self.num_envs, 1, 84, 84), dtype=np.uint8)
        self.stacks = np.where(cleared[:, None, None, None], 0, self.stacks)
        self.stacks = np.concatenate([self.stacks[:, 1:], frames], axis=1)
        return self.stacks

    def step(self) -> tuple[np.ndarray, ...]:
        """One vector step as a replay stores it: obs, actions, rewards, terminations, truncations, resets."""
        n, rng = self.num_envs, self.rng
        resets = self.ended
        actions = rng.integers(0, 6, n)
        rewards = np.where(resets, 0, rng.integers(-1, 2, n)).astype(np.float32)
        ends, cuts = ~resets & (rng.random(n) < self.p_end), ~resets & (rng.random(n) < self.p_cut)
        terminations = ends | (~resets & (rng.random(n) < self.p_life))
        self.ended = ends | cuts
        row = (self.observations[-1], actions, rewards, terminations, cuts, resets)
        self.steps.append(row)
        self.observations.append(self._see(resets))
        return row

    def transition(self, t: int, env: int, n_step: int, gamma: float) -> tuple:
        """The n-step transition that starts at step t, by the definition."""
        reward, discount = 0.0, 1.0
        for k in range(n_step):
            _, _, rewards, terminations, truncations, resets = self.steps[t + k]
            assert not resets[env], "an n-step return ran into a reset"
            reward += gamma**k * float(rewards[env])
            discount = 0.0 if terminations[env] else gamma ** (k + 1)
            if terminations[env] or truncations[env]:
                break
        obs, actions, *_ = self.steps[t]
        return obs[env], actions[env], reward, self.observations[t + k + 1][env], discount

    def drawable(self, num_rows: int, n_step: int) -> set[tuple[int, int]]:
        """(t, env) of every transition that a ring of `num_rows` may draw now."""
        total = len(self.steps)
        first = total - num_rows + 3 if total >= num_rows else 0
        return {(t, env) for t in range(first, total - n_step) for env in range(self.num_envs) if not self.steps[t][5][env]}


class Kind(NamedTuple):
    """A framework's buffer, its device, and what makes its arrays."""

    replay: Any
    device: Any
    array: Any

    def make(self, size: int, num_envs: int, n_step: int) -> Any:
        """An empty buffer."""
        return self.replay(size, num_envs, n_step, 0.9, self.device)

    def play(self, rb: Any, games: Games, num_steps: int) -> None:
        """Store the next steps of the games in a buffer."""
        for _ in range(num_steps):
            obs, actions, *rest = games.step()
            rb.add(self.array(obs), actions, dqn_atari.Step(*rest, finished=[]))


IN_TORCH = Kind(dqn_atari.ReplayBuffer, torch.device("cpu"), torch.from_numpy)
IN_JAX = Kind(dqn_atari_jax.ReplayBuffer, jax.devices("cpu")[0], np.asarray)
