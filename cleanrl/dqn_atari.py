# /// script
# requires-python = ">=3.11"
# dependencies = ["qdagger[atari]"]
# tool.uv.sources.qdagger = { path = "..", editable = true }
# ///
"""DQN on Atari (Mnih et al. 2015, https://doi.org/10.1038/nature14236).

Twin in JAX: dqn_atari_jax.py. Documentation: docs/rl-algorithms/dqn.md.
Start reading at `main`: act, send, learn while the environments step, receive, store.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cleanrl_utils import flags
from cleanrl_utils.devices import in_torch
from cleanrl_utils.devices.common import keep_freed_memory, read_metrics
from cleanrl_utils.errors import BadInput
from cleanrl_utils.evals.atari import MAX_FRAMES, SeededGames, count_actions, film_game, game_settings, protocol
from cleanrl_utils.evals.play import Evaluation, evaluate, require_video
from cleanrl_utils.huggingface import check_upload, push
from cleanrl_utils.models.files import load_into, save_weights
from cleanrl_utils.models.source import explained
from cleanrl_utils.ranges import FileName, NotNegative, NotNegativeFloat, Positive, PositiveFloat, Probability
from cleanrl_utils.run.args import TrainingArgs
from cleanrl_utils.run.checkpoint import Checkpoints
from cleanrl_utils.run.run import Run
from cleanrl_utils.seeds import EVALUATION, TRAINING

LOG_FREQUENCY = 1000  # environment steps between readings of losses and rates; each reading waits for the device
METRICS = ("losses/td_loss", "losses/q_values")  # metrics that an update returns


@dataclass
class Args(TrainingArgs):
    """Flags of this script; all scripts share others, such as `--track` and `--resume`: cleanrl_utils/run/args.py."""

    exp_name: FileName = "dqn_atari"
    """name of this experiment, in the run folder and in the model file"""
    torch_deterministic: bool = True
    """ask torch for deterministic kernels"""
    cuda: bool = True
    """use CUDA if there is a GPU; `--no-cuda` means `--device cpu`"""
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None
    """device of the networks; overrides `--cuda`; auto: CUDA if there is a GPU, else the CPU"""
    buffer_device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """device of the replay buffer; auto: the device of the networks"""
    compile: bool = True
    """compile update and act with torch.compile if a compiler is available"""
    cuda_graph: bool = False
    """replay each update as one CUDA graph (CUDA only)"""
    bf16: bool = False
    """use bfloat16 in all layers except the last, only in updates; needs hardware that supports it"""

    env_id: str = "BreakoutNoFrameskip-v4"
    """Atari game, such as BreakoutNoFrameskip-v4 or ALE/Breakout-v5"""
    num_envs: Positive = 8
    """games played side by side; their number does not change the ratio of updates to steps"""
    sticky_actions: Probability | None = None
    """probability that the last action is repeated; the default depends on the id: 0.25 for v5, 0 for v4"""
    life_loss: bool = True
    """a lost life ends the return (the game goes on)"""
    fire: bool = True
    """press FIRE for the agent after a reset and after a lost life, in games that wait for it"""
    noop_max: NotNegative = 30
    """a reset plays a random number of no-ops below this, where FIRE counts as one; 0: none"""
    full_action_space: bool = False
    """use all 18 actions instead of only those that have an effect in this game"""
    eval_frequency: NotNegative = 0
    """environment steps between evaluations; 0: at the end only"""
    eval_episodes: Positive = 10
    """whole games per evaluation"""
    eval_epsilon: Probability = 0.01
    """exploration rate in evaluation (paper: 0.05)"""
    eval_max_frames: Positive = MAX_FRAMES
    """raw frames after which an evaluation game is cut (60 per second)"""

    total_timesteps: Positive = 10_000_000
    """environment steps over all environments; frames are 4 times that (paper: 50M)"""
    learning_rate: PositiveFloat = 1e-4
    """learning rate of Adam (paper: RMSProp, 2.5e-4)"""
    learning_rate_end: NotNegativeFloat | None = None
    """final learning rate, reached linearly from learning-rate over total-timesteps; default: no decay"""
    one_cycle: bool = False
    """instead of a linear decay, raise the rate from half of learning-rate to all of it, then lower it to nearly 0
    (`one_cycle`)"""
    adam_eps: PositiveFloat = 1e-8
    """epsilon of Adam"""
    weight_decay: NotNegativeFloat = 0.0
    """each update shrinks the weights by this share of learning-rate; above 0, the optimizer is AdamW"""
    initial_model: str | None = None
    """model file whose weights the run starts from; default: random weights"""
    buffer_size: Positive = 1_000_000
    """transitions in the replay buffer, 7.1 kB each"""
    save_replay: bool = False
    """write the final replay buffer to replay.zip in the run folder"""
    gamma: Probability = 0.99
    """discount per step"""
    tau: Probability = 1.0
    """weight of the online network in each target sync (1: hard sync)"""
    target_network_frequency: Positive = 1000
    """environment steps between target syncs (paper: 40,000)"""
    batch_size: Positive = 32
    """transitions per update"""
    start_e: Probability = 1.0
    """exploration rate at the start"""
    end_e: Probability = 0.01
    """exploration rate at the end (paper: 0.1)"""
    exploration_fraction: Probability = 0.10
    """share of total-timesteps over which epsilon falls from start-e to end-e"""
    learning_starts: NotNegative = 80_000
    """environment steps before the first update (paper: 50,000)"""
    train_frequency: Positive = 4
    """environment steps per update"""
    n_step: Positive = 1
    """rewards summed before bootstrapping"""
    double_q: bool = False
    """the online network chooses the next action and the target network evaluates it (van Hasselt et al. 2016)"""
    huber: bool = False
    """Huber loss (delta 1) instead of the squared error; its gradient is the paper's clipped error"""


