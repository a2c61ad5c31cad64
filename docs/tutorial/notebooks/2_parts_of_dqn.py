# %% [markdown]
# # 2. The parts of DQN
#
# DQN learns while it plays. It needs four parts beside its update: a memory of what happened (replay buffer), a network
# that values actions, a way to try things out (epsilon-greedy), and a schedule that makes it try less and less. You build
# each of them here; the next notebook puts them together.
#
# Fill in what is marked `your code here`. A cell prints *Right* or fails. Later cells do not depend on your answers. Half
# an hour; the computer works for seconds.

# %%
import gymnasium as gym
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn

from cleanrl import dqn

# %% [markdown]
# ## The replay buffer
#
# Steps that follow each other look alike, and a network that sees only those forgets the rest. So transitions are kept,
# and batches are drawn from them at random. The memory is a *ring*: when it is full, the newest transition takes the place
# of the oldest.
#
# ### Exercise 1: a ring


# %%
class Ring:
    """The latest `size` transitions of one environment."""

    def __init__(self, size, obs_size):
        self.obs = np.zeros((size, obs_size), dtype=np.float32)
        self.actions = np.zeros(size, dtype=np.int64)
        self.rewards = np.zeros(size, dtype=np.float32)
        self.next_obs = np.zeros((size, obs_size), dtype=np.float32)
        self.terminations = np.zeros(size, dtype=bool)
        self.size, self.head, self.num_stored = size, 0, 0

    def add(self, obs, action, reward, next_obs, terminated):
        """Write one transition to the row `head`, and move `head` to the next row: after the last comes the first."""
        # YOUR CODE: five arrays, then `head` and `num_stored`, which never exceeds `size`
        self.obs[self.head] = obs
        self.actions[self.head] = action
        self.rewards[self.head] = reward
        self.next_obs[self.head] = next_obs
        self.terminations[self.head] = terminated
        self.head = (self.head + 1) % self.size
        self.num_stored = min(self.num_stored + 1, self.size)
        # END

    def sample(self, batch_size, rng):
        """`batch_size` rows that hold something, each as likely as the other, with repetition: their five columns."""
        # YOUR CODE: `rng.integers(high, size=n)` draws n whole numbers below `high`
        rows = rng.integers(self.num_stored, size=batch_size)
        return self.obs[rows], self.actions[rows], self.rewards[rows], self.next_obs[rows], self.terminations[rows]
        # END


ring = Ring(size=5, obs_size=1)
for t in range(3):
    ring.add([t], action=1, reward=t, next_obs=[t + 1], terminated=False)
drawn = ring.sample(200, np.random.default_rng(0))[0]
assert set(drawn[:, 0]) == {0, 1, 2}, "rows 3 and 4 hold nothing yet"
for t in range(3, 7):
    ring.add([t], action=1, reward=t, next_obs=[t + 1], terminated=t == 6)
assert ring.obs[:, 0].tolist() == [5, 6, 2, 3, 4], ring.obs[:, 0]
obs, actions, rewards, next_obs, terminations = ring.sample(2000, np.random.default_rng(0))
assert (next_obs == obs + 1).all() and (rewards == obs[:, 0]).all() and (terminations == (obs[:, 0] == 6)).all()
assert all(abs((obs == t).mean() - 0.2) < 0.03 for t in range(2, 7)), "each row is as likely as the other"
print("Right: rows 0 and 1 were written twice.")

# %% [markdown]
# Your ring keeps every observation twice, as `obs` of one row and as `next_obs` of the row before. The buffer in
# `cleanrl/dqn.py` keeps it once, since what follows row $t$ is row $t + 1$: for Atari, where an observation is four
# pictures, that makes a quarter of the memory or less. Its price: the newest row cannot be drawn yet, and the step that
# resets an environment is stored, for its observation's sake, but never drawn.

# %%
rb = dqn.ReplayBuffer(size=5, num_envs=1, obs_size=1, n_step=1, gamma=0.9)
no = np.array([False])
for t in range(7):
    step = dqn.Step(rewards=np.array([t]), terminations=no, truncations=no, resets=no, finished=[])
    rb.add(obs=np.array([[t]]), actions=np.array([0]), step=step)
batch = rb.sample(rb.draw(num_batches=1, batch_size=100, rng=np.random.default_rng(0))[0])
print("rows:", rb.obs[:, 0, 0], " drawn:", np.unique(batch.obs), " what follows them:", np.unique(batch.next_obs))

