# %% [markdown]
# # 1. Fitted Q-Iteration
#
# You learn to balance a pole from random play alone: with a data set, a regression and a loop. Later notebooks replace the
# regression by a network (DQN) and the random play by a teacher's (QDagger); the targets stay the same.
#
# Each **exercise** has a gap, marked `your code here`. Fill it in and run the cell: it prints *Right* or fails. What
# follows does not depend on your answers, since it uses the project's own functions. Half an hour, of which the computer
# works for about a minute.

# %%
import numpy as np
from IPython.display import Image
from matplotlib import pyplot as plt
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsRegressor
from sklearn.tree import DecisionTreeRegressor

from cleanrl import fqi
from cleanrl_utils import enjoy

STEPS = 20_000  # of random play; 50,000 in the script
ITERATIONS = 25

# %% [markdown]
# ## The data
#
# CartPole shows four numbers: place and speed of the cart, angle and angular speed of the pole. There are two actions:
# push to the left or to the right. Every step earns 1, and the episode ends when the pole falls. We play at random and
# keep each transition $(s, a, r, s', \text{terminated})$.

# %%
data = fqi.collect(fqi.Args(n_steps=STEPS))
falls = data.terminations.sum()
print(f"{STEPS:,} transitions, {falls:,} falls: a fall every {STEPS / falls:.0f} steps")

# %% [markdown]
# ## The targets
#
# $Q(s, a)$ is the return of doing $a$ in $s$ and the best from there on. It obeys an equation in which nothing occurs but
# $Q$ itself and one step:
#
# $$Q(s, a) = r + \gamma \max_{a'} Q(s', a')$$
#
# Where the task ended at $s'$ there is nothing to come, and the right-hand side is $r$ alone. An episode that was only cut
# by a time limit goes on for all we know, so there the second term stays.
#
# ### Exercise 1: the right-hand side


# %%
def td_targets(rewards, terminations, next_values, gamma):
    """The right-hand side for each transition, (n,). `next_values` is max_a' Q(s', a'); all are arrays (n,)."""
    # YOUR CODE: `~terminations` is 1 where the episode went on and 0 where it ended
    return rewards + gamma * next_values * ~terminations
    # END


targets = td_targets(np.array([1.0, 1.0]), np.array([False, True]), np.array([10.0, 10.0]), gamma=0.9)
assert np.allclose(targets, [1 + 0.9 * 10, 1]), targets
print("Right: the second transition ended, so what lies behind it does not count.")

# %% [markdown]
# ## What the regression sees
#
# A regression maps inputs to numbers. Its inputs are the observation and the action. With two actions one number will do,
# 0 or 1. With more, a single number would say that action 2 is twice action 1, so each action gets a column of its own
# ("one-hot").
#
# ### Exercise 2: one-hot actions


# %%
def features(obs, actions, num_actions):
    """Observations (n, D) and actions (n,) as one matrix (n, D + num_actions)."""
    # YOUR CODE: `np.eye(num_actions)` has a row for each action; `np.concatenate(..., axis=1)` joins columns
    return np.concatenate([obs, np.eye(num_actions)[actions]], axis=1)
    # END


assert features(np.array([[0.1, 0.2]]), np.array([2]), num_actions=3).tolist() == [[0.1, 0.2, 0, 0, 1]]
print("Right.")

# %% [markdown]
# ## All actions at once
#
# To choose, the agent needs $Q(s, a)$ for every action: the regression is asked once per action.
#
# ### Exercise 3: Q-values and the greedy action


# %%
def greedy_actions(model, obs, num_actions):
    """The action with the largest Q-value for each observation (n, D): (n,)."""
    # YOUR CODE: for each action call `model.predict(features_of_all_rows_with_that_action)`, then compare
    columns = [model.predict(fqi.features(obs, np.full(len(obs), action), num_actions)) for action in range(num_actions)]
    return np.stack(columns, axis=1).argmax(axis=1)
    # END


class PrefersItsFirstNumber:
    """Q is the first number of the observation for action 1, and 0 for action 0."""

    def predict(self, inputs):
        return inputs[:, 0] * inputs[:, -1]


