# %% [markdown]
# # 3. DQN
#
# The update, the target network, and the loop around them. Then CartPole with and without a target network, and
# FlappyBird.
#
# Fill in what is marked `your code here`. A cell prints *Right* or fails. Later cells do not depend on your answers. An
# hour, of which the computer works for about five minutes.

# %%
import copy

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Image
from matplotlib import pyplot as plt

from cleanrl import dqn
from cleanrl_utils import enjoy
from cleanrl_utils.flags import parse

torch.set_num_threads(1)  # networks as small as these gain nothing by more
STEPS = 30_000  # of CartPole, for each of two agents
FLAPPY_STEPS = 100_000  # 500,000 in the configuration that plays well

# %% [markdown]
# ## The loss
#
# The targets are those of Fitted Q-Iteration: $r + \gamma \max_{a'} Q(s', a')$. A batch brings them as `batch.rewards` and
# `batch.discounts`, where a discount is $\gamma$, and 0 after a true end. The loss is the mean squared difference between
# $Q(s, a)$, for the actions that were done, and the target. The target is held still: no gradient flows through it.
#
# ### Exercise 1: the loss


# %%
def td_loss(q_network, target_network, batch):
    """Mean squared temporal-difference error of a batch: a tensor ()."""
    # YOUR CODE: `with torch.no_grad()` around the target; `values.gather(1, actions[:, None])` takes one value per row
    with torch.no_grad():
        next_values = target_network(batch.next_obs).max(dim=1).values
        target = batch.rewards + batch.discounts * next_values
    q_pred = q_network(batch.obs).gather(1, batch.actions[:, None]).squeeze(1)
    return F.mse_loss(q_pred, target)
    # END