def check(args: Args) -> None:
    """Raise `BadInput` for a flag out of range."""
    flags.check_ranges(args)
    if args.one_cycle and args.learning_rate_end is not None:
        raise BadInput("--one-cycle", "on", "sets the final learning rate itself: leave out --learning-rate-end")
    game_settings(args.env_id)
    if args.capture_video:
        require_video()
    check_upload(args)


# --- Environments ---


class Step(NamedTuple):
    """The result of one step; arrays are (N,)."""

    rewards: np.ndarray  # raw, as the game counts them
    terminations: np.ndarray  # the return ends here: the game is over, or a life was lost
    truncations: np.ndarray  # the game was cut at its frame limit
    resets: np.ndarray  # the step ignored its action and began a new game, so no transition starts there
    finished: list[tuple[float, int]]  # of the game before each reset: raw undiscounted return, length in steps


class Games:
    """N games under the classic Atari protocol, which step in background threads between `send` and `recv`.

    A lost life sets `terminations` (except in evaluation), but the game goes on. The step after the end of a game resets it
    (NEXT_STEP autoreset). After a reset or a lost life, FIRE replaces the next action in games that wait for FIRE.
    """

    KEPT = ("envs", "fire")  # attributes that a checkpoint saves

    def __init__(self, args: Args, purpose: int, num_games: int) -> None:
        self.num_games, evaluation = num_games, purpose == EVALUATION
        self.envs = SeededGames(
            args,
            purpose,
            num_games,
            max_num_frames_per_episode=args.eval_max_frames if evaluation else MAX_FRAMES,
            # Differs from the paper: frames from before a lost life stay in the stack, since the game goes on.
            life_loss_info=args.life_loss and not evaluation,  # `episodic_life` would reset at each lost life
        )
        self.num_actions, self.fire = self.envs.num_actions, np.full(num_games, self.envs.waits_for_fire)

    @property
    def obs(self) -> np.ndarray:
        """The current observations: (N, 4, 84, 84) uint8, oldest frame first."""
        return self.envs.obs

    def send(self, actions: np.ndarray) -> np.ndarray:
        """Send actions (N,) int64; returns the actions that are really played, including FIRE."""
        actions = np.where(self.fire, 1, actions)
        self.envs.send(actions)
        return actions

    def recv(self) -> Step:
        """Wait for the step that was sent and return its result; `obs` then holds the observations after it."""
        lives = self.envs.lives
        step = Step(*self.envs.recv())
        # A reset presses FIRE too, but only for one raw frame, which a sticky action may replace.
        self.fire = ((self.envs.lives < lives) | step.resets) & self.envs.waits_for_fire
        return step

    def close(self) -> None:
        """End the games and their threads."""
        self.envs.close()


