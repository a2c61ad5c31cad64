"""DQN on Atari (Mnih et al. 2015, https://doi.org/10.1038/nature14236).

Twin in JAX: dqn_atari_jax.py. Documentation: docs/rl-algorithms/dqn.md.
Read on from `main`: act, send, learn while the environments step, receive, store.
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
from ale_py.vector_env import AtariVectorEnv
from torch import Tensor, nn

from cleanrl_utils import config, models
from cleanrl_utils.atari import MAX_FRAMES, Episodes, FireAfterLifeLoss, count_actions, game_settings, num_threads, protocol
from cleanrl_utils.checkpoint import Checkpoints
from cleanrl_utils.devices import keep_freed_memory
from cleanrl_utils.devices_torch import be_deterministic, can_compile, choose_devices, described, use_bf16, use_onednn
from cleanrl_utils.evals import Evaluation, require_video
from cleanrl_utils.evals_atari import evaluate, film_game
from cleanrl_utils.huggingface import push, require_upload
from cleanrl_utils.seeds import env_seeds
from cleanrl_utils.tracking import start_run, working

LOG_FREQUENCY = 1000
"""Environment steps between readings of losses and rates: each waits for the device."""


@dataclass
class Args:
    """Flags: the run, the environment, the algorithm."""

    exp_name: str = "dqn_atari"
    """name of this experiment, in the run folder and in the model file"""
    seed: int = 1
    """seed of the run: environments, exploration, sampling, weights"""
    torch_deterministic: bool = True
    """ask torch for deterministic kernels"""
    cuda: bool = True
    """use CUDA where there is a GPU; `--no-cuda` is `--device cpu`"""
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None
    """where networks live; wins over `--cuda`; auto: CUDA if there is one, else the CPU"""
    buffer_device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where the replay buffer lives; auto: with the networks"""
    compile: bool = True
    """compile update and act with torch.compile, where a compiler exists"""
    cuda_graph: bool = False
    """replay each update as one CUDA graph (CUDA only)"""
    bf16: bool = False
    """bfloat16 in all layers but the last, in updates only; needs hardware that has it"""
    track: bool = False
    """log to Weights & Biases too; WANDB_MODE=offline works without an account"""
    wandb_project_name: str = "cleanRL"
    """project on Weights & Biases"""
    wandb_entity: str | None = None
    """team on Weights & Biases"""
    capture_video: bool = False
    """record a game at each evaluation to videos/{run_name}; needs the extra `video`"""
    save_model: bool = False
    """write {exp_name}.cleanrl_model to the run folder, and with eval-frequency
    {exp_name}-best.cleanrl_model at each best evaluation"""
    upload_model: bool = False
    """push models, flags and scores to {hf_entity}/{env_id}-{exp_name}-seed{seed} on the Hugging Face Hub"""
    hf_entity: str = ""
    """user or organization on the Hugging Face Hub"""
    config: str | None = None
    """YAML file of flags, under those given on the command line"""
    checkpoint_frequency: int = 0
    """STEPS between checkpoints, which cut all games: 27,000 per environment let each be played; 0: none"""
    resume: str | None = None
    """go on from the latest checkpoint of this run folder, with all flags of that run"""
    resume_anyway: bool = False
    """resume under other numbers of threads, versions or hardware too, where the same weights cannot be promised"""

    env_id: str = "BreakoutNoFrameskip-v4"
    """Atari game, as BreakoutNoFrameskip-v4 or ALE/Breakout-v5"""
    num_envs: int = 8
    """games played side by side; the ratio of updates to steps does not depend on it"""
    sticky_actions: float | None = None
    """probability that the last action is repeated; default by id: 0.25 for v5, 0 for v4"""
    life_loss: bool = True
    """a lost life ends the return (the game goes on)"""
    eval_frequency: int = 0
    """environment steps between evaluations; 0: at the end only"""
    eval_episodes: int = 10
    """whole games per evaluation"""
    eval_epsilon: float = 0.01
    """exploration rate in evaluation (paper: 0.05)"""
    eval_max_frames: int = MAX_FRAMES
    """raw frames after which an evaluation game is cut (60 per second)"""

    total_timesteps: int = 10_000_000
    """environment steps over all environments; frames are 4 times that (paper: 50M)"""
    learning_rate: float = 1e-4
    """learning rate of Adam (paper: RMSProp, 2.5e-4)"""
    learning_rate_end: float | None = None
    """learning rate at the end, on a line from learning-rate over total-timesteps; default: no decay"""
    one_cycle: bool = False
    """learning rate that rises from half of learning-rate and falls to nothing, in place of a line: `one_cycle`"""
    adam_eps: float = 1e-8
    """epsilon of Adam"""
    weight_decay: float = 0.0
    """share of learning-rate by which each update shrinks the weights: AdamW, if above 0"""
    initial_model: str | None = None
    """model file whose weights the run starts from; default: random weights"""
    buffer_size: int = 1_000_000
    """transitions in the replay buffer, 7.1 kB each"""
    gamma: float = 0.99
    """discount per step"""
    tau: float = 1.0
    """share of the online network that a target sync takes over (1: hard sync)"""
    target_network_frequency: int = 1000
    """environment steps between target syncs (paper: 40,000)"""
    batch_size: int = 32
    """transitions per update"""
    start_e: float = 1.0
    """exploration rate at the start"""
    end_e: float = 0.01
    """exploration rate at the end (paper: 0.1)"""
    exploration_fraction: float = 0.10
    """share of total-timesteps over which epsilon falls from start-e to end-e"""
    learning_starts: int = 80_000
    """environment steps before the first update (paper: 50,000)"""
    train_frequency: int = 4
    """environment steps per update"""
    n_step: int = 1
    """rewards summed before bootstrapping"""
    double_q: bool = False
    """the online network chooses the next action, the target network values it (van Hasselt et al. 2016)"""
    huber: bool = False
    """Huber loss (delta 1) in place of the squared error; its gradient is the paper's clipped error"""


