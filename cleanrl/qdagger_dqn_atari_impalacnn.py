# /// script
# requires-python = ">=3.11"
# dependencies = ["qdagger[atari]"]
# tool.uv.sources.qdagger = { path = "..", editable = true }
# ///
"""QDagger on Atari (Agarwal et al. 2022, https://arxiv.org/abs/2206.01626): a student that starts from a teacher.

Twin in JAX: qdagger_dqn_atari_jax_impalacnn.py. Documentation: docs/rl-algorithms/qdagger.md.
Start reading at `main`: evaluate the teacher, collect with it, train a student offline on TD loss + distillation,
then continue online while the distillation fades. Each phase is the loop of dqn_atari.py with one thing changed.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cleanrl_utils import flags
from cleanrl_utils.console import working
from cleanrl_utils.devices import in_torch
from cleanrl_utils.devices.common import keep_freed_memory, read_metrics
from cleanrl_utils.errors import BadInput
from cleanrl_utils.evals.atari import MAX_FRAMES, SeededGames, count_actions, film_game, game_settings, protocol
from cleanrl_utils.evals.play import Act, Evaluation, evaluate, require_video
from cleanrl_utils.evals.teacher import warn_if_blind, warn_if_faint
from cleanrl_utils.huggingface import check_upload, push
from cleanrl_utils.models.files import load_into, save_weights
from cleanrl_utils.models.source import explained, fetch, public_name, teacher_source
from cleanrl_utils.ranges import FileName, NotNegative, NotNegativeFloat, Positive, PositiveFloat, Probability
from cleanrl_utils.run.args import TrainingArgs
from cleanrl_utils.run.checkpoint import Checkpoints
from cleanrl_utils.run.run import Run
from cleanrl_utils.run.teacher_data import check_data, first_phase, load, open_replay
from cleanrl_utils.seeds import EVALUATION

LOG_FREQUENCY, OFFLINE_LOG_FREQUENCY = 1000, 100
"""Environment steps, and offline updates, between readings of losses and rates; each reading waits for the device."""
METRICS = ("losses/loss", "losses/td_loss", "losses/distill_loss", "losses/q_values")
OFFLINE_METRICS = ("charts/offline/loss", "charts/offline/q_loss", "charts/offline/distill_loss", "charts/offline/q_values")
"""Names of the metrics that an update returns, online and offline."""


@dataclass
class Args(TrainingArgs):
    """Flags of this script; all scripts share others, such as `--track` and `--resume`: cleanrl_utils/run/args.py."""

    exp_name: FileName = "qdagger_dqn_atari_impalacnn"
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
    """compile update and act with torch.compile if a compiler is available; IMPALA networks on a CPU are left uncompiled,
    which is faster"""
    cuda_graph: bool = False
    """replay each update as one CUDA graph (CUDA only)"""
    bf16: bool = False
    """use bfloat16 in all layers except the last, only in updates; needs hardware that supports it"""
    save_model: bool = False
    """write {exp_name}.cleanrl_model, {exp_name}-offline.cleanrl_model and, at each best online evaluation,
    {exp_name}-best.cleanrl_model to the run folder"""

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
    """exploration rate in evaluation"""
    eval_max_frames: Positive = MAX_FRAMES
    """raw frames after which an evaluation game is cut (60 per second)"""

    teacher_policy_hf_repo: str | None = None
    """teacher: a Hugging Face Hub repository or a local folder with the same layout; default: the model in the box for this
    game, else cleanrl/{Game}NoFrameskip-v4-{teacher_model_exp_name}-seed1"""
    teacher_revision: str | None = None
    """branch, tag or commit of that repository"""
    teacher_model_exp_name: FileName = "dqn_atari"
    """the teacher's file is {teacher_model_exp_name}.cleanrl_model"""
    teacher_eval_episodes: Positive = 10
    """whole games that evaluate the teacher, and the same number for a random player"""
    teacher_replay: str | None = None
    """run folder with replay.zip, or folder of Dopamine's replay files: the teacher's data, instead of newly played games"""
    teacher_replay_size: NotNegative = 0
    """number of transitions to read from teacher-replay, the latest ones; 0: all"""
    teacher_steps: NotNegative | None = None
    """environment steps that the teacher plays to fill its buffer; default: 500,000, or 0 with teacher-replay"""
    teacher_start_e: Probability = 1.0
    """the teacher's exploration rate at the start of its buffer"""
    teacher_end_e: Probability = 0.01
    """the teacher's exploration rate at the end of its buffer; linear in between"""
    offline_steps: NotNegative = 500_000
    """updates on the teacher's buffer (paper: 1M); 0: kickstarting, in which the student learns only from its own games"""
    offline_target_network_frequency: Positive = 1000
    """offline updates between target syncs (paper: 2,000)"""
    offline_eval_frequency: NotNegative = 100_000
    """offline updates between evaluations; 0: at the end of the phase only"""
    temperature: PositiveFloat = 0.1
    """temperature of teacher and student in the distillation loss (CleanRL: 1)"""
    distill_coefficient: NotNegativeFloat = 3.0
    """weight of the distillation loss, lambda0, before it fades (CleanRL: 1)"""
    distill_decay_steps: NotNegative = 1_500_000
    """online steps after which the distillation stays off, t0 (paper: 1.5M)"""
    student: Literal["impala256", "impala512", "nature"] = "impala256"
    """student network: IMPALA CNN with 256 or 512 hidden units, or the Nature CNN (paper: nature)"""

    total_timesteps: Positive = 10_000_000
    """online environment steps over all environments; frames are 4 times that (paper: 2.5M)"""
    learning_rate: PositiveFloat = 1e-4
    """learning rate of Adam (paper: 1e-4)"""
    learning_rate_end: NotNegativeFloat | None = None
    """final online learning rate; decays together with the distillation coefficient (paper: 1e-5); default: no decay"""
    offline_learning_rate_end: NotNegativeFloat | None = None
    """final offline learning rate, reached linearly from learning-rate; the online phase starts with it (paper: no decay);
    default: no decay"""
    adam_eps: PositiveFloat = 1e-8
    """epsilon of Adam (paper: 1.5e-4)"""
    buffer_size: Positive = 1_000_000
    """transitions in the online replay buffer, 7.1 kB each"""
    gamma: Probability = 0.99
    """discount per step"""
    tau: Probability = 1.0
    """weight of the online network in each target sync (1: hard sync)"""
    target_network_frequency: Positive = 1000
    """online environment steps between target syncs (paper: 8,000)"""
    batch_size: Positive = 32
    """transitions per update"""
    start_e: Probability = 1.0
    """exploration rate at the start"""
    end_e: Probability = 0.01
    """exploration rate at the end (paper: 0.01)"""
    exploration_fraction: Probability = 0.10
    """share of total-timesteps over which epsilon falls from start-e to end-e; offline-steps count as already passed"""
    learning_starts: NotNegative = 80_000
    """online environment steps before the first online update (paper: 20,000)"""
    train_frequency: Positive = 4
    """environment steps per update"""
    n_step: Positive = 1
    """rewards summed before bootstrapping (paper: 3)"""
    double_q: bool = False
    """the online network chooses the next action and the target network evaluates it (paper: off)"""
    huber: bool = False
    """Huber loss (delta 1) instead of the squared error (paper: Huber)"""


