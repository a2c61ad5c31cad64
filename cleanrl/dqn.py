# /// script
# requires-python = ">=3.11"
# dependencies = ["qdagger"]
# tool.uv.sources.qdagger = { path = "..", editable = true }
# ///
"""DQN for vector observations in PyTorch (Mnih et al. 2015, https://doi.org/10.1038/nature14236).

Twin in JAX: dqn_jax.py. Documentation: docs/rl-algorithms/dqn.md; tutorial: docs/tutorial/from-q-learning-to-dqn.md.
Start reading at `main`: act, step, store, learn.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cleanrl_utils import flags
from cleanrl_utils.devices.common import free_memory, read_metrics, require_memory
from cleanrl_utils.devices.in_torch import be_deterministic, choose_devices, choose_threads, described
from cleanrl_utils.evals.gym import Episodes, Step, film_episode, protocol, require_vector_env, sizes
from cleanrl_utils.evals.play import Evaluation, evaluate, require_video
from cleanrl_utils.huggingface import check_upload, push
from cleanrl_utils.models.files import load_into, save_weights
from cleanrl_utils.models.source import explained
from cleanrl_utils.ranges import FileName, NotNegative, Positive, PositiveFloat, PositiveSizes, Probability
from cleanrl_utils.run.args import TrainingArgs
from cleanrl_utils.run.checkpoint import Checkpoints
from cleanrl_utils.run.run import Run
from cleanrl_utils.seeds import EVALUATION, TRAINING

LOG_FREQUENCY = 500  # environment steps between readings of losses and rates
METRICS = ("losses/td_loss", "losses/q_values")  # metrics that an update returns


@dataclass
class Args(TrainingArgs):
    """Flags of this script; all scripts share others, such as `--track` and `--resume`: cleanrl_utils/run/args.py."""

    exp_name: FileName = "dqn"
    """name of this experiment, in the run folder and in the model file"""
    torch_deterministic: bool = True
    """ask torch for deterministic kernels"""
    cuda: bool = True
    """use CUDA if there is a GPU; `--no-cuda` means `--device cpu`, which is faster for small networks"""
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None
    """device of the network; overrides `--cuda`; auto: CUDA if there is a GPU, else the CPU"""
    checkpoint_frequency: NotNegative | None = 0
    """environment steps between checkpoints; 0 turns them off, None writes one every 10 minutes"""

    env_id: str = "CartPole-v1"
    """environment with vector observations (others are flattened) and a finite set of actions, such as CartPole-v1 or
    package:Name-v0"""
    env_kwargs: flags.Json = field(default_factory=dict)
    """keyword arguments of the environment, such as '{"use_lidar": false}'"""
    num_envs: Positive = 1
    """environments stepped side by side; their number does not change the ratio of updates to steps"""
    eval_frequency: NotNegative = 0
    """environment steps between evaluations; 0: at the end only"""
    eval_episodes: Positive = 10
    """whole episodes per evaluation"""
    eval_epsilon: Probability = 0.0
    """exploration rate in evaluation"""
    eval_max_steps: Positive = 27_000
    """steps after which an evaluation episode is cut, unless the environment cuts it earlier"""

    total_timesteps: Positive = 500_000
    """environment steps over all environments"""
    learning_rate: PositiveFloat = 2.5e-4
    """learning rate of Adam"""
    initial_model: str | None = None
    """model file whose weights the run starts from; default: random weights"""
    buffer_size: Positive = 10_000
    """transitions in the replay buffer"""
    gamma: Probability = 0.99
    """discount per step"""
    tau: Probability = 1.0
    """weight of the online network in each target sync (1: hard sync)"""
    target_network_frequency: Positive = 500
    """environment steps between target syncs; 1 with one environment means no target network"""
    batch_size: Positive = 128
    """transitions per update"""
    start_e: Probability = 1.0
    """exploration rate at the start"""
    end_e: Probability = 0.05
    """exploration rate at the end"""
    exploration_fraction: Probability = 0.5
    """share of total-timesteps over which epsilon falls from start-e to end-e"""
    learning_starts: NotNegative = 10_000
    """environment steps before the first update"""
    train_frequency: Positive = 10
    """environment steps per update"""
    n_step: Positive = 1
    """rewards summed before bootstrapping"""
    double_q: bool = False
    """the online network chooses the next action and the target network evaluates it (van Hasselt et al. 2016)"""
    huber: bool = False
    """Huber loss (delta 1) instead of the squared error; its gradient is the paper's clipped error"""
    hidden_units: PositiveSizes = (120, 84)
    """width of each hidden layer"""
    activation: Literal["relu", "tanh", "elu", "leaky_relu"] = "relu"
    """activation function of the hidden layers"""