chosen = greedy_actions(PrefersItsFirstNumber(), np.array([[1.0, 5.0], [-1.0, 5.0]]), num_actions=2)
assert chosen.tolist() == [1, 0], chosen
print("Right.")

# %% [markdown]
# ## The loop
#
# The first regression learns $r$: this is $Q$ for a game of one step. The next one learns $r + \gamma \max Q$ with the $Q$
# of before, which is $Q$ for a game of two steps. And so on. Each regression starts anew.
#
# ### Exercise 4: Fitted Q-Iteration
#
# `fqi.td_targets(model, data, gamma)` gives the targets of all transitions by a fitted model.


# %%
def fitted_q_iteration(data, regressor, iterations, gamma):
    """The model after so many fits on targets, besides the first fit on rewards."""
    inputs = fqi.features(data.obs, data.actions, int(data.num_actions))
    model = clone(regressor).fit(inputs, data.rewards)
    for _ in range(iterations):
        # YOUR CODE: compute the targets, then fit a clone of the regressor on them
        targets = fqi.td_targets(model, data, gamma)
        model = clone(regressor).fit(inputs, targets)
        # END
    return model


# A corridor 0, 1, 2: action 1 goes on, action 0 stays. Leaving it at the end earns 1.
places = np.array([[0.0], [1.0], [2.0], [0.0], [1.0], [2.0]])
corridor = fqi.Dataset(
    obs=places,
    actions=np.array([1, 1, 1, 0, 0, 0]),
    rewards=np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
    next_obs=np.array([[1.0], [2.0], [3.0], [0.0], [1.0], [2.0]]),
    terminations=np.array([False, False, True, False, False, False]),
    num_actions=np.array(2),
    env=np.array("corridor"),
)
model = fitted_q_iteration(corridor, DecisionTreeRegressor(), iterations=5, gamma=0.5)
values = fqi.q_values(model, np.array([[0.0], [1.0], [2.0]]), 2)
assert np.allclose(values[:, 1], [0.25, 0.5, 1.0]), values
print("Right: each step away from the end halves the value.")

# %% [markdown]
# ## Balancing the pole
#
# The project's script does what you wrote. Thirty nearest neighbours are the regression: the value of a state is the mean
# target of the thirty transitions most like it. After every fifth iteration the greedy policy plays ten episodes.

# %%
args = fqi.Args(n_steps=STEPS, n_iterations=ITERATIONS)


def returns_by_iteration(regressor):
    inputs, model, found = fqi.features(data.obs, data.actions, 2), None, {}
    for iteration in range(ITERATIONS + 1):
        targets = data.rewards if model is None else fqi.td_targets(model, data, args.gamma)
        model = clone(regressor).fit(inputs, targets)
        if iteration % 5 == 0:
            episodes = fqi.Episodes(args, fqi.EVALUATION, 10)
            found[iteration] = fqi.evaluate(fqi.player(model, 2), episodes, seed=1, epsilon=0.0).mean
    return found


for name, regressor in (("30 nearest neighbours", KNeighborsRegressor(30)), ("linear", LinearRegression())):
    found = returns_by_iteration(regressor)
    plt.plot(found.keys(), found.values(), marker="o", label=name)
plt.xlabel("iteration")
plt.ylabel("return, mean of 10 episodes")
plt.legend()
plt.show()

# %% [markdown]
# Each iteration looks one step further into the future. The linear regression fails whatever the data: it fits $w \cdot s
# + b\,a + c$, so the difference between the two actions is $b$ in every state, and the best action is always the same one.
#
# ## A film
#
# The script itself, with the flag that saves what is needed to play again. Then `enjoy` films an episode.

# %%
folder = fqi.main(fqi.Args(n_steps=STEPS, n_iterations=ITERATIONS, save_model=True))
enjoy.main(enjoy.Args(run=str(folder), video=f"{folder}/film.gif"))
Image(filename=f"{folder}/film.gif")

# %% [markdown]
# ## What to take along
#
# - The target is one real reward and a guess about the rest. An end leaves the guess out; a cut does not.
# - Nothing here plays while it learns. What the data do not hold, the regression has to guess, and nobody finds out.
# - Fitting anew for each step of look-ahead is slow. The next notebook builds the parts of DQN, which learns while it
#   plays.