def check(args: Args) -> None:
    """Raise `config.BadInput` for a flag out of range."""
    config.require_file_name(args, "exp_name")
    config.require_positive(
        args, "num_envs", "eval_episodes", "eval_max_frames", "total_timesteps", "learning_rate", "adam_eps", "buffer_size",
        "target_network_frequency", "batch_size", "train_frequency", "n_step",
    )  # fmt: skip
    config.require_seed(args)
    config.require_not_negative(
        args, "checkpoint_frequency", "eval_frequency", "learning_starts", "learning_rate_end", "weight_decay"
    )
    config.require_probability(
        args, "gamma", "tau", "start_e", "end_e", "exploration_fraction", "eval_epsilon", "sticky_actions"
    )
    if args.one_cycle and args.learning_rate_end is not None:
        raise config.BadInput("--one-cycle", "on", "has an end of its own: leave --learning-rate-end")
    game_settings(args.env_id)
    if args.capture_video:
        require_video()
    if args.upload_model:
        require_upload(args)


# --- Environments ---


def make_envs(
    args: Args, seed_purpose: int, step: int = 0
) -> tuple[AtariVectorEnv, np.ndarray, FireAfterLifeLoss, Episodes]:
    """`num_envs` games of the classic protocol, reset with seeds of their own and of `step`: (envs, obs, fire, episodes).

    Observations (N, 4, 84, 84) uint8, oldest frame first; rewards raw; a lost life sets `terminations`, and the
    game goes on. The step after a game's end ignores its action and resets (NEXT_STEP autoreset).
    """
    game, sticky = game_settings(args.env_id)
    envs = AtariVectorEnv(
        game,
        args.num_envs,
        num_threads=num_threads(args.num_envs),
        repeat_action_probability=sticky if args.sticky_actions is None else args.sticky_actions,
        # Differs from the paper: frames of the life before stay in the stack, since the game goes on.
        life_loss_info=args.life_loss,  # `episodic_life` would reset the game at each lost life
        reward_clipping=False,
    )
    obs, infos = envs.reset(seed=env_seeds(args.seed, seed_purpose, step, args.num_envs))
    return envs, obs, FireAfterLifeLoss(envs, infos), Episodes(infos)


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
        """Q-values of all actions; `bf16` computes all layers but the last in bfloat16."""
        x = (obs.float() / 255.0).contiguous(memory_format=torch.channels_last)
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=bf16):
            x = self.network[:-1](x)
        return self.network[-1](x.float())  # float32: bfloat16's step near 1 is as large as Pong's action gaps


# --- Replay buffer ---


class Batch(NamedTuple):
    """Transitions: observations (B, 4, 84, 84) uint8, the rest (B,)."""

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    """sum of the discounted rewards of the steps really taken, up to n"""
    next_obs: Tensor
    discounts: Tensor
    """gamma to the power of those steps, 0 after a termination"""