def check(args: Args) -> None:
    """Raise `BadInput` for a flag out of range."""
    flags.check_ranges(args)
    require_vector_env(args)
    if args.capture_video:
        require_video(atari=False)
    check_upload(args)


# --- Networks ---


ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU}


class QNetwork(nn.Module):
    """Multilayer perceptron: (B, D) float32 to (B, num_actions)."""

    def __init__(self, obs_size: int, num_actions: int, hidden_units: tuple[int, ...], activation: str = "relu") -> None:
        super().__init__()
        self.activation = activation
        widths = obs_size, *hidden_units
        hidden = (layer for units in itertools.pairwise(widths) for layer in (nn.Linear(*units), ACTIVATIONS[activation]()))
        self.network = nn.Sequential(*hidden, nn.Linear(widths[-1], num_actions))

    def forward(self, obs: Tensor) -> Tensor:
        """Return the Q-values of all actions."""
        return self.network(obs)


# --- Replay buffer ---


class Batch(NamedTuple):
    """Transitions: observations (B, D), the rest (B,). Sampled in NumPy, then copied to the device."""

    obs: Tensor
    actions: Tensor
    rewards: Tensor  # sum of the discounted rewards of the steps really taken, up to n
    next_obs: Tensor
    discounts: Tensor  # gamma to the power of those steps, 0 after a termination