# --- Networks ---


class NatureCNN(nn.Module):
    """Q-network of Mnih et al. 2015: (B, 4, 84, 84) uint8 to (B, num_actions) float32."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3136, 512),
            nn.ReLU(),
            nn.Linear(512, num_actions),
        )

    def forward(self, obs: Tensor, bf16: bool = False) -> Tensor:
        """Return the Q-values of all actions; `bf16` computes all layers except the last in bfloat16."""
        x = (obs.float() / 255.0).contiguous(memory_format=torch.channels_last)
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=bf16):
            x = self.network[:-1](x)
        return self.network[-1](x.float())  # float32: bfloat16's spacing near 1 is as large as Pong's action gaps


# --- Replay buffer ---


class Batch(NamedTuple):
    """Transitions: observations (B, 4, 84, 84) uint8, the rest (B,)."""

    obs: Tensor
    actions: Tensor
    rewards: Tensor  # sum of the discounted rewards of the steps really taken, up to n
    next_obs: Tensor
    discounts: Tensor  # gamma to the power of those steps, 0 after a termination


class ReplayBuffer:
    """Transitions of N environments, kept as time-major rings of single frames (7.06 kB per transition).

    Row t holds, per environment, the newest frame of the observation that the action was chosen on, the action, and
    its result. Because the step after the end of a game resets it, the observation after row t is always in row t+1,
    even after a truncation. A stack is rebuilt from rows t-3..t; frames older than the game (`ages`) are zeros.
    """

    KEPT = ("frames", "actions", "rewards", "terminations", "truncations", "ages", "valid", "age")
    KEPT += ("head", "num_stored", "num_valid")  # attributes that a checkpoint saves

    def __init__(self, size: int, num_envs: int, n_step: int, gamma: float, device: torch.device) -> None:
        self.num_rows, self.num_envs, self.n_step = size // num_envs, num_envs, n_step
        if self.num_rows < self.min_rows(n_step):
            raise ValueError(f"{size} transitions are too few for {num_envs} environments")
        rows = self.num_rows * num_envs
        # 8 pixels in an int64: single bytes gather slowly.
        self.frames = torch.zeros(rows, 84 * 84 // 8, dtype=torch.int64, device=device)
        self.actions = torch.zeros(rows, dtype=torch.uint8, device=device)
        self.rewards = torch.zeros(rows, dtype=torch.float32, device=device)
        self.terminations = torch.zeros(rows, dtype=torch.bool, device=device)
        self.truncations = torch.zeros(rows, dtype=torch.bool, device=device)
        self.ages = torch.zeros(rows, dtype=torch.uint8, device=device)  # frames since the reset, 3 at most
        self.valid = np.zeros((self.num_rows, num_envs), dtype=bool)  # False: a reset, no transition starts here

        self.window = torch.arange(-3, n_step + 1, device=device)
        self.gammas = (gamma ** torch.arange(n_step + 1, dtype=torch.float32)).to(device)  # the same on every device
        self.head = self.num_stored = self.num_valid = 0
        self.age = np.zeros(num_envs, dtype=np.uint8)

    @staticmethod
    def min_rows(n_step: int) -> int:
        """Return the fewest rows with which a full ring has a row to draw: it needs 3 rows before it and n after it."""
        return n_step + 4

    def add(self, obs: Tensor, actions: np.ndarray, step: Step) -> None:
        """Store one vector step: observations, actions and results; a reset is stored as an invalid row."""
        row = slice(self.head * self.num_envs, (self.head + 1) * self.num_envs)
        self.frames[row] = obs[:, -1].reshape(self.num_envs, -1).view(torch.int64)
        rings = self.actions, self.rewards, self.terminations, self.truncations, self.ages
        values = np.stack([actions, step.rewards, step.terminations, step.truncations, self.age]).astype(np.float32)
        for ring, new in zip(rings, in_torch.to_device(values, self.frames.device), strict=True):  # all in one copy
            ring[row] = new.to(ring.dtype)
        self.num_valid += int((~step.resets).sum()) - int(self.valid[self.head].sum())
        self.valid[self.head] = ~step.resets
        self.age = np.where(step.resets, 0, np.minimum(self.age + 1, 3)).astype(np.uint8)
        self.head = (self.head + 1) % self.num_rows
        self.num_stored = min(self.num_stored + 1, self.num_rows)

    def draw(self, num_batches: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw indices (num_batches, batch_size) of transitions uniformly; (0, batch_size) if nothing can be drawn.

        A transition can be drawn if its row is valid, has n rows after it and, once the ring is full, 3 rows
        before it, since the oldest rows would build their stacks from the newest frames.
        """
        oldest, first = (self.head, 3) if self.num_stored == self.num_rows else (0, 0)
        last = self.num_stored - self.n_step  # counted in rows from the oldest, like `first`
        fringe = [*range(first), *range(max(last, first), self.num_stored)]
        if last <= first or self.num_valid == self.valid[(oldest + np.array(fringe)) % self.num_rows].sum():
            return np.zeros((0, batch_size), dtype=np.int64)
        rows, envs = np.empty((2, num_batches * batch_size), dtype=np.int64)
        todo = np.arange(rows.size)
        while todo.size:
            rows[todo] = (oldest + rng.integers(first, last, todo.size)) % self.num_rows
            envs[todo] = rng.integers(self.num_envs, size=todo.size)
            todo = todo[~self.valid[rows[todo], envs[todo]]]
        return (rows * self.num_envs + envs).reshape(num_batches, batch_size)

    def sample(self, index: Tensor) -> Batch:
        """Return the transitions at `index` (B,). Changes no state and reads no counter, so a CUDA graph can replay it."""
        rows, envs = index[:, None] // self.num_envs, index[:, None] % self.num_envs
        window = (rows + self.window) % self.num_rows * self.num_envs + envs  # (B, 4 + n): rows t-3 .. t+n
        frames = self.frames.index_select(0, window.flatten()).view(*window.shape, -1)

        steps = window[:, 3:-1]  # (B, n): rows t .. t+n-1
        terminated = self.terminations[steps]
        going_on = (~(terminated | self.truncations[steps])).cumprod(1)
        taken = torch.cat([torch.ones_like(going_on[:, :1]), going_on[:, :-1]], 1)  # 1 up to the first end
        num_taken = taken.sum(1, keepdim=True)  # 1 .. n
        next_rows = window.gather(1, num_taken + 3)
        return Batch(
            obs=self._stack(frames, torch.zeros_like(num_taken), self.ages[window[:, 3:4]]),
            actions=self.actions[index].long(),
            rewards=(taken * self.gammas[:-1] * self.rewards[steps]).sum(1),
            next_obs=self._stack(frames, num_taken, self.ages[next_rows]),
            discounts=self.gammas[num_taken[:, 0]] * ~(terminated & taken.bool()).any(1),
        )

    def _stack(self, frames: Tensor, start: Tensor, ages: Tensor) -> Tensor:
        """Stack frames start..start+3 of each window (B, 4 + n, 882); frames older than the game become zeros."""
        position = torch.arange(4, device=frames.device)
        stack = frames[torch.arange(len(frames), device=frames.device)[:, None], start + position]
        stack = stack * (3 - position <= ages)[:, :, None]
        # Channels last, which convolutions prefer; transposed here, where a pixel is still one byte.
        return stack.view(torch.uint8).view(-1, 4, 84, 84).contiguous(memory_format=torch.channels_last)