# %% [markdown]
# ## The network
#
# A table has a row for each state. Four real numbers have no rows, so a network computes $Q(s, a)$ from them. It has one
# output per action: one pass gives the values of all actions.
#
# ### Exercise 2: a Q-network


# %%
def q_network(obs_size, num_actions, hidden_units):
    """Two hidden layers with ReLU behind each, and one output per action, without: (B, obs_size) to (B, num_actions)."""
    # YOUR CODE: `nn.Sequential`, `nn.Linear`, `nn.ReLU`
    return nn.Sequential(
        nn.Linear(obs_size, hidden_units),
        nn.ReLU(),
        nn.Linear(hidden_units, hidden_units),
        nn.ReLU(),
        nn.Linear(hidden_units, num_actions),
    )
    # END


network = q_network(obs_size=4, num_actions=2, hidden_units=64)
assert network(torch.zeros(32, 4)).shape == (32, 2)
assert sum(weights.numel() for weights in network.parameters()) == (4 + 1) * 64 + (64 + 1) * 64 + (64 + 1) * 2
many = network(torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) * 100)
assert many.min() < 0 < many.max(), "a return may be negative: no ReLU behind the last layer"
print("Right.")

# %% [markdown]
# ## Exploration
#
# An agent that always does what it thinks best never finds out about the rest. With probability epsilon it does a random
# action instead. Each action is equally likely then, the best one among them.
#
# ### Exercise 3: epsilon-greedy


# %%
def epsilon_greedy(greedy_actions, num_actions, epsilon, rng):
    """Each of the actions (n,) replaced by a uniformly random one with probability `epsilon`."""
    # YOUR CODE: `rng.random(n) < epsilon` says where; `np.where(where, these, those)` picks
    explore = rng.random(len(greedy_actions)) < epsilon
    return np.where(explore, rng.integers(num_actions, size=len(greedy_actions)), greedy_actions)
    # END


best = np.ones(100_000, dtype=int)
done = epsilon_greedy(best, num_actions=2, epsilon=0.3, rng=np.random.default_rng(0))
assert abs((done == 0).mean() - 0.15) < 0.01, "half of the random actions are the best one"
assert (epsilon_greedy(best, 2, 0.0, np.random.default_rng(0)) == best).all()
print(f"Right: with epsilon 0.3 {(done == 1).mean():.0%} of the actions are the best one.")

# %% [markdown]
# ## The schedule
#
# At the beginning the agent knows nothing, so it does anything (epsilon 1). Epsilon falls on a line to a small number, and
# stays there.
#
# ### Exercise 4: a line that ends


# %%
def linear_schedule(start, end, duration, step):
    """`start` at step 0, `end` from step `duration` on, a line between."""
    # YOUR CODE
    return end if step >= duration else start + (end - start) * step / duration
    # END


assert np.allclose([linear_schedule(1.0, 0.04, 8_000, step) for step in (0, 4_000, 8_000, 80_000)], [1.0, 0.52, 0.04, 0.04])
assert linear_schedule(1.0, 0.1, 0, 0) == 0.1, "a line without length is at its end"
print("Right.")

# %%
steps = np.arange(20_000)
plt.plot(steps, [dqn.linear_schedule(1.0, 0.04, 8_000, step) for step in steps])
plt.xlabel("environment step")
plt.ylabel("epsilon")
plt.show()

# %% [markdown]
# ## The parts at work
#
# An agent that has not learned yet: a network with random weights, explored around, its transitions in a buffer. What is
# missing is the update.

# %%
env, rng = gym.make("CartPole-v1"), np.random.default_rng(1)
torch.manual_seed(1)
network = dqn.QNetwork(obs_size=4, num_actions=2, hidden_units=(64, 64))
returns = []
for episode in range(20):
    obs, total, ended = env.reset(seed=episode)[0], 0.0, False
    while not ended:
        greedy = dqn.greedy_actions(network, torch.as_tensor(obs[None])).numpy()
        action = dqn.epsilon_greedy(greedy, 2, epsilon=0.1, rng=rng)
        obs, reward, terminated, truncated, _ = env.step(int(action[0]))
        total, ended = total + reward, terminated or truncated
    returns.append(total)
print(f"return of an untrained network: {np.mean(returns):.1f} +- {np.std(returns):.1f}, of 500 at most")

# %% [markdown]
# ## What to take along
#
# - The buffer breaks the likeness of neighbouring steps, and lets each step serve many updates.
# - The network values all actions in one pass, so the maximum over actions is cheap.
# - Epsilon is the price of knowledge: at the end of training it should be small, never 0.
# - The next notebook writes the update, which makes the network better at all this.
