"""Tabular Q-learning (Watkins and Dayan 1992, https://doi.org/10.1007/BF00992698) on FrozenLake, and a picture of its table.

First step of docs/tutorial/from-q-learning-to-dqn.md. The picture needs the extra `plots`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

from cleanrl_utils import flags
from cleanrl_utils.console import notice
from cleanrl_utils.ranges import Positive, PositiveFloat, Probability

ARROWS = "←↓→↑"
"""Of the actions 0, 1, 2, 3."""


@dataclass
class Args:
    """Learn a table of Q-values on FrozenLake and draw it."""

    seed: int = 1
    """seed of the environment and of exploration"""
    total_timesteps: Positive = 300_000
    """environment steps"""
    learning_rate: PositiveFloat = 0.05
    """how far an entry moves towards its target"""
    gamma: Probability = 0.99
    """discount per step"""
    end_e: Probability = 0.1
    """exploration rate at the end; it falls from 1 on a line"""
    eval_episodes: Positive = 1000
    """episodes of the greedy policy, at the end"""
    out: str = "q-table.png"
    """picture to write"""


def update(table: np.ndarray, s: int, a: int, r: float, s_next: int, terminated: bool, gamma: float, rate: float) -> None:
    """Move Q(s, a) towards r + gamma max_a' Q(s', a'), or towards r alone where the episode has ended."""
    target = r + gamma * table[s_next].max() * (not terminated)
    table[s, a] += rate * (target - table[s, a])


def learn(env: gym.Env, args: Args) -> np.ndarray:
    """A table of Q-values (states, actions) from `total_timesteps` steps of the epsilon-greedy policy."""
    rng = np.random.default_rng(args.seed)
    table = np.zeros((env.observation_space.n, env.action_space.n))
    s, _ = env.reset(seed=args.seed)
    for step in range(args.total_timesteps):
        epsilon = 1 + (args.end_e - 1) * step / args.total_timesteps
        best = np.flatnonzero(table[s] == table[s].max())  # a tie is broken at random
        a = int(rng.integers(env.action_space.n) if rng.random() < epsilon else rng.choice(best))
        s_next, r, terminated, truncated, _ = env.step(a)
        update(table, s, a, r, s_next, terminated, args.gamma, args.learning_rate)
        s = env.reset()[0] if terminated or truncated else s_next
    return table


def success_rate(env: gym.Env, table: np.ndarray, args: Args) -> float:
    """Share of episodes in which the greedy policy reaches the goal."""
    reached = 0.0
    for episode in range(args.eval_episodes):
        s, _ = env.reset(seed=args.seed + 1_000_000 if episode == 0 else None)
        ended = False
        while not ended:
            s, r, terminated, truncated, _ = env.step(int(table[s].argmax()))
            reached += r
            ended = terminated or truncated
    return reached / args.eval_episodes


def draw(table: np.ndarray, lake: np.ndarray, out: Path, title: str) -> None:
    """The table as a map: each field in four triangles, one per action, an arrow for the best."""
    import matplotlib  # noqa: PLC0415 - an extra

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415
    from matplotlib.patches import Polygon  # noqa: PLC0415

    figure, axis = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
    colors, height, width = plt.get_cmap("viridis"), *lake.shape
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    sides = [(0, 3), (3, 2), (2, 1), (1, 0)]  # left, down, right, up; rows count downwards
    for s, values in enumerate(table):
        row, column = divmod(s, width)
        kind = lake[row, column].decode()
        for a, (i, j) in enumerate(sides):
            points = [(column + corners[k][0], row + corners[k][1]) for k in (i, j)] + [(column + 0.5, row + 0.5)]
            color = "#dddddd" if kind in "HG" else colors(values[a] / max(table.max(), 1e-9))
            axis.add_patch(Polygon(points, facecolor=color, edgecolor="white", linewidth=0.5))
        sign = {"H": "hole", "G": "goal"}.get(kind) or f"{ARROWS[values.argmax()]}\n{values.max():.2f}"
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "none", "alpha": 0.8 * (kind not in "HG")}
        axis.text(column + 0.5, row + 0.5, sign, ha="center", va="center", fontsize=9, bbox=box)
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal", title=title)
    figure.colorbar(plt.cm.ScalarMappable(plt.Normalize(0, table.max()), colors), ax=axis, label="Q(s, a)")
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(args: Args) -> np.ndarray:
    """Learn, evaluate, draw; returns the table."""
    flags.check_ranges(args)
    env = gym.make("FrozenLake-v1")
    table = learn(env, args)
    rate = success_rate(env, table, args)
    draw(table, env.unwrapped.desc, Path(args.out), f"FrozenLake: the goal is reached in {rate:.1%} of episodes")
    notice(f"greedy policy: {rate:.1%} of {args.eval_episodes} episodes reach the goal; picture: {args.out}")
    return table


if __name__ == "__main__":
    flags.run(main, Args)