# --- The maths ---


def linear_schedule(start: float, end: float, duration: float, step: int) -> float:
    """Interpolate linearly from `start` at step 0 to `end` at step `duration`; stay at `end` after that."""
    return end if step >= duration else start + (end - start) * step / duration


def one_cycle(peak: float, duration: float, step: int) -> float:
    """Return a learning rate that rises for 30% of `duration`, then falls to its end, along cosines (Smith and Topin 2019).

    It goes from `peak` / 2 up to `peak` and down to `peak` / 20,000, as torch's OneCycleLR with div_factor 2.
    """
    rise = 0.3 * duration
    start, end, progress = peak / 2, peak, step / rise
    if step >= rise:
        start, end, progress = peak, peak / 20_000, min((step - rise) / (duration - rise), 1)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def learning_rate_at(args: Args, step: int) -> float:
    """Return the learning rate that the flags set for a step: constant, linear, or one cycle."""
    if args.one_cycle:
        return one_cycle(args.learning_rate, args.schedule_length, step)
    end = args.learning_rate if args.learning_rate_end is None else args.learning_rate_end
    return linear_schedule(args.learning_rate, end, args.schedule_length, step)


def crossed(step: int, num_steps: int, period: int) -> int:
    """Count the multiples of `period` in (step, step + num_steps]: how often something is due. Period 0 means never."""
    return (step + num_steps) // period - step // period if period else 0


