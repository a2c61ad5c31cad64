"""Tiny environments whose values are known, each for one thing that an agent of values must get right.

Registered under names, so that the scripts make them as they make any other: `tests.support.probes:Constant-v0`.
"""

from __future__ import annotations

import random
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, Tuple

VECTOR = Box(-1, 1, (1,), np.float32)


class Probe(gym.Env):
    """Two actions, observations of one number; episodes of `length` steps that terminate."""

    observation_space, action_space, length = VECTOR, Discrete(2), 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):  # noqa: ARG002
        super().reset(seed=seed)
        self.t = 0
        self.state = self.observe()
        return self.state, {}

    def step(self, action):
        reward = self.reward(int(action))
        self.t += 1
        self.state = self.observe()
        return self.state, reward, self.t == self.length, False, {}

    def observe(self):
        return np.zeros(1, np.float32)

    def reward(self, action: int) -> float:  # noqa: ARG002
        return 1.0


class Constant(Probe):
    """Always reward 1: Q = 1."""


class Observed(Probe):
    """The reward is what was seen, -1 or 1: Q(s) = s."""

    def observe(self):
        return np.array([self.np_random.choice([-1.0, 1.0])], np.float32)

    def reward(self, action: int) -> float:  # noqa: ARG002
        return float(self.state[0])


class Careless(Probe):
    """Draws what it shows from the global random states of Python, NumPy and torch, which no seed of the run sets."""

    length = 5

    def observe(self):
        return np.array([random.random() * np.random.random() * torch.rand(()).item()], np.float32)  # noqa: NPY002

    def reward(self, action: int) -> float:  # noqa: ARG002
        return float(self.state[0])


class Delayed(Probe):
    """Reward 1 at the second of two steps: Q(0) = gamma, Q(1) = 1."""

    length = 2

    def observe(self):
        return np.array([float(self.t > 0)], np.float32)

    def reward(self, action: int) -> float:  # noqa: ARG002
        return float(self.t == 1)


class Chosen(Probe):
    """The action is the reward: Q(0) = 0, Q(1) = 1."""

    def reward(self, action: int) -> float:
        return float(action)


class Matched(Observed):
    """Reward 1 for action 1 where 1 is seen and for action 0 where -1 is seen, else -1: Q = 1 on the diagonal."""

    def reward(self, action: int) -> float:
        return 1.0 if (action == 1) == (self.state[0] > 0) else -1.0


class Cut(Probe):
    """Reward 1 for ever, in pieces of one step that are cut, not ended: Q = 1 / (1 - gamma)."""

    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, False, True, {}


class Endless(Probe):
    """Reward 1 for ever, and never cut."""

    length = -1


class Float64(Observed):
    """Observations in float64."""

    observation_space = Box(-1, 1, (1,), np.float64)

    def observe(self):
        return super().observe().astype(np.float64)


class Nested(Observed):
    """What is seen is spread over a dictionary."""

    observation_space = Dict({"sign": VECTOR, "other": Tuple([Discrete(3), Box(0, 1, (2, 2))])})

    def observe(self):
        self.sign = super().observe()
        return {"sign": self.sign, "other": (1, np.zeros((2, 2), np.float32))}

    def reward(self, action: int) -> float:  # noqa: ARG002
        return float(self.sign[0])


class InPlace(Delayed):
    """Writes each observation over the one before, in the same array."""

    def __init__(self) -> None:
        self.array = np.zeros(1, np.float32)

    def observe(self):
        self.array[:] = self.t > 0
        return self.array

    def step(self, action):
        obs, reward, ended, cut, info = super().step(action)
        return obs, reward, int(ended), cut, info  # and says 1 for True


class Infinite(Probe):
    """The third reward is not finite."""

    length = 5

    def reward(self, action: int) -> float:  # noqa: ARG002
        return float("inf") if self.t == 2 else 1.0


class NotANumber(Probe):
    """What is seen after three steps is no number."""

    length = 5

    def observe(self):
        return np.full(1, np.nan if self.t == 3 else 0, np.float32)


class NotANumberLater(Probe):
    """What the second episode begins with is no number."""

    length, resets = 4, 0

    def reset(self, **about: Any):
        self.resets += 1
        return super().reset(**about)

    def observe(self):
        return np.full(1, np.nan if self.t == 0 and self.resets == 2 else 0, np.float32)


class Undrawn(Probe):
    """Says that it can be drawn, and cannot."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self):
        raise RuntimeError("no pencil")


class BadReset(Probe):
    """Can be made and not begun."""

    def reset(self, **_: Any):
        raise RuntimeError("no seat")


class Images(Probe):
    """Observations for a convolutional network."""

    observation_space = Box(0, 255, (84, 84, 3), np.uint8)


class HiddenImages(Probe):
    """Pictures among other things."""

    observation_space = Dict({"camera": Tuple([Box(0, 255, (64, 64, 3), np.uint8)]), "speed": VECTOR})

    def observe(self):
        return {"camera": (np.zeros((64, 64, 3), np.uint8),), "speed": np.zeros(1, np.float32)}


class Board(Probe):
    """A small board of pieces, as numbers of one byte."""

    observation_space = Box(0, 17, (4, 4), np.uint8)

    def observe(self):
        return np.arange(16, dtype=np.uint8).reshape(4, 4)


class Mission(gym.Space):
    """A kind of space that no library knows how to flatten."""

    def sample(self, mask: Any = None, probability: Any = None):  # noqa: ARG002
        return "go"

    def contains(self, x: Any) -> bool:
        return x == "go"

    @property
    def is_np_flattenable(self) -> bool:
        return True


class OwnSpace(Probe):
    """Observations in a space of its own."""

    observation_space = Dict({"mission": Mission(), "place": VECTOR})

    def observe(self):
        return {"mission": "go", "place": np.zeros(1, np.float32)}


class OldStep(Probe):
    """Steps with four values, as Gym's did."""

    def step(self, action):
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


class RewardArray(Probe):
    """Rewards as arrays."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, np.ones(1), *rest


class OtherShape(Probe):
    """Observations that are not of the space after the first one."""

    def observe(self):
        return np.zeros(1 + self.t, np.float32)


class Continuous(Probe):
    """Actions from an interval."""

    action_space = Box(-1, 1, (1,))


class FromOne(Probe):
    """Actions numbered from 1."""

    action_space = Discrete(2, start=1)


class Lists(Probe):
    """Observations of no fixed size."""

    observation_space = gym.spaces.Sequence(VECTOR)


class Broken(Probe):
    """Cannot be made."""

    def __init__(self, **keywords) -> None:
        raise RuntimeError(f"no licence for {sorted(keywords)}")


for probe in [name for name in globals().values() if isinstance(name, type) and issubclass(name, Probe)]:
    gym.register(f"{probe.__name__}-v0", entry_point=probe)