class Doubles(torch.nn.Module):
    """Q-values are twice the observation, (B, 2)."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, obs):
        return self.factor * obs


batch = dqn.Batch(
    obs=torch.tensor([[1.0, 0.0], [0.0, 3.0]]),
    actions=torch.tensor([0, 1]),
    rewards=torch.tensor([1.0, 1.0]),
    next_obs=torch.tensor([[0.0, 4.0], [5.0, 5.0]]),
    discounts=torch.tensor([0.5, 0.0]),  # the second one ended
)
online, frozen = Doubles(), Doubles()
loss = td_loss(online, frozen, batch)
# By hand: targets 1 + 0.5 * 8 = 5 and 1; predictions 2 and 6; squared errors 9 and 25.
assert torch.isclose(loss, torch.tensor(17.0)), loss
loss.backward()
assert frozen.factor.grad is None, "the target is held still"
assert torch.isclose(online.factor.grad, torch.tensor(12.0)), online.factor.grad  # mean of 2 * -3 * 1 and 2 * 5 * 3
print("Right.")

# %% [markdown]
# ## The update
#
# ### Exercise 2: one step of the optimizer


# %%
def update(q_network, target_network, optimizer, batch):
    """Move the weights one step down the gradient of the loss; returns the loss as a number."""
    # YOUR CODE: `dqn.td_loss(q_network, target_network, batch)` gives (loss, mean Q-value). Old gradients have to go first
    loss, _ = dqn.td_loss(q_network, target_network, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
    # END


online = Doubles()
optimizer = torch.optim.SGD(online.parameters(), lr=0.01)
assert np.isclose(update(online, frozen, optimizer, batch), 17.0)
assert torch.isclose(online.factor, torch.tensor(2.0 - 0.01 * 12.0)), online.factor
update(online, frozen, optimizer, batch)  # by hand: 0.5 * (2 * (1.88 - 5) * 1 + 2 * (5.64 - 1) * 3) = 10.8
assert torch.isclose(online.factor, torch.tensor(1.88 - 0.01 * 10.8)), "gradients of the step before were still there"
print("Right.")

# %% [markdown]
# ## The target network
#
# With the online network in the target, each step moves the target too: a regression that chases itself. So the target is
# computed by a copy, which holds still and is renewed now and then.
#
# ### Exercise 3: when to renew, and how


# %%
def sync(q_network, target_network, step, period):
    """Where `step` is a multiple of `period`, give the target network the weights of the online network."""
    # YOUR CODE: `state_dict()` and `load_state_dict(...)`
    if step % period == 0:
        target_network.load_state_dict(q_network.state_dict())
    # END


online, target = dqn.QNetwork(4, 2, (8,)), dqn.QNetwork(4, 2, (8,))
obs = torch.randn(16, 4)
before = target(obs).detach()
sync(online, target, step=15, period=10)
assert torch.equal(target(obs), before), "not yet"
sync(online, target, step=20, period=10)
assert torch.equal(target(obs), online(obs)), "now"
with torch.no_grad():
    next(online.parameters()).add_(1.0)
assert not torch.equal(target(obs), online(obs)), "a copy, not the same tensors"
print("Right.")

# %% [markdown]
# ## The loop
#
# Act, step, store, learn. This is `train` of `cleanrl/dqn.py` with everything left out that is not the algorithm. Read it
# once: every line is a part that you know.


# %%
def train(total_steps, target_network_frequency, seed=1):
    """Returns of the training episodes, and the mean Q-values of the batches, by step."""
    args = dqn.Args(env_id="CartPole-v1", num_envs=1)
    envs, rng = dqn.Episodes(args, dqn.TRAINING, 1), np.random.default_rng(seed)
    rb = dqn.ReplayBuffer(100_000, num_envs=1, obs_size=4, n_step=1, gamma=0.99)
    torch.manual_seed(seed)
    q_network = dqn.QNetwork(4, 2, (64, 64))
    target_network = copy.deepcopy(q_network)
    optimizer = torch.optim.Adam(q_network.parameters(), lr=1e-3)
    returns, q_values = [], []
    for step in range(total_steps):
        # Act.
        obs = envs.obs
        epsilon = dqn.linear_schedule(1.0, 0.04, 8_000, step)
        greedy = dqn.greedy_actions(q_network, torch.as_tensor(obs)).numpy()
        actions = envs.send(dqn.epsilon_greedy(greedy, 2, epsilon, rng))

        # Step and store.
        result = envs.recv()
        rb.add(obs, actions, result)
        returns += [(step, episodic_return) for episodic_return, _ in result.finished]

        # Learn.
        if step >= 1_000 and step % 2 == 0:
            batch = rb.sample(rb.draw(1, 64, rng)[0])
            batch = dqn.Batch(*(torch.as_tensor(values) for values in batch))
            _, q_value = dqn.update(q_network, target_network, optimizer, batch, dqn.td_loss)
            q_values.append((step, q_value.item()))
        if step % target_network_frequency == 0:
            target_network.load_state_dict(q_network.state_dict())
    envs.close()
    return returns, q_values


# %% [markdown]
# Every step of CartPole earns 1, so with $\gamma = 0.99$ nobody can earn more than $1 / (1 - 0.99) = 100$, discounted. A
# mean Q-value above that line is wrong.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for name, frequency in (("copied every 250 steps", 250), ("no target network (copied at every step)", 1)):
    returns, q_values = train(STEPS, frequency)
    steps, values = np.array(returns).T
    smooth = np.convolve(values, np.ones(10) / 10, mode="valid")
    left.plot(steps[len(steps) - len(smooth) :], smooth, label=name)
    right.plot(*np.array(q_values).T, label=name, linewidth=0.5)
left.set(xlabel="step", ylabel="return, mean of 10 training episodes")
right.set(xlabel="step", ylabel="mean Q-value of a batch", yscale="log")
right.axhline(100, color="black", linestyle="dashed", label="the most there is to earn")
left.legend()
right.legend()
plt.show()

# %% [markdown]
# One seed each, so read it with care: the returns of single runs go up and down for many reasons. What repeats from
# seed to seed is the picture on the right. Without a target network the values run away from what can be earned; with a slow
# copy they stay near it.
# `docs/tutorial/from-q-learning-to-dqn.md` has three seeds, and the cure that is left: double Q-learning.
#
# ## FlappyBird
#
# The script plays other environments too. Here FlappyBird in twelve numbers (places, speed and tilt of bird and pipes), by
# a configuration file of the project. Half a million steps pass about 80 pipes; this is a fifth of them.

# %%
flags = ["--config", "benchmark/configs/dqn_flappybird.yaml", "--total-timesteps", str(FLAPPY_STEPS)]
folder = dqn.main(parse(dqn.Args, [*flags, "--eval-frequency", str(FLAPPY_STEPS // 4)]))
enjoy.main(enjoy.Args(run=str(folder), weights="best", eval_episodes=5, video=f"{folder}/film.gif"))
Image(filename=f"{folder}/film.gif")

# %% [markdown]
# ## What to take along
#
# - The update is the regression of the first notebook, one gradient step at a time.
# - The target has to hold still while one fits to it.
# - Judge values as well as returns: an agent can play well and still believe nonsense.