def td_target(rewards: Tensor, discounts: Tensor, next_values: Tensor) -> Tensor:
    """Regression target r + discount * V(s'), all (B,); the discount is 0 after a termination."""
    return rewards + discounts * next_values


def td_loss(
    q_network: nn.Module, target_network: nn.Module, batch: Batch, double_q: bool, huber: bool, bf16: bool
) -> tuple[Tensor, Tensor]:
    """Return the mean squared (or Huber) temporal-difference error of a batch, then the mean Q-value of its actions."""
    with torch.no_grad():
        next_q_values = target_network(batch.next_obs, bf16)
        chooser = q_network(batch.next_obs, bf16) if double_q else next_q_values
        next_values = next_q_values.gather(1, chooser.argmax(1, keepdim=True)).squeeze(1)
        target = td_target(batch.rewards, batch.discounts, next_values)
    q_pred = q_network(batch.obs, bf16).gather(1, batch.actions[:, None]).squeeze(1)
    # Differs from the paper: the squared error by default, where theirs is clipped (`--huber`).
    loss = F.smooth_l1_loss(q_pred, target) if huber else F.mse_loss(q_pred, target)
    return loss, q_pred.detach().mean()


def epsilon_greedy(greedy_actions: np.ndarray, num_actions: int, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Replace each action (N,) by a uniformly random one with probability `epsilon`."""
    explore = rng.random(len(greedy_actions)) < epsilon
    return np.where(explore, rng.integers(num_actions, size=len(greedy_actions)), greedy_actions)


# --- Act, update, sync ---


@torch.no_grad()
def greedy_actions(q_network: nn.Module, obs: Tensor) -> Tensor:
    """argmax_a Q(obs, a), (N,), in float32."""
    return q_network(obs).argmax(1)


@torch.no_grad()
def sync(q_network: nn.Module, target_network: nn.Module, tau: float) -> None:
    """Move the target network towards the online network by the fraction `tau`."""
    torch._foreach_lerp_(list(target_network.parameters()), list(q_network.parameters()), tau)


# --- The run ---


class Learner:
    """The networks and their optimizer, and the functions that act and update, compiled on request."""

    KEPT = ("q_network", "target_network", "optimizer")  # attributes that a checkpoint saves

    def __init__(self, args: Args, device: torch.device) -> None:
        self.device, num_actions = device, count_actions(args)
        self.bf16, self.compiled = in_torch.use_bf16(args.bf16, device), args.compile and in_torch.can_compile(device)
        self.q_network = NatureCNN(num_actions).to(device, memory_format=torch.channels_last)
        self.target_network = NatureCNN(num_actions).to(device, memory_format=torch.channels_last)
        if args.initial_model is not None and args.resume is None:  # a checkpoint has its own weights
            with explained("--initial-model", args.initial_model):
                load_into(self.q_network, Path(args.initial_model))
        self.target_network.load_state_dict(self.q_network.state_dict())
        in_torch.use_onednn(self.q_network, self.target_network)  # faster linear layers, on some CPUs
        self.learning_rate = torch.tensor(args.learning_rate, device=device)  # a tensor, so compiled code sees it change
        # Differs from the paper: Adam in place of RMSProp.
        more = {"weight_decay": args.weight_decay, "fused": device.type != "mps", "capturable": device.type == "cuda"}
        self.optimizer = torch.optim.AdamW(self.q_network.parameters(), self.learning_rate, eps=args.adam_eps, **more)
        greedy = functools.partial(greedy_actions, self.q_network)
        self.act = torch.compile(greedy, dynamic=False) if self.compiled else greedy

    def updater(self, rb: ReplayBuffer, args: Args) -> Callable[[Tensor], Tensor]:
        """Make the update, a function from indices (batch_size,) in `rb` to metrics: sample, loss, gradient, step.

        It is compiled and warmed up here, outside of SPS. It waits for the device only to copy batches from a buffer in host
        memory. The metrics stay on the device: the values that the loss returns, then 1 as long as every loss was finite.
        """
        finite = torch.ones((), device=self.device)

        def loss_fn(batch: Batch) -> tuple[Tensor, ...]:
            return td_loss(self.q_network, self.target_network, batch, args.double_q, args.huber, self.bf16)

        def sampled_loss(index: Tensor) -> tuple[Tensor, ...]:
            return loss_fn(Batch(*(values.to(self.device) for values in rb.sample(index))))

        if self.compiled and rb.frames.device.type == self.device.type:
            sampled_loss = torch.compile(sampled_loss, dynamic=False)
        elif self.compiled:  # one compiled function cannot span two devices
            loss_fn = torch.compile(loss_fn, dynamic=False)
        with in_torch.compiling(self.compiled):
            self.act(torch.zeros((args.num_envs, 4, 84, 84), dtype=torch.uint8, device=self.device))
            sampled_loss(torch.zeros(args.batch_size, dtype=torch.int64, device=rb.frames.device))[0].backward()
            self.optimizer.zero_grad()

        def update(index: Tensor) -> Tensor:
            loss, *others = sampled_loss(index)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            finite.mul_(torch.isfinite(loss.detach()))
            return torch.stack([loss.detach(), *others, finite])

        return in_torch.cuda_graph(update, args.batch_size, self.q_network, self.optimizer) if args.cuda_graph else update

    def sync(self, tau: float, times: int = 1) -> None:
        """Move the target network towards the online network by the fraction `tau`, `times` times."""
        sync(self.q_network, self.target_network, 1 - (1 - tau) ** times)


@dataclass
class State:
    """The state of the run; its fields are exactly what a checkpoint holds."""

    learner: Learner
    rb: ReplayBuffer
    games: Games
    act_rng: np.random.Generator
    sample_rng: np.random.Generator
    step: int = 0  # environment steps done, over all environments
    metrics: Tensor | None = None  # of the latest update
    best: Evaluation | None = None


def train(state: State, args: Args, run: Run) -> None:
    """Act, learn while the games go on, receive, store, record."""
    learner, games, rb = state.learner, state.games, state.rb
    update = learner.updater(rb, args)
    exploration_steps = args.exploration_fraction * args.schedule_length
    run.begin("training", args.total_timesteps, state)
    while state.step < args.total_timesteps:
        if state.step and crossed(state.step - args.num_envs, args.num_envs, args.eval_frequency):
            evaluate_agent(state, args, run)

        # Act. Differs from the paper: FIRE after a lost life overrides the agent. The buffer stores what is played.
        obs = torch.as_tensor(games.obs, device=learner.device)
        epsilon = linear_schedule(args.start_e, args.end_e, exploration_steps, state.step)
        greedy = learner.act(obs).cpu().numpy()
        actions = games.send(epsilon_greedy(greedy, games.num_actions, epsilon, state.act_rng))

        # Learn from stored transitions while the games step in their threads.
        if state.step >= args.learning_starts:
            learner.learning_rate.fill_(learning_rate_at(args, state.step))
            num_updates = crossed(state.step, args.num_envs, args.train_frequency)
            for index in in_torch.to_device(rb.draw(num_updates, args.batch_size, state.sample_rng), rb.frames.device):
                state.metrics = update(index)
            if syncs := crossed(state.step, args.num_envs, args.target_network_frequency):
                learner.sync(args.tau, syncs)

        # Receive and store. The buffer holds the signs of the rewards; reports use raw rewards.
        step = games.recv()
        rb.add(obs, actions, step._replace(rewards=np.sign(step.rewards)))

        # Record. Losses are read from the device only when they are logged, since each reading waits for the device.
        state.step += args.num_envs
        run.episodes(step.finished, state.step)
        run.advance(state.step)
        if crossed(state.step - args.num_envs, args.num_envs, LOG_FREQUENCY):
            run.scalars({"charts/epsilon": epsilon, "charts/SPS": run.rate()}, state.step)
            run.scalars(read_metrics(state.metrics, METRICS), state.step)
        if run.due(state.step):
            read_metrics(state.metrics, METRICS)  # raises an error if the run has diverged, so that it is not saved
            run.save(state)
    read_metrics(state.metrics, METRICS)  # checks the last losses too
    run.save(state)


def evaluate_agent(state: State, args: Args, run: Run) -> Evaluation:
    """Play whole games with the current network, log their mean return, and save the weights of the best evaluation."""
    policy = player(state.learner.q_network, state.learner.device)
    with run.evaluating(state):
        result = evaluate(policy, Games(args, EVALUATION, args.eval_episodes), args.seed, args.eval_epsilon)
        if args.capture_video:
            film_game(policy, args, run.folder.name, f"step-{state.step}")
    run.scalars({"eval/episodic_return": result.mean}, state.step)
    if state.best is None or result.mean > state.best.mean:
        if args.save_model and args.eval_frequency:
            save_weights(state.learner.q_network.state_dict(), run.model_path.with_stem(f"{args.exp_name}-best"))
        state.best = result
    return result


def player(network: nn.Module, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """Return the greedy policy for evaluation, uncompiled: NumPy observations (E, 4, 84, 84) to NumPy actions (E,)."""
    return lambda obs: greedy_actions(network, torch.as_tensor(obs, device=device)).cpu().numpy()


def load_player(args: Args, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Load the greedy policy of a model file on the CPU, for `cleanrl_utils.enjoy` to play. Raises `ModelError`."""
    q_network = NatureCNN(count_actions(args))
    load_into(q_network, path)
    return player(q_network, torch.device("cpu"))


def main(args: Args) -> Path:
    """Train, evaluate and save; returns the run folder. Raises `BadInput` before anything is written."""
    check(args)
    keep_freed_memory()
    device, buffer_device = in_torch.choose_devices(args)
    in_torch.require_memory("--buffer-size", args.buffer_size, buffer_device)
    run = Run(args, Checkpoints(args))
    args.buffer_size = flags.at_least(args, "buffer_size", ReplayBuffer.min_rows(args.n_step) * args.num_envs)

    torch.manual_seed(args.seed)
    in_torch.be_deterministic(args.torch_deterministic, device)
    learner = Learner(args, device)
    threads = in_torch.choose_threads(args, learner.q_network, (4, 84, 84), learner.bf16)
    state = State(
        learner=learner,
        rb=ReplayBuffer(args.buffer_size, args.num_envs, args.n_step, args.gamma, buffer_device),
        games=Games(args, TRAINING, args.num_envs),
        act_rng=np.random.default_rng([args.seed, 1]),
        sample_rng=np.random.default_rng([args.seed, 2]),
    )
    about = in_torch.described(device) | {"compiled": learner.compiled, "bf16": learner.bf16, "threads": threads}
    with run.started(protocol(args) | about, state):
        train(state, args, run)
        if args.save_model:
            save_weights(learner.q_network.state_dict(), run.model_path)
        if args.save_replay:
            run.save_replay(state.rb, state.games.num_actions)
        state.games.close()
        scores = {"agent": evaluate_agent(state, args, run)}
        run.finish({"steps": state.step}, scores)
    if args.upload_model:
        push(run.folder, args.hf_entity)
    return run.folder


if __name__ == "__main__":
    flags.run(main, Args)