def check(args: Args) -> None:
    """Raise `BadInput` for a flag out of range."""
    flags.check_ranges(args)
    game_settings(args.env_id)
    check_data(args)
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


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), (B, channels, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + self.conv1(F.relu(self.conv0(F.relu(x))))


class ConvSequence(nn.Module):
    """Convolution, max-pool and two residual blocks: (B, C, H, W) to (B, out_channels, ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.res_block0 = ResidualBlock(out_channels)
        self.res_block1 = ResidualBlock(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = F.max_pool2d(self.conv(x), 3, stride=2, padding=1)
        return self.res_block1(self.res_block0(x))


class ImpalaCNN(nn.Module):
    """Q-network on the IMPALA CNN (Espeholt et al. 2018): (B, 4, 84, 84) uint8 to (B, num_actions) float32."""

    def __init__(self, num_actions: int, hidden_units: int = 256) -> None:
        super().__init__()
        self.network = nn.Sequential(
            ConvSequence(4, 16),
            ConvSequence(16, 32),
            ConvSequence(32, 32),
            nn.Flatten(),
            nn.ReLU(),
            nn.Linear(3872, hidden_units),
            nn.ReLU(),
            nn.Linear(hidden_units, num_actions),
        )

    def forward(self, obs: Tensor, bf16: bool = False) -> Tensor:
        """Return the Q-values of all actions; `bf16` computes all layers except the last in bfloat16."""
        x = (obs.float() / 255.0).contiguous(memory_format=torch.channels_last)
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=bf16):
            x = self.network[:-1](x)
        return self.network[-1](x.float())  # float32: bfloat16's spacing near 1 is as large as Pong's action gaps


STUDENTS = {"impala256": ImpalaCNN, "impala512": functools.partial(ImpalaCNN, hidden_units=512), "nature": NatureCNN}


def load_teacher(args: Args, num_actions: int) -> tuple[NatureCNN, str]:
    """Load the teacher; returns it and its source: a local folder, the Hub, or the model in the box for this game.

    Raises `BadInput` for a teacher that cannot be fetched, is not a Nature CNN or plays another set of actions.
    """
    source = args.teacher_policy_hf_repo or teacher_source(args)
    teacher_network = NatureCNN(num_actions)
    with explained("--teacher-policy-hf-repo", source):
        path = fetch(source, f"{args.teacher_model_exp_name}.cleanrl_model", args.teacher_revision)
        load_into(teacher_network, path)  # weights only: nothing in the file is run
    return teacher_network, source


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


def crossed(step: int, num_steps: int, period: int) -> int:
    """Count the multiples of `period` in (step, step + num_steps]: how often something is due. Period 0 means never."""
    return (step + num_steps) // period - step // period if period else 0


def td_target(rewards: Tensor, discounts: Tensor, next_values: Tensor) -> Tensor:
    """Regression target r + discount * V(s'), all (B,); the discount is 0 after a termination."""
    return rewards + discounts * next_values


def distillation_loss(q_values: Tensor, teacher_q_values: Tensor, temperature: float) -> Tensor:
    """KL(softmax(Q_T / tau) || softmax(Q_S / tau)) of (B, A) values, averaged over the batch, without the factor tau^2."""
    student = F.log_softmax(q_values / temperature, dim=1)
    teacher = F.log_softmax(teacher_q_values / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def fading(returns: Sequence[float], teacher_return: float, random_return: float, step: int, decay_steps: int) -> float:
    """Return how much of the distillation remains, d in [0, 1], given the returns of the student's latest games.

    d = 1 - (G_S - random) / (G_T - random), clipped: 1 for a random student, 0 for one as good as its teacher. It is 1
    until ten games have ended, and 0 from `decay_steps` on.
    """
    # Differs from the paper: G_S is the mean of the latest ten training games, not of evaluation games, and d rises again
    # when the student gets worse; in the paper's code d stays 0 once it has reached 0.
    if step >= decay_steps:
        return 0.0
    if len(returns) < 10:
        return 1.0
    latest = float(np.mean(list(returns)[-10:]))
    return float(np.clip(1 - (latest - random_return) / (teacher_return - random_return), 0, 1))


def learning_rates(args: Args) -> tuple[float, float, float]:
    """Return the learning rates at the start and end of the offline phase, and online once the distillation has faded."""
    middle = args.learning_rate if args.offline_learning_rate_end is None else args.offline_learning_rate_end
    return args.learning_rate, middle, middle if args.learning_rate_end is None else args.learning_rate_end


def qdagger_loss(
    q_network: nn.Module,
    target_network: nn.Module,
    teacher_network: nn.Module,
    batch: Batch,
    coefficient: Tensor,
    args: Args,
    bf16: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return TD loss + coefficient * distillation loss of a batch, then TD loss, distillation loss and mean Q-value."""
    with torch.no_grad():
        next_q_values = target_network(batch.next_obs, bf16)
        chooser = q_network(batch.next_obs, bf16) if args.double_q else next_q_values
        next_values = next_q_values.gather(1, chooser.argmax(1, keepdim=True)).squeeze(1)
        target = td_target(batch.rewards, batch.discounts, next_values)
        teacher_q_values = teacher_network(batch.obs)
    q_values = q_network(batch.obs, bf16)
    q_pred = q_values.gather(1, batch.actions[:, None]).squeeze(1)
    q_loss = F.smooth_l1_loss(q_pred, target) if args.huber else F.mse_loss(q_pred, target)
    distill_loss = distillation_loss(q_values, teacher_q_values, args.temperature)
    return q_loss + coefficient * distill_loss, q_loss.detach(), distill_loss.detach(), q_pred.detach().mean()


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
    """Student, teacher and optimizer, and the functions that act and update, compiled on request."""

    KEPT = ("q_network", "target_network", "teacher_network", "optimizer")  # attributes that a checkpoint saves

    def __init__(self, args: Args, teacher_network: nn.Module, device: torch.device) -> None:
        self.device, num_actions = device, count_actions(args)
        # On a CPU torch.compile slows an IMPALA network down: docs/log.md.
        slower = device.type == "cpu" and args.student != "nature"
        self.bf16 = in_torch.use_bf16(args.bf16, device)
        self.compiled = args.compile and not slower and in_torch.can_compile(device)
        self.teacher_network = teacher_network
        self.q_network = STUDENTS[args.student](num_actions).to(device, memory_format=torch.channels_last)
        self.target_network = STUDENTS[args.student](num_actions).to(device, memory_format=torch.channels_last)
        self.target_network.load_state_dict(self.q_network.state_dict())
        in_torch.use_onednn(self.q_network, self.target_network, teacher_network)  # faster linear layers, on some CPUs
        # Tensors, so that compiled code sees them change.
        self.coefficient = torch.tensor(args.distill_coefficient, device=device)
        self.learning_rate = torch.tensor(args.learning_rate, device=device)
        kernels = {"fused": device.type != "mps", "capturable": device.type == "cuda"}
        self.optimizer = torch.optim.Adam(self.q_network.parameters(), self.learning_rate, eps=args.adam_eps, **kernels)
        policies = (functools.partial(greedy_actions, network) for network in (self.q_network, teacher_network))
        self.act, self.teacher_act = (torch.compile(act, dynamic=False) if self.compiled else act for act in policies)

    def updater(self, rb: ReplayBuffer, args: Args) -> Callable[[Tensor], Tensor]:
        """Make the update, a function from indices (batch_size,) in `rb` to metrics: sample, loss, gradient, step.

        It is compiled and warmed up here, outside of SPS. It waits for the device only to copy batches from a buffer in host
        memory. The metrics stay on the device: the values that the loss returns, then 1 as long as every loss was finite.
        """
        finite = torch.ones((), device=self.device)

        def loss_fn(batch: Batch) -> tuple[Tensor, ...]:
            networks = self.q_network, self.target_network, self.teacher_network
            return qdagger_loss(*networks, batch, self.coefficient, args, self.bf16)

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

    @torch.no_grad()
    def q_values(self, network: nn.Module, rb: ReplayBuffer, args: Args) -> np.ndarray:
        """Return the Q-values (8 * batch_size, A) that `network` gives a sample of the observations in `rb`."""
        (index,) = in_torch.to_device(rb.draw(8, args.batch_size, np.random.default_rng(0)).reshape(1, -1), rb.frames.device)
        return network(rb.sample(index).obs.to(self.device)).cpu().numpy()

    def set_rates(self, coefficient: float, learning_rate: float) -> None:
        """Set the distillation coefficient and Adam's learning rate, in place."""
        self.coefficient.fill_(coefficient)
        self.learning_rate.fill_(learning_rate)


@dataclass
class State:
    """The state of the run; its fields are exactly what a checkpoint holds. `enter` begins a phase."""

    learner: Learner
    scores: dict[str, Evaluation]  # of a random player and the teacher, then of the offline student
    phase: str = ""  # collection, offline or online
    step: int = 0  # done in this phase: environment steps over all environments; offline: updates
    rb: ReplayBuffer | None = None
    games: Games | None = None
    act_rng: np.random.Generator | None = None
    sample_rng: np.random.Generator | None = None
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=10))  # of the student's latest training games
    metrics: Tensor | None = None  # of the latest update
    best: Evaluation | None = None  # of the student's online evaluations


def enter(state: State, phase: str, args: Args, buffer_device: torch.device, num_saved: int = 0) -> None:
    """Begin a phase: new random states, new games (none offline) and, online, an empty buffer; weights and moments stay."""
    online = phase == "online"
    state.phase, state.step, state.metrics = phase, 0, None
    if state.games is not None:
        state.games.close()
    state.games = None if phase == "offline" else Games(args, 5 if online else 0, args.num_envs)
    if online or state.rb is None:
        state.rb = None  # free the old buffer before making the new one
        torch.cuda.empty_cache()  # does nothing without CUDA
        size = args.buffer_size if online else num_saved + args.teacher_steps
        state.rb = ReplayBuffer(size, args.num_envs, args.n_step, args.gamma, buffer_device)
    # Seeds by purpose: the teacher's games 0, exploration 1, sampling 2; the student's games 5, exploration 3, sampling 4.
    state.act_rng, state.sample_rng = (np.random.default_rng([args.seed, i]) for i in ((3, 4) if online else (1, 2)))
    if online:
        state.learner.sync(tau=1.0)  # the target network starts equal to the online network


def collect(state: State, args: Args, run: Run) -> None:
    """Fill the teacher's buffer: the same loop, in which the teacher acts and nothing learns."""
    learner, games, rb = state.learner, state.games, state.rb
    with in_torch.compiling(learner.compiled):
        learner.teacher_act(torch.as_tensor(games.obs, device=learner.device))
    run.begin("teacher's data", args.teacher_steps, state)
    while state.step < args.teacher_steps:
        obs = torch.as_tensor(games.obs, device=learner.device)
        epsilon = linear_schedule(args.teacher_start_e, args.teacher_end_e, args.teacher_steps, state.step)
        greedy = learner.teacher_act(obs).cpu().numpy()
        actions = games.send(epsilon_greedy(greedy, games.num_actions, epsilon, state.act_rng))

        step = games.recv()
        rb.add(obs, actions, step._replace(rewards=np.sign(step.rewards)))

        state.step += args.num_envs
        run.advance(state.step)
        if run.due(state.step):
            run.save(state)


def train_offline(state: State, args: Args, run: Run) -> None:
    """Train on the teacher's buffer: the loop without environments. A step is an update; the distillation does not fade."""
    learner, rb = state.learner, state.rb
    update = learner.updater(rb, args)
    lr_start, lr_end, _ = learning_rates(args)
    if state.step == 0:
        teacher_values = learner.q_values(learner.teacher_network, rb, args)
        warn_if_faint(teacher_values, args.temperature, args.distill_coefficient)
    run.begin("offline training", args.offline_steps, state, "updates")
    while state.step < args.offline_steps:
        if state.step and crossed(state.step - 1, 1, args.offline_eval_frequency):
            evaluate_student(state, args, run)

        learner.set_rates(args.distill_coefficient, linear_schedule(lr_start, lr_end, args.offline_steps, state.step))
        for index in in_torch.to_device(rb.draw(1, args.batch_size, state.sample_rng), rb.frames.device):
            state.metrics = update(index)
        if crossed(state.step, 1, args.offline_target_network_frequency):
            learner.sync(args.tau)

        state.step += 1
        if crossed(state.step - 1, 1, OFFLINE_LOG_FREQUENCY):
            run.advance(state.step)
            run.scalars(read_metrics(state.metrics, OFFLINE_METRICS), state.step)
        if run.due(state.step):
            read_metrics(state.metrics, OFFLINE_METRICS)  # raises an error if the run has diverged, so that it is not saved
            run.save(state)
    run.advance(state.step)
    read_metrics(state.metrics, OFFLINE_METRICS)  # checks the last losses too
    warn_if_blind(learner.q_values(learner.q_network, rb, args))
    run.save(state)


def train_online(state: State, args: Args, run: Run) -> None:
    """Continue online: the loop of dqn_atari.py, with a distillation that fades as the student nears its teacher."""
    learner, games, rb = state.learner, state.games, state.rb
    update = learner.updater(rb, args)
    _, lr_start, lr_end = learning_rates(args)
    goals = state.scores["teacher"].mean, state.scores["random"].mean
    exploration_steps = args.exploration_fraction * args.schedule_length
    run.begin("online training", args.total_timesteps, state)
    while state.step < args.total_timesteps:
        if state.step and crossed(state.step - args.num_envs, args.num_envs, args.eval_frequency):
            evaluate_student(state, args, run)

        # Act. Differs from the paper: FIRE after a lost life overrides the agent. The buffer stores what is played.
        # The exploration clock runs on from the offline phase: from 0 it would play the distilled student at random.
        obs = torch.as_tensor(games.obs, device=learner.device)
        epsilon = linear_schedule(args.start_e, args.end_e, exploration_steps, args.offline_steps + state.step)
        greedy = learner.act(obs).cpu().numpy()
        actions = games.send(epsilon_greedy(greedy, games.num_actions, epsilon, state.act_rng))

        # Learn from stored transitions while the games step in their threads.
        left = fading(state.returns, *goals, state.step, args.distill_decay_steps)
        if state.step >= args.learning_starts:
            learner.set_rates(args.distill_coefficient * left, lr_end + (lr_start - lr_end) * left)
            num_updates = crossed(state.step, args.num_envs, args.train_frequency)
            for index in in_torch.to_device(rb.draw(num_updates, args.batch_size, state.sample_rng), rb.frames.device):
                state.metrics = update(index)
            if syncs := crossed(state.step, args.num_envs, args.target_network_frequency):
                learner.sync(args.tau, syncs)

        # Receive and store. The buffer holds the signs of the rewards; reports use raw rewards.
        step = games.recv()
        rb.add(obs, actions, step._replace(rewards=np.sign(step.rewards)))
        state.returns.extend(episodic_return for episodic_return, _ in step.finished)

        # Record. Losses are read from the device only when they are logged, since each reading waits for the device.
        state.step += args.num_envs
        run.episodes(step.finished, state.step)
        run.advance(state.step)
        if crossed(state.step - args.num_envs, args.num_envs, LOG_FREQUENCY):
            run.scalars({"charts/epsilon": epsilon, "charts/SPS": run.rate()}, state.step)
            run.scalars({"charts/distill_coeff": args.distill_coefficient * left}, state.step)
            run.scalars(read_metrics(state.metrics, METRICS), state.step)
        if run.due(state.step):
            read_metrics(state.metrics, METRICS)  # raises an error if the run has diverged, so that it is not saved
            run.save(state)
    read_metrics(state.metrics, METRICS)  # checks the last losses too
    run.save(state)


def evaluate_student(state: State, args: Args, run: Run) -> Evaluation:
    """Play whole games with the current student, log their mean return, and save the weights of the best online result."""
    policy = player(state.learner.q_network, state.learner.device)
    with run.evaluating(state):
        result = evaluate(policy, Games(args, EVALUATION, args.eval_episodes), args.seed, args.eval_epsilon)
        if args.capture_video:
            film_game(policy, args, run.folder.name, f"{state.phase}-{state.step}")
    offline = state.phase == "offline"
    run.scalars({"charts/offline/avg_episodic_return" if offline else "eval/episodic_return": result.mean}, state.step)
    if not offline and (state.best is None or result.mean > state.best.mean):
        if args.save_model and args.eval_frequency:
            save_weights(state.learner.q_network.state_dict(), run.model_path.with_stem(f"{args.exp_name}-best"))
        state.best = result
    return result


def evaluate_teacher(act: Act, args: Args, source: str) -> dict[str, Evaluation]:
    """Score a random player and the teacher. Raises `BadInput` if the teacher is no better."""
    episodes, scores = args.teacher_eval_episodes, {}
    with working(f"evaluating the teacher and a random player, {episodes} game{'s' * (episodes > 1)} each"):
        for name, epsilon in (("random", 1.0), ("teacher", args.eval_epsilon)):
            scores[name] = evaluate(act, Games(args, EVALUATION, episodes), args.seed, epsilon)
    if scores["teacher"].mean <= scores["random"].mean:
        result = f"plays no better than random ({scores['teacher']} against {scores['random']})"
        raise BadInput("--teacher-policy-hf-repo", source, result)
    return scores


def player(network: nn.Module, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """Return the greedy policy for evaluation, uncompiled: NumPy observations (E, 4, 84, 84) to NumPy actions (E,)."""
    return lambda obs: greedy_actions(network, torch.as_tensor(obs, device=device)).cpu().numpy()


def load_player(args: Args, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Load the greedy policy of a model file on the CPU, for `cleanrl_utils.enjoy` to play. Raises `ModelError`."""
    q_network = STUDENTS[args.student](count_actions(args))
    load_into(q_network, path)
    return player(q_network, torch.device("cpu"))


def main(args: Args) -> Path:
    """Train, evaluate and save; returns the run folder. Raises `BadInput` before anything is written."""
    check(args)
    keep_freed_memory()
    device, buffer_device = in_torch.choose_devices(args)
    replay, num_saved = open_replay(args)
    for flag, size in (("--teacher-steps", num_saved + args.teacher_steps), ("--buffer-size", args.buffer_size)):
        in_torch.require_memory(flag, size, buffer_device)
    run = Run(args, Checkpoints(args))

    # Load and score the teacher: the distillation fades on the scale from a random player's return to the teacher's.
    torch.manual_seed(args.seed)
    in_torch.be_deterministic(args.torch_deterministic, device)
    teacher_network, source = load_teacher(args, count_actions(args))
    teacher_network = teacher_network.to(device, memory_format=torch.channels_last).requires_grad_(False)
    learner = Learner(args, teacher_network, device)
    threads = in_torch.choose_threads(args, learner.q_network, (4, 84, 84), learner.bf16)
    teacher = player(teacher_network, device)
    scores = {} if run.resumed else evaluate_teacher(teacher, args, source)
    least = ReplayBuffer.min_rows(args.n_step) * args.num_envs
    args.teacher_steps = flags.at_least(args, "teacher_steps", least - num_saved if args.offline_steps else 0)
    args.buffer_size = flags.at_least(args, "buffer_size", least)

    state = State(learner, scores)
    enter(state, run.saved_phase or first_phase(args), args, buffer_device, num_saved)
    if replay is not None and not run.resumed:
        load(state.rb, replay, args)
    about = in_torch.described(device) | {"compiled": learner.compiled, "bf16": learner.bf16, "threads": threads}
    with run.started(protocol(args) | about | {"teacher": public_name(source)}, state):
        if not run.resumed:
            run.record(scores)
            run.scalars({"charts/teacher/avg_episodic_return": scores["teacher"].mean}, 0)
            if args.capture_video:
                film_game(teacher, args, run.folder.name, "teacher")

        if state.phase == "collection":
            collect(state, args, run)
            enter(state, "offline", args, buffer_device)
        if state.phase == "offline":
            train_offline(state, args, run)
            if args.save_model:
                save_weights(learner.q_network.state_dict(), run.model_path.with_stem(f"{args.exp_name}-offline"))
            state.scores["offline student"] = evaluate_student(state, args, run)
            run.record(state.scores)
            enter(state, "online", args, buffer_device)
        train_online(state, args, run)
        if args.save_model:
            save_weights(learner.q_network.state_dict(), run.model_path)
        state.scores["online student"] = evaluate_student(state, args, run)
        run.finish({"steps": state.step, "offline_updates": args.offline_steps}, state.scores)
    if args.upload_model:
        push(run.folder, args.hf_entity)
    return run.folder


if __name__ == "__main__":
    flags.run(main, Args)