class ReplayBuffer:
    """Transitions of N environments, kept as time-major rings in host memory.

    Row t holds the observation, the action and its result. Because the step after the end of an episode resets it, the
    observation after row t is always in row t+1, even after a truncation, and each observation is stored only once.
    """

    # Attributes that a checkpoint saves.
    KEPT = ("obs", "actions", "rewards", "terminations", "truncations", "valid", "head", "num_stored")

    def __init__(self, size: int, num_envs: int, obs_size: int, n_step: int, gamma: float) -> None:
        self.num_rows, self.num_envs, self.n_step = size // num_envs, num_envs, n_step
        if self.num_rows < self.min_rows(n_step):
            raise ValueError(f"{size} transitions are too few for {num_envs} environments")
        shape = (self.num_rows, num_envs)
        self.obs = np.zeros((*shape, obs_size), dtype=np.float32)
        self.actions = np.zeros(shape, dtype=np.int64)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.terminations = np.zeros(shape, dtype=bool)
        self.truncations = np.zeros(shape, dtype=bool)
        self.valid = np.zeros(shape, dtype=bool)  # False: a reset, no transition starts here

        self.gammas = (gamma ** np.arange(n_step + 1)).astype(np.float32)
        self.head = self.num_stored = 0

    @staticmethod
    def min_rows(n_step: int) -> int:
        """Return the fewest rows with which a full ring has a transition to draw.

        Three rows, of which one may be a reset and the next may come from `cut`, and n more after them.
        """
        return n_step + 3

    @staticmethod
    def transition_bytes(obs_size: int) -> int:
        """Return the bytes that a transition takes: the numbers of its observation, then action, reward and flags."""
        return 4 * obs_size + 15

    def add(self, obs: np.ndarray, actions: np.ndarray, step: Step) -> None:
        """Store one vector step: observations, actions and results; a reset is stored as an invalid row."""
        self.obs[self.head] = obs
        self.actions[self.head] = actions
        self.rewards[self.head] = step.rewards
        self.terminations[self.head] = step.terminations
        self.truncations[self.head] = step.truncations
        self.valid[self.head] = ~step.resets
        self.head = (self.head + 1) % self.num_rows
        self.num_stored = min(self.num_stored + 1, self.num_rows)

    def cut(self, obs: np.ndarray) -> None:
        """Truncate all episodes at the last stored step, if there is one: a resumed run cannot continue them.

        That step bootstraps from `obs`, the last observations. They are stored in an extra row, which is not a step.
        """
        if self.num_stored == 0:
            return
        self.truncations[self.head - 1] |= self.valid[self.head - 1] & ~self.terminations[self.head - 1]
        blank, resets = np.zeros(self.num_envs, dtype=bool), np.ones(self.num_envs, dtype=bool)
        self.add(obs, blank, Step(blank, blank, blank, resets, []))

    def draw(self, num_batches: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw indices (num_batches, batch_size) of transitions uniformly; (0, batch_size) if nothing can be drawn.

        A transition can be drawn if its row is valid and has n rows after it.
        """
        oldest = self.head if self.num_stored == self.num_rows else 0
        drawable = self.num_stored - self.n_step  # rows, from the oldest on
        if drawable <= 0:
            return np.zeros((0, batch_size), dtype=np.int64)
        rows, envs = np.empty((2, num_batches * batch_size), dtype=np.int64)
        todo = np.arange(rows.size)
        while todo.size:
            rows[todo] = (oldest + rng.integers(drawable, size=todo.size)) % self.num_rows
            envs[todo] = rng.integers(self.num_envs, size=todo.size)
            todo = todo[~self.valid[rows[todo], envs[todo]]]
        return (rows * self.num_envs + envs).reshape(num_batches, batch_size)

    def sample(self, index: np.ndarray) -> Batch:
        """Return the transitions at `index` (B,), in NumPy."""
        row, env = np.divmod(index, self.num_envs)
        rows, envs = (row[:, None] + np.arange(self.n_step + 1)) % self.num_rows, env[:, None]  # (B, n + 1): rows t .. t+n
        terminated = self.terminations[rows[:, :-1], envs]
        going_on = (~(terminated | self.truncations[rows[:, :-1], envs])).cumprod(1, dtype=bool)
        taken = np.concatenate([np.ones_like(going_on[:, :1]), going_on[:, :-1]], 1)  # (B, n): True up to the first end
        num_taken = taken.sum(1)  # 1 .. n
        return Batch(
            obs=self.obs[row, env],
            actions=self.actions[row, env],
            rewards=(taken * self.gammas[:-1] * self.rewards[rows[:, :-1], envs]).sum(1),
            next_obs=self.obs[(row + num_taken) % self.num_rows, env],
            discounts=self.gammas[num_taken] * ~(terminated & taken).any(1),
        )


# --- The maths ---


def linear_schedule(start: float, end: float, duration: float, step: int) -> float:
    """Interpolate linearly from `start` at step 0 to `end` at step `duration`; stay at `end` after that."""
    return end if step >= duration else start + (end - start) * step / duration


def crossed(step: int, num_steps: int, period: int) -> int:
    """Count the multiples of `period` in (step, step + num_steps]: how often something is due. Period 0 means never."""
    return (step + num_steps) // period - step // period if period else 0


def td_target(rewards: Tensor, discounts: Tensor, next_values: Tensor) -> Tensor:
    """Regression target r + discount * V(s'), all (B,); the discount is 0 after a termination."""
    return rewards + discounts * next_values


def td_loss(
    q_network: nn.Module, target_network: nn.Module, batch: Batch, double_q: bool = False, huber: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the mean squared (or Huber) temporal-difference error of a batch, then the mean Q-value of its actions."""
    with torch.no_grad():
        next_q_values = target_network(batch.next_obs)
        chooser = q_network(batch.next_obs) if double_q else next_q_values
        next_values = next_q_values.gather(1, chooser.argmax(1, keepdim=True)).squeeze(1)
        target = td_target(batch.rewards, batch.discounts, next_values)
    q_pred = q_network(batch.obs).gather(1, batch.actions[:, None]).squeeze(1)
    # Differs from the paper: the squared error by default, where theirs is clipped (`--huber`).
    loss = F.smooth_l1_loss(q_pred, target) if huber else F.mse_loss(q_pred, target)
    return loss, q_pred.detach().mean()


LossFn = Callable[[nn.Module, nn.Module, Batch], tuple[Tensor, Tensor]]
"""A loss function of a network, its target network and a batch, such as `td_loss`."""


def epsilon_greedy(greedy_actions: np.ndarray, num_actions: int, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Replace each action (N,) by a uniformly random one with probability `epsilon`."""
    explore = rng.random(len(greedy_actions)) < epsilon
    return np.where(explore, rng.integers(num_actions, size=len(greedy_actions)), greedy_actions)


# --- Act, update, sync ---


@torch.no_grad()
def greedy_actions(q_network: nn.Module, obs: Tensor) -> Tensor:
    """argmax_a Q(obs, a), (N,)."""
    return q_network(obs).argmax(1)


def update(
    q_network: nn.Module, target_network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, loss_fn: LossFn
) -> Tensor:
    """Take one optimizer step on the loss of a batch; returns the loss and the mean Q-value (2,), on the device."""
    loss, q_value = loss_fn(q_network, target_network, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return torch.stack([loss.detach(), q_value])


@torch.no_grad()
def sync(q_network: nn.Module, target_network: nn.Module, tau: float) -> None:
    """Move the target network towards the online network by the fraction `tau`."""
    torch._foreach_lerp_(list(target_network.parameters()), list(q_network.parameters()), tau)


# --- The run ---


class Learner:
    """The network and its optimizer, and the functions that act and learn."""

    KEPT = ("q_network", "target_network", "optimizer")  # attributes that a checkpoint saves

    def __init__(self, args: Args, device: torch.device) -> None:
        self.device = device
        self.loss_fn = functools.partial(td_loss, double_q=args.double_q, huber=args.huber)
        obs_size, num_actions = sizes(args)
        self.q_network = QNetwork(obs_size, num_actions, args.hidden_units, args.activation).to(device)
        self.target_network = QNetwork(obs_size, num_actions, args.hidden_units, args.activation).to(device)
        if args.initial_model is not None and args.resume is None:  # a checkpoint has its own weights
            with explained("--initial-model", args.initial_model):
                load_into(self.q_network, Path(args.initial_model))
        self.target_network.load_state_dict(self.q_network.state_dict())
        # Differs from the paper: Adam in place of RMSProp.
        self.optimizer = torch.optim.Adam(self.q_network.parameters(), lr=args.learning_rate, fused=device.type != "mps")
        self.finite = torch.ones(1, device=device)  # 1 while every loss was finite

    def policy(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return the greedy policy of the current network."""
        return player(self.q_network, self.device)

    def update(self, batch: Batch) -> Tensor:
        """Learn from a NumPy batch; returns the metrics (3,) on the device, the last 1 as long as every loss was finite."""
        batch = Batch(*(torch.from_numpy(values).to(self.device) for values in batch))
        metrics = update(self.q_network, self.target_network, self.optimizer, batch, self.loss_fn)
        self.finite *= torch.isfinite(metrics[0])
        return torch.cat([metrics, self.finite])

    def sync(self, tau: float, times: int = 1) -> None:
        """Move the target network towards the online network by the fraction `tau`, `times` times."""
        sync(self.q_network, self.target_network, 1 - (1 - tau) ** times)


@dataclass
class State:
    """The state of the run; its fields are exactly what a checkpoint holds."""

    learner: Learner
    rb: ReplayBuffer
    envs: Episodes
    act_rng: np.random.Generator
    sample_rng: np.random.Generator
    step: int = 0  # environment steps done, over all environments
    metrics: Tensor | None = None  # of the latest update
    best: Evaluation | None = None


def train(state: State, args: Args, run: Run) -> None:
    """Act, step, store, learn, record."""
    learner, envs, rb = state.learner, state.envs, state.rb
    exploration_steps = args.exploration_fraction * args.schedule_length
    run.begin("training", args.total_timesteps, state)
    while state.step < args.total_timesteps:
        if state.step and crossed(state.step - args.num_envs, args.num_envs, args.eval_frequency):
            evaluate_agent(state, args, run)

        # Act.
        obs = envs.obs
        epsilon = linear_schedule(args.start_e, args.end_e, exploration_steps, state.step)
        actions = envs.send(epsilon_greedy(learner.policy()(obs), envs.num_actions, epsilon, state.act_rng))

        # Step and store. Where the step before ended an episode, this one is a reset.
        step = envs.recv()
        rb.add(obs, actions, step)

        # Learn.
        if state.step >= args.learning_starts:
            num_updates = crossed(state.step, args.num_envs, args.train_frequency)
            for index in rb.draw(num_updates, args.batch_size, state.sample_rng):
                state.metrics = learner.update(rb.sample(index))
            if syncs := crossed(state.step, args.num_envs, args.target_network_frequency):
                learner.sync(args.tau, syncs)

        # Record.
        state.step += args.num_envs
        run.episodes(step.finished, state.step)
        if crossed(state.step - args.num_envs, args.num_envs, LOG_FREQUENCY):
            run.advance(state.step)
            run.scalars({"charts/epsilon": epsilon, "charts/SPS": run.rate()}, state.step)
            run.scalars(read_metrics(state.metrics, METRICS), state.step)
        if run.due(state.step):
            read_metrics(state.metrics, METRICS)  # raises an error if the run has diverged, so that it is not saved
            run.save(state)
    run.advance(state.step)
    read_metrics(state.metrics, METRICS)  # checks the last losses too
    run.save(state)


def evaluate_agent(state: State, args: Args, run: Run) -> Evaluation:
    """Play whole episodes with the current network, log their mean return, and save the weights of the best evaluation."""
    policy, episodes = state.learner.policy(), Episodes(args, EVALUATION, args.eval_episodes)
    with run.evaluating(state):
        result = evaluate(policy, episodes, args.seed, args.eval_epsilon, args.eval_max_steps)
        if args.capture_video:
            film_episode(policy, args, run.folder.name, f"step-{state.step}")
    run.scalars({"eval/episodic_return": result.mean}, state.step)
    if state.best is None or result.mean > state.best.mean:
        if args.save_model and args.eval_frequency:
            save_weights(state.learner.q_network.state_dict(), run.model_path.with_stem(f"{args.exp_name}-best"))
        state.best = result
    return result


def player(q_network: nn.Module, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """Return the greedy policy for training and evaluation: NumPy observations (N, D) to NumPy actions (N,)."""
    return lambda obs: greedy_actions(q_network, torch.as_tensor(obs, device=device)).cpu().numpy()


def load_player(args: Args, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Load the greedy policy of a model file, for `cleanrl_utils.enjoy` to play. Raises `ModelError`."""
    obs_size, num_actions = sizes(args)
    q_network = QNetwork(obs_size, num_actions, args.hidden_units, args.activation)
    load_into(q_network, path)
    return player(q_network, torch.device("cpu"))


def main(args: Args) -> Path:
    """Train, evaluate and save; returns the run folder. Raises `BadInput` before anything is written."""
    check(args)
    device, _ = choose_devices(args)
    obs_size, _ = sizes(args)
    each = ReplayBuffer.transition_bytes(obs_size)
    require_memory("--buffer-size", args.buffer_size, free_memory(), each)
    run = Run(args, Checkpoints(args))
    args.buffer_size = flags.at_least(args, "buffer_size", ReplayBuffer.min_rows(args.n_step) * args.num_envs)

    torch.manual_seed(args.seed)
    be_deterministic(args.torch_deterministic, device)
    learner = Learner(args, device)
    threads = choose_threads(args, learner.q_network, (obs_size,))
    state = State(
        learner=learner,
        rb=ReplayBuffer(args.buffer_size, args.num_envs, obs_size, args.n_step, args.gamma),
        envs=Episodes(args, TRAINING, args.num_envs),
        act_rng=np.random.default_rng([args.seed, 1]),
        sample_rng=np.random.default_rng([args.seed, 2]),
    )
    about = described(device) | {"threads": threads}
    with run.started(protocol(args) | about, state):
        if state.envs.cut_at is not None:
            run.withdraw(f"{args.env_id} does not reproduce what the checkpoint saw, so its running episodes are cut")
            state.rb.cut(state.envs.cut_at)
            state.envs.begin_anew()
        train(state, args, run)
        if args.save_model:
            save_weights(learner.q_network.state_dict(), run.model_path)
        state.envs.close()
        scores = {"agent": evaluate_agent(state, args, run)}
        if args.eval_frequency:
            scores["best evaluation"] = state.best
        run.finish({"steps": state.step}, scores)
    if args.upload_model:
        push(run.folder, args.hf_entity)
    return run.folder


if __name__ == "__main__":
    flags.run(main, Args)