class ReplayBuffer:
    """Transitions of N environments, kept as time-major rings of single frames (7.06 kB per transition).

    Row t holds, per environment, the newest frame of the observation that the action was chosen on, and what
    that step brought. As the step after a game's end resets, the observation after row t is always row t+1, also
    after a truncation. A stack is rebuilt from rows t-3..t; frames older than the game (`ages`) are zeros.
    """

    # What a checkpoint holds of it.
    KEPT = ("frames", "actions", "rewards", "terminations", "truncations", "ages", "valid", "age")
    KEPT += ("head", "num_stored", "num_valid", "num_added")

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
        self.gammas = gamma ** torch.arange(n_step + 1, device=device, dtype=torch.float32)
        self.head = self.num_stored = self.num_valid = 0
        self.num_added = 0  # transitions ever added
        self.age = np.zeros(num_envs, dtype=np.uint8)

    @staticmethod
    def min_rows(n_step: int) -> int:
        """Rows of the smallest ring that, once full, has a row to draw: 3 before it, n after it."""
        return n_step + 4

    def add(
        self,
        obs: Tensor,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminations: np.ndarray,
        truncations: np.ndarray,
        resets: np.ndarray,
    ) -> None:
        """Store one vector step: what was seen, what was done, what it brought, and where it was a reset."""
        row = slice(self.head * self.num_envs, (self.head + 1) * self.num_envs)
        self.frames[row] = obs[:, -1].reshape(self.num_envs, -1).view(torch.int64)
        for ring, values in (
            (self.actions, actions),
            (self.rewards, rewards),
            (self.terminations, terminations),
            (self.truncations, truncations),
            (self.ages, self.age),
        ):
            ring[row] = torch.as_tensor(values).to(ring.device, ring.dtype)
        self.num_added += int((~resets).sum())
        self.num_valid += int((~resets).sum()) - int(self.valid[self.head].sum())
        self.valid[self.head] = ~resets
        self.age = np.where(resets, 0, np.minimum(self.age + 1, 3)).astype(np.uint8)
        self.head = (self.head + 1) % self.num_rows
        self.num_stored = min(self.num_stored + 1, self.num_rows)

    def cut(self, obs: Tensor) -> None:
        """End all games here, as a checkpoint does: the step before is truncated and bootstraps from what is seen now.

        That is held by one more row, which is no step.
        """
        last = (self.head - 1) % self.num_rows
        row = slice(last * self.num_envs, (last + 1) * self.num_envs)
        self.truncations[row] |= torch.as_tensor(self.valid[last]).to(self.truncations.device) & ~self.terminations[row]
        blank, resets = np.zeros(self.num_envs, dtype=bool), np.ones(self.num_envs, dtype=bool)
        self.add(obs, blank, blank, blank, blank, resets)

    def draw(self, num_batches: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Indices (num_batches, batch_size) of stored transitions, uniformly; (0, batch_size) while there is none.

        A transition can be drawn if its row is valid, has n rows after it and, once the ring is full, 3 rows
        before it: the oldest rows would build their stacks from the newest frames.
        """
        full = self.num_stored == self.num_rows
        oldest = self.head if full else 0
        first, last = (3 if full else 0), self.num_stored - self.n_step  # in rows since the oldest
        fringe = [*range(first), *range(max(last, first), self.num_stored)]
        if last <= first or self.num_valid == self.valid[(oldest + np.array(fringe)) % self.num_rows].sum():
            return np.zeros((0, batch_size), dtype=np.int64)
        rows = np.empty(num_batches * batch_size, dtype=np.int64)
        envs = np.empty_like(rows)
        todo = np.arange(rows.size)
        while todo.size:
            rows[todo] = (oldest + rng.integers(first, last, todo.size)) % self.num_rows
            envs[todo] = rng.integers(self.num_envs, size=todo.size)
            todo = todo[~self.valid[rows[todo], envs[todo]]]
        return (rows * self.num_envs + envs).reshape(num_batches, batch_size)

    def sample(self, index: Tensor) -> Batch:
        """The transitions at `index` (B,). Holds no state and reads no size, so that a graph can replay it."""
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
        """Frames start..start+3 of each window (B, 4 + n, 882), zeros where they are older than the game."""
        position = torch.arange(4, device=frames.device)
        stack = frames[torch.arange(len(frames), device=frames.device)[:, None], start + position]
        stack = stack * (3 - position <= ages)[:, :, None]
        # Channels last, as convolutions want them: transposed here, where a pixel is one byte.
        return stack.view(torch.uint8).view(-1, 4, 84, 84).contiguous(memory_format=torch.channels_last)


# --- The maths ---


def linear_schedule(start: float, end: float, duration: float, step: int) -> float:
    """`start` at step 0, `end` from step `duration` on, a line between."""
    return end if step >= duration else start + (end - start) * step / duration


def one_cycle(peak: float, duration: float, step: int) -> float:
    """Learning rate that rises for 30% of `duration` and falls to its end, along cosines (Smith and Topin 2019).

    From `peak` / 2 to `peak` to `peak` / 20,000: torch's OneCycleLR with div_factor 2.
    """
    rise = 0.3 * duration
    start, end, progress = peak / 2, peak, step / rise
    if step >= rise:
        start, end, progress = peak, peak / 20_000, (step - rise) / (duration - rise)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def learning_rate_at(args: Args, step: int) -> float:
    """The learning rate that the flags give a step: constant, on a line, or one cycle."""
    if args.one_cycle:
        return one_cycle(args.learning_rate, args.total_timesteps, step)
    end = args.learning_rate if args.learning_rate_end is None else args.learning_rate_end
    return linear_schedule(args.learning_rate, end, args.total_timesteps, step)


def crossed(step: int, num_steps: int, period: int) -> int:
    """How many multiples of `period` lie in (step, step + num_steps]: what is due in this vector step."""
    return (step + num_steps) // period - step // period


def td_target(rewards: Tensor, discounts: Tensor, next_values: Tensor) -> Tensor:
    """Regression target r + discount * V(s'), all (B,); the discount is 0 after a termination."""
    return rewards + discounts * next_values


def td_loss(
    q_network: nn.Module, target_network: nn.Module, batch: Batch, double_q: bool, huber: bool, bf16: bool
) -> tuple[Tensor, Tensor]:
    """Mean squared (or Huber) temporal-difference error of a batch; then the mean Q-value of its actions."""
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
    """Each action (N,) replaced by a uniformly random one with probability `epsilon`."""
    explore = rng.random(len(greedy_actions)) < epsilon
    return np.where(explore, rng.integers(num_actions, size=len(greedy_actions)), greedy_actions)


# --- Act, update, sync ---


@torch.no_grad()
def greedy_actions(q_network: nn.Module, obs: Tensor) -> Tensor:
    """argmax_a Q(obs, a), (N,), in float32."""
    return q_network(obs).argmax(1)


def make_update(
    loss_fn: Callable[[Batch], tuple[Tensor, ...]],
    optimizer: torch.optim.Optimizer,
    rb: ReplayBuffer,
    batch_size: int,
    device: torch.device,
    compiled: bool,
) -> Callable[[Tensor], Tensor]:
    """A function from indices (batch_size,) to metrics: sample, loss, gradient, step. Warmed up, and compiled if asked.

    It never waits for the device, unless a buffer in host memory has to be copied there.
    The metrics (len(loss_fn's outputs) + 1,) stay on the device; the last is 1 while every loss was finite.
    """
    finite = torch.ones((), device=device)

    def sampled_loss(index: Tensor) -> tuple[Tensor, ...]:
        return loss_fn(Batch(*(values.to(device) for values in rb.sample(index))))

    if compiled and rb.frames.device.type == device.type:
        sampled_loss = torch.compile(sampled_loss, dynamic=False)
    elif compiled:  # no function on two devices
        loss_fn = torch.compile(loss_fn, dynamic=False)
    sampled_loss(torch.zeros(batch_size, dtype=torch.int64, device=rb.frames.device))[0].backward()
    optimizer.zero_grad()

    def update(index: Tensor) -> Tensor:
        loss, *others = sampled_loss(index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        finite.mul_(torch.isfinite(loss.detach()))
        return torch.stack([loss.detach(), *others, finite])

    return update


@torch.no_grad()
def sync(q_network: nn.Module, target_network: nn.Module, tau: float) -> None:
    """Move the target network towards the online network by the share `tau`."""
    torch._foreach_lerp_(list(target_network.parameters()), list(q_network.parameters()), tau)


def learner_state(q_network: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that an update trains: weights, and Adam's moments and step counts."""
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [*q_network.parameters(), *moments]


def to_device(indices: np.ndarray, device: torch.device) -> Tensor:
    """Indices on the device, in one copy that the host does not wait for."""
    host = torch.from_numpy(indices)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def read_metrics(metrics: Tensor | None, names: tuple[str, ...]) -> dict[str, float]:
    """Metrics by name, read from the device, or nothing. Raises FloatingPointError once a loss was not finite."""
    if metrics is None:
        return {}
    *values, finite = metrics.tolist()
    if not finite:
        raise FloatingPointError("a loss was not finite; lower --learning-rate, or leave --bf16")
    return dict(zip(names, values, strict=True))


def cuda_graph(
    update: Callable[[Tensor], Tensor], batch_size: int, state: Callable[[], list[Tensor]]
) -> Callable[[Tensor], Tensor]:
    """`update` captured as one CUDA graph, to be called with indices (batch_size,) on the device.

    The warm-up that a capture needs would change weights and Adam's moments: `state()` lists them, and they are
    put back in place (moments that the warm-up made, to zero).
    """
    index = torch.zeros(batch_size, dtype=torch.int64, device="cuda")
    before = {tensor: tensor.detach().clone() for tensor in state()}  # detached: no node of autograd may outlive this
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            update(index)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        metrics = update(index)
    with torch.no_grad():
        for tensor in state():
            tensor.copy_(before[tensor]) if tensor in before else tensor.zero_()

    def replay(new_index: Tensor) -> Tensor:
        index.copy_(new_index, non_blocking=True)
        graph.replay()
        return metrics

    replay.kept = update  # and so all that it holds: the graph knows only the addresses of what it reads and writes
    return replay


# --- The run ---


def player(network: nn.Module, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """The greedy policy as evaluation calls it: observations (E, 4, 84, 84) to actions (E,), in NumPy, uncompiled."""
    return lambda obs: greedy_actions(network, torch.as_tensor(obs, device=device)).cpu().numpy()


def load_player(args: Args, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The greedy policy of a model file, on the CPU: what `cleanrl_utils.enjoy` plays. Raises `models.ModelError`."""
    q_network = NatureCNN(count_actions(args.env_id))
    models.load_into(q_network, path)
    return player(q_network, torch.device("cpu"))


def main(args: Args) -> Path:
    """Train, evaluate and save; returns the run folder. Raises `config.BadInput` before anything is written."""
    check(args)
    keep_freed_memory()
    device, buffer_device = choose_devices(args)
    bf16, compiled = use_bf16(args, device), args.compile and can_compile(device)
    args.buffer_size = config.at_least(args, "buffer_size", ReplayBuffer.min_rows(args.n_step) * args.num_envs)
    checkpoints = Checkpoints(args)

    # Random states by purpose: 0 environments, 1 exploration, 2 sampling; evaluation has its own.
    torch.manual_seed(args.seed)
    be_deterministic(args, device)
    act_rng, sample_rng = (np.random.default_rng([args.seed, purpose]) for purpose in (1, 2))

    num_actions = count_actions(args.env_id)
    q_network = NatureCNN(num_actions).to(device, memory_format=torch.channels_last)
    target_network = NatureCNN(num_actions).to(device, memory_format=torch.channels_last)
    if args.initial_model is not None:
        with models.explained("--initial-model", args.initial_model):
            models.load_into(q_network, Path(args.initial_model))
    target_network.load_state_dict(q_network.state_dict())
    use_onednn(q_network, target_network)  # faster linear layers, on some CPUs
    # Differs from the paper: Adam in place of RMSProp.
    learning_rate, on_cuda = torch.tensor(args.learning_rate, device=device), device.type == "cuda"
    optimizer = torch.optim.AdamW(
        q_network.parameters(),
        lr=learning_rate,
        eps=args.adam_eps,
        weight_decay=args.weight_decay,
        fused=device.type != "mps",
        capturable=on_cuda,
    )
    rb = ReplayBuffer(args.buffer_size, args.num_envs, args.n_step, args.gamma, buffer_device)
    checkpoints.keep(
        q_network=q_network,
        target_network=target_network,
        optimizer=optimizer,
        rb=rb,
        act_rng=act_rng,
        sample_rng=sample_rng,
    )

    # What is compiled, here and in `make_update`, and warmed up so that compilation does not count in SPS.
    def loss_fn(batch: Batch) -> tuple[Tensor, ...]:
        return td_loss(q_network, target_network, batch, args.double_q, args.huber, bf16)

    act = functools.partial(greedy_actions, q_network)
    if compiled:
        act = torch.compile(act, dynamic=False)
    with working("compiling (--no-compile leaves that out)" if compiled else "warming up"):
        act(torch.zeros((args.num_envs, 4, 84, 84), dtype=torch.uint8, device=device))
        update = make_update(loss_fn, optimizer, rb, args.batch_size, device, compiled)
    if args.cuda_graph:
        update = cuda_graph(update, args.batch_size, functools.partial(learner_state, q_network, optimizer))

    evaluate_policy = functools.partial(
        evaluate,
        env_id=args.env_id,
        episodes=args.eval_episodes,
        seed=args.seed,
        epsilon=args.eval_epsilon,
        sticky_actions=args.sticky_actions,
        max_frames=args.eval_max_frames,
    )
    about = {"device": described(device), "compiled": compiled, "bf16": bf16, "threads": torch.get_num_threads()}
    with start_run(args, protocol(args) | about, checkpoints) as tracker:
        model_path = tracker.folder / f"{args.exp_name}.cleanrl_model"
        best, metrics, names = -float("inf"), None, ("losses/td_loss", "losses/q_values")

        @tracker.paused
        def evaluate_network(step: int) -> Evaluation:
            nonlocal best
            policy = player(q_network, device)
            result = evaluate_policy(policy)
            tracker.scalars({"eval/episodic_return": result.mean}, step)
            if args.save_model and args.eval_frequency and result.mean > best:
                models.save_weights(q_network.state_dict(), model_path.with_stem(f"{args.exp_name}-best"))
            best = max(best, result.mean)
            if args.capture_video:
                film_game(policy, args, tracker.folder.name, f"step-{step}")
            return result

        exploration_steps = args.exploration_fraction * args.total_timesteps
        steps_done, best, metrics = checkpoints.begin("training", 0, best, metrics)
        envs, next_obs, fire, episodes = make_envs(args, 0, steps_done)
        tracker.phase("training", args.total_timesteps, first=steps_done)
        for global_step in range(steps_done, args.total_timesteps, args.num_envs):
            # Act. Differs from the paper: FIRE after a lost life overrides the agent. Learning is off-policy, so the
            # replay keeps what was played.
            obs = torch.as_tensor(next_obs, device=device)
            epsilon = linear_schedule(args.start_e, args.end_e, exploration_steps, global_step)
            actions = fire(epsilon_greedy(act(obs).cpu().numpy(), num_actions, epsilon, act_rng))

            # Send; the games go on in their threads while the network learns from what is already stored.
            envs.send(actions)
            if global_step >= args.learning_starts:
                learning_rate.fill_(learning_rate_at(args, global_step))
                num_updates = crossed(global_step, args.num_envs, args.train_frequency)
                for index in to_device(rb.draw(num_updates, args.batch_size, sample_rng), buffer_device):
                    metrics = update(index)
                if crossed(global_step, args.num_envs, args.target_network_frequency):
                    sync(q_network, target_network, args.tau)

            # Receive and store. Rewards are learned by their sign and reported raw.
            next_obs, rewards, terminations, truncations, infos = envs.recv()
            resets, finished = episodes.step(rewards, infos)
            rb.add(obs, actions, np.sign(rewards), terminations, truncations, resets)
            fire.observe(infos)

            # Record. Only here is anything read from the device.
            steps_done = global_step + args.num_envs
            tracker.episodes(finished, steps_done)
            tracker.advance(steps_done)
            if crossed(global_step, args.num_envs, LOG_FREQUENCY):
                tracker.scalars({"charts/epsilon": epsilon, "charts/SPS": tracker.rate()}, steps_done)
                tracker.scalars(read_metrics(metrics, names), steps_done)
            due = args.eval_frequency and crossed(global_step, args.num_envs, args.eval_frequency)
            if due and steps_done < args.total_timesteps:
                evaluate_network(steps_done)

            # Checkpoint: all games end and others begin, in this run as in one that is resumed from here.
            if checkpoints.due(steps_done):
                read_metrics(metrics, names)  # a run that has diverged is not saved
                rb.cut(torch.as_tensor(next_obs, device=device))
                checkpoints.save(steps_done, best, metrics)
                envs.close()
                envs, next_obs, fire, episodes = make_envs(args, 0, steps_done)
        envs.close()
        read_metrics(metrics, names)  # so that no loss goes unseen
        checkpoints.drop("rb")  # it has served
        checkpoints.save(steps_done, best, metrics)

        scores = {"agent": evaluate_network(steps_done)}
        if args.save_model:
            models.save_weights(q_network.state_dict(), model_path)
        tracker.finish({"steps": steps_done}, scores)
    if args.upload_model:
        push(tracker.folder, args.hf_entity)
    return tracker.folder


if __name__ == "__main__":
    config.run(main, Args)
