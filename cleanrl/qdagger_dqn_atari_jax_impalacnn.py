# /// script
# requires-python = ">=3.11"
# dependencies = ["qdagger[atari,jax]"]
# tool.uv.sources.qdagger = { path = "..", editable = true }
# ///
"""QDagger on Atari in JAX (Agarwal et al. 2022, https://arxiv.org/abs/2206.01626): a student that starts from a teacher.

Twin in PyTorch: qdagger_dqn_atari_impalacnn.py. Documentation: docs/rl-algorithms/qdagger.md.
Start reading at `main`: evaluate the teacher, collect with it, train a student offline on TD loss + distillation,
then continue online while the distillation fades. Each phase is the loop of dqn_atari_jax.py with one thing changed.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array, lax

from cleanrl_utils import flags
from cleanrl_utils.console import working
from cleanrl_utils.devices import in_jax
from cleanrl_utils.devices.common import keep_freed_memory, read_metrics
from cleanrl_utils.errors import BadInput
from cleanrl_utils.evals.atari import MAX_FRAMES, SeededGames, count_actions, film_game, game_settings, protocol
from cleanrl_utils.evals.play import Act, Evaluation, evaluate, require_video
from cleanrl_utils.evals.teacher import warn_if_blind, warn_if_faint
from cleanrl_utils.huggingface import check_upload, push
from cleanrl_utils.models.files import load_params, save_params
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

    exp_name: FileName = "qdagger_dqn_atari_jax_impalacnn"
    """name of this experiment, in the run folder and in the model file"""
    xla_deterministic: bool = True
    """ask XLA for deterministic kernels on a GPU"""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """device of the networks; auto: CUDA if there is a GPU, else the CPU"""
    buffer_device: Literal["auto", "cpu", "cuda"] = "auto"
    """device of the replay buffer; auto: the device of the networks"""
    compile: bool = True
    """no effect: XLA always compiles (the flag exists so that one configuration serves both twins)"""
    cuda_graph: bool = False
    """no effect: XLA makes CUDA graphs by itself (refused without CUDA, as in the twin)"""
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
    teacher_model_exp_name: FileName = "dqn_atari_jax"
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

    num_actions: int

    @nn.compact
    def __call__(self, obs: Array, bf16: bool = False) -> Array:
        """Return the Q-values of all actions; `bf16` computes all layers except the last in bfloat16."""
        dtype = jnp.bfloat16 if bf16 else jnp.float32
        x = obs.transpose(0, 2, 3, 1).astype(jnp.float32) / 255.0  # (B, 84, 84, 4): XLA's convolutions want channels last
        x = nn.relu(nn.Conv(32, (8, 8), strides=4, padding="VALID", dtype=dtype)(x))
        x = nn.relu(nn.Conv(64, (4, 4), strides=2, padding="VALID", dtype=dtype)(x))
        x = nn.relu(nn.Conv(64, (3, 3), strides=1, padding="VALID", dtype=dtype)(x))
        x = nn.relu(nn.Dense(512, dtype=dtype)(x.reshape(len(x), -1)))
        # float32, and no TF32: bfloat16's spacing near 1 is as large as Pong's action gaps
        return nn.Dense(self.num_actions, precision="highest")(x.astype(jnp.float32))


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), (B, H, W, channels) to the same shape."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply the block."""
        y = nn.Conv(self.channels, (3, 3), padding=1, dtype=self.dtype)(nn.relu(x))
        return x + nn.Conv(self.channels, (3, 3), padding=1, dtype=self.dtype)(nn.relu(y))


def max_pool(x: Array) -> Array:
    """3x3 max-pool, stride 2, padding 1: (B, H, W, C) to (B, ceil(H/2), ceil(W/2), C). One axis after the other.

    Uses slices and comparisons, since XLA's CPU backend takes ten times as long for the gradient of its own pooling. Of
    several equal maxima, the first gets the gradient, as in torch.
    """
    for axis in (2, 1):
        size = (x.shape[axis] + 1) // 2
        x = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)], constant_values=-jnp.inf)
        first, second, third = (lax.slice_in_dim(x, i, i + 2 * size - 1, 2, axis) for i in range(3))
        x = jnp.where(first >= second, first, second)
        x = jnp.where(x >= third, x, third)
    return x


class ConvSequence(nn.Module):
    """Convolution, max-pool and two residual blocks: (B, H, W, C) to (B, ceil(H/2), ceil(W/2), channels)."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply the block."""
        x = max_pool(nn.Conv(self.channels, (3, 3), padding=1, dtype=self.dtype)(x))
        for _ in range(2):
            x = ResidualBlock(self.channels, self.dtype)(x)
        return x


class ImpalaCNN(nn.Module):
    """Q-network on the IMPALA CNN (Espeholt et al. 2018): (B, 4, 84, 84) uint8 to (B, num_actions) float32."""

    num_actions: int
    hidden_units: int = 256

    @nn.compact
    def __call__(self, obs: Array, bf16: bool = False) -> Array:
        """Return the Q-values of all actions; `bf16` computes all layers except the last in bfloat16."""
        dtype = jnp.bfloat16 if bf16 else jnp.float32
        x = obs.transpose(0, 2, 3, 1).astype(jnp.float32) / 255.0  # (B, 84, 84, 4): XLA's convolutions want channels last
        for channels in (16, 32, 32):
            x = ConvSequence(channels, dtype)(x)
        x = nn.relu(nn.Dense(self.hidden_units, dtype=dtype)(nn.relu(x.reshape(len(x), -1))))
        # float32, and no TF32: bfloat16's spacing near 1 is as large as Pong's action gaps
        return nn.Dense(self.num_actions, precision="highest")(x.astype(jnp.float32))


STUDENTS = {"impala256": ImpalaCNN, "impala512": functools.partial(ImpalaCNN, hidden_units=512), "nature": NatureCNN}


def load_teacher(args: Args, num_actions: int) -> tuple[NatureCNN, Any, str]:
    """Load the teacher; returns it, its parameters and its source: a local folder, the Hub, or the box for this game.

    Raises `BadInput` for a teacher that cannot be fetched, is not a Nature CNN or plays another set of actions.
    """
    source = args.teacher_policy_hf_repo or teacher_source(args)
    teacher_network = NatureCNN(num_actions)
    shapes = jax.eval_shape(teacher_network.init, jax.random.key(0), np.zeros((1, 4, 84, 84), np.uint8))
    with explained("--teacher-policy-hf-repo", source):
        path = fetch(source, f"{args.teacher_model_exp_name}.cleanrl_model", args.teacher_revision)
        params = load_params(teacher_network, shapes, path)  # weights only: nothing in the file is run
    return teacher_network, params, source


# --- Replay buffer ---


class Batch(NamedTuple):
    """Transitions: observations (B, 4, 84, 84) uint8, the rest (B,)."""

    obs: Array
    actions: Array
    rewards: Array  # sum of the discounted rewards of the steps really taken, up to n
    next_obs: Array
    discounts: Array  # gamma to the power of those steps, 0 after a termination


class Rings(NamedTuple):
    """The arrays that the replay buffer keeps on its device, with one entry per transition."""

    frames: Array  # (size, 1764) uint32, 4 pixels in each: single bytes gather slowly
    actions: Array
    rewards: Array
    terminations: Array
    truncations: Array
    ages: Array  # frames since the reset, 3 at most


class ReplayBuffer:
    """Transitions of N environments, kept as time-major rings of single frames (7.06 kB per transition).

    Row t holds, per environment, the newest frame of the observation that the action was chosen on, the action, and
    its result. Because the step after the end of a game resets it, the observation after row t is always in row t+1,
    even after a truncation. A stack is rebuilt from rows t-3..t; frames older than the game (`ages`) are zeros.
    """

    KEPT = ("rings", "valid", "age", "head", "num_stored", "num_valid")  # attributes that a checkpoint saves

    def __init__(self, size: int, num_envs: int, n_step: int, gamma: float, device: jax.Device) -> None:
        self.num_rows, self.num_envs, self.n_step = size // num_envs, num_envs, n_step
        if self.num_rows < self.min_rows(n_step):
            raise ValueError(f"{size} transitions are too few for {num_envs} environments")
        rows = self.num_rows * num_envs
        self.rings = Rings(
            frames=jnp.zeros((rows, 84 * 84 // 4), dtype=jnp.uint32, device=device),
            actions=jnp.zeros(rows, dtype=jnp.uint8, device=device),
            rewards=jnp.zeros(rows, dtype=jnp.float32, device=device),
            terminations=jnp.zeros(rows, dtype=jnp.bool, device=device),
            truncations=jnp.zeros(rows, dtype=jnp.bool, device=device),
            ages=jnp.zeros(rows, dtype=jnp.uint8, device=device),
        )
        self.valid = np.zeros((self.num_rows, num_envs), dtype=bool)  # False: a reset, no transition starts here

        self.gamma, self.device = gamma, device
        self.head = self.num_stored = self.num_valid = 0
        self.age = np.zeros(num_envs, dtype=np.uint8)

        # Compile `store` here, on a row of zeros, so that compilation does not count in SPS.
        obs = jnp.zeros((num_envs, 4, 84, 84), dtype=jnp.uint8, device=device)
        blank = (np.zeros(num_envs, dtype=ring.dtype) for ring in self.rings[1:])
        self.rings = store(self.rings, 0, obs, *blank)

    @staticmethod
    def min_rows(n_step: int) -> int:
        """Return the fewest rows with which a full ring has a row to draw: it needs 3 rows before it and n after it."""
        return n_step + 4

    def add(self, obs: Array, actions: np.ndarray, step: Step) -> None:
        """Store one vector step: observations, actions and results; a reset is stored as an invalid row."""
        values = actions.astype(np.uint8), step.rewards.astype(np.float32), step.terminations, step.truncations, self.age
        self.rings = store(self.rings, self.head * self.num_envs, jax.device_put(obs, self.device), *values)
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

    def sample(self, index: np.ndarray) -> Batch:
        """Return the transitions at `index` (B,) or (K, B), on the buffer's device."""
        return gather(self.rings, index, self.num_envs, self.n_step, self.gamma)


@functools.partial(jax.jit, donate_argnums=0)
def store(rings: Rings, row: int, obs: Array, *values: Array) -> Rings:
    """Write one vector step at `row` and return the rings; they are donated, so this happens in place."""
    pixels = obs[:, -1].reshape(len(obs), -1, 4)
    write = functools.partial(lax.dynamic_update_slice_in_dim, start_index=row, axis=0)
    return Rings(*map(write, rings, (lax.bitcast_convert_type(pixels, jnp.uint32), *values)))


@functools.partial(jax.jit, static_argnames=("num_envs", "n_step", "gamma"))
def gather(rings: Rings, index: Array, num_envs: int, n_step: int, gamma: float) -> Batch:
    """Return the transitions at `index` (..., B). The rings are only read, not copied."""
    num_rows, gammas = len(rings.frames) // num_envs, gamma ** jnp.arange(n_step + 1, dtype=jnp.float32)
    rows, envs = index[..., None] // num_envs, index[..., None] % num_envs
    window = (rows + jnp.arange(-3, n_step + 1)) % num_rows * num_envs + envs  # (..., B, 4 + n): rows t-3 .. t+n
    frames = rings.frames.at[window].get(mode="promise_in_bounds")

    steps = window[..., 3:-1]  # (..., B, n): rows t .. t+n-1
    terminated = rings.terminations[steps]
    going_on = (~(terminated | rings.truncations[steps])).cumprod(-1)
    taken = jnp.concatenate([jnp.ones_like(going_on[..., :1]), going_on[..., :-1]], -1)  # 1 up to the first end
    num_taken = taken.sum(-1, keepdims=True)  # 1 .. n
    next_rows = jnp.take_along_axis(window, num_taken + 3, -1)
    return Batch(
        obs=stacked(frames, jnp.zeros_like(num_taken), rings.ages[window[..., 3:4]]),
        actions=rings.actions[index].astype(jnp.int32),
        rewards=(taken * gammas[:-1] * rings.rewards[steps]).sum(-1),
        next_obs=stacked(frames, num_taken, rings.ages[next_rows]),
        discounts=gammas[num_taken[..., 0]] * ~(terminated & taken.astype(bool)).any(-1),
    )


def stacked(frames: Array, start: Array, ages: Array) -> Array:
    """Stack frames start..start+3 of each window (..., B, 4 + n, 1764); frames older than the game become zeros."""
    position = jnp.arange(4)
    stack = jnp.take_along_axis(frames, (start + position)[..., None], -2)
    stack = stack * (3 - position <= ages)[..., None]
    return lax.bitcast_convert_type(stack, jnp.uint8).reshape(*stack.shape[:-2], 4, 84, 84)


# --- The maths ---


def linear_schedule(start: float, end: float, duration: float, step: int) -> float:
    """Interpolate linearly from `start` at step 0 to `end` at step `duration`; stay at `end` after that."""
    return end if step >= duration else start + (end - start) * step / duration


def crossed(step: int, num_steps: int, period: int) -> int:
    """Count the multiples of `period` in (step, step + num_steps]: how often something is due. Period 0 means never."""
    return (step + num_steps) // period - step // period if period else 0


def td_target(rewards: Array, discounts: Array, next_values: Array) -> Array:
    """Regression target r + discount * V(s'), all (B,); the discount is 0 after a termination."""
    return rewards + discounts * next_values


def distillation_loss(q_values: Array, teacher_q_values: Array, temperature: float) -> Array:
    """KL(softmax(Q_T / tau) || softmax(Q_S / tau)) of (B, A) values, averaged over the batch, without the factor tau^2."""
    student = jax.nn.log_softmax(q_values / temperature, axis=1)
    teacher = jax.nn.log_softmax(teacher_q_values / temperature, axis=1)
    return (jnp.exp(teacher) * (teacher - student)).sum(1).mean()


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
    coefficient: Array,
    args: Args,
    bf16: bool,
) -> tuple[Array, Array, Array, Array]:
    """Return TD loss + coefficient * distillation loss of a batch, then TD loss, distillation loss and mean Q-value."""
    next_q_values = target_network(batch.next_obs, bf16)
    chooser = q_network(batch.next_obs, bf16) if args.double_q else next_q_values
    next_values = jnp.take_along_axis(next_q_values, chooser.argmax(1, keepdims=True), 1).squeeze(1)
    target = lax.stop_gradient(td_target(batch.rewards, batch.discounts, next_values))
    teacher_q_values = teacher_network(batch.obs)
    q_values = q_network(batch.obs, bf16)
    q_pred = jnp.take_along_axis(q_values, batch.actions[:, None], 1).squeeze(1)
    q_loss = (optax.huber_loss if args.huber else optax.squared_error)(q_pred, target).mean()
    distill_loss = distillation_loss(q_values, teacher_q_values, args.temperature)
    return q_loss + coefficient * distill_loss, q_loss, distill_loss, q_pred.mean()


def epsilon_greedy(greedy_actions: np.ndarray, num_actions: int, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Replace each action (N,) by a uniformly random one with probability `epsilon`."""
    explore = rng.random(len(greedy_actions)) < epsilon
    return np.where(explore, rng.integers(num_actions, size=len(greedy_actions)), greedy_actions)


# --- Act, update, sync ---


class QState(NamedTuple):
    """The state of learning, which an update reads and replaces: trees of arrays on the device."""

    params: Any
    target_params: Any
    opt_state: optax.OptState
    finite: Array  # 1 while every loss was finite


def greedy_actions(q_network: nn.Module, obs: Array) -> Array:
    """argmax_a Q(obs, a), (N,), in float32."""
    return q_network(obs).argmax(1)


def make_learn(
    loss_fn: Callable[..., tuple[Array, ...]], optimizer: optax.GradientTransformation, scan: bool
) -> Callable[..., tuple[QState, Array]]:
    """Make a function from state, buffer, indices (K, B), learning rate and further inputs of the loss to (state, metrics).

    A call does not wait for its result, and reuses the memory of the state that it is given. `loss_fn` maps params, target
    params, batch and its further inputs to a loss and other values. The metrics (len(loss_fn's outputs) + 1,) are those of
    the last update and stay on the device; the last one is 1 as long as every loss was finite. `scan` runs the K updates in
    one call, for accelerators.
    """

    def update(q_state: QState, batch: Batch, learning_rate: Array, *needs: Any) -> tuple[QState, Array]:
        def with_others(params: Any) -> tuple[Array, list[Array]]:
            loss, *others = loss_fn(params, q_state.target_params, batch, *needs)
            return loss, others

        (loss, others), gradients = jax.value_and_grad(with_others, has_aux=True)(q_state.params)
        directions, opt_state = optimizer.update(gradients, q_state.opt_state, q_state.params)
        params = optax.apply_updates(q_state.params, jax.tree.map(lambda x: -learning_rate * x, directions))
        finite = q_state.finite * jnp.isfinite(loss)
        return QState(params, q_state.target_params, opt_state, finite), jnp.stack([loss, *others, finite])

    @functools.partial(jax.jit, donate_argnums=0)
    def scanned(q_state: QState, batches: Batch, *rest: Any) -> tuple[QState, Array]:
        q_state, metrics = lax.scan(lambda q_state, batch: update(q_state, batch, *rest), q_state, batches)
        return q_state, metrics[-1]

    update_once = jax.jit(update, donate_argnums=0, compiler_options={} if scan else in_jax.cpu_options())

    def learn(q_state: QState, rb: ReplayBuffer, indices: np.ndarray, *rest: Any) -> tuple[QState, Array]:
        device = q_state.finite.device  # nothing is copied unless the buffer lives in host memory
        if scan:
            return scanned(q_state, jax.device_put(rb.sample(indices), device), *rest)
        for index in indices:
            q_state, metrics = update_once(q_state, jax.device_put(rb.sample(index), device), *rest)
        return q_state, metrics

    return learn


@jax.jit
def sync(q_state: QState, tau: float) -> QState:
    """Move the target network towards the online network by the fraction `tau`."""
    return q_state._replace(target_params=optax.incremental_update(q_state.params, q_state.target_params, tau))


# --- The run ---


class Learner:
    """Student, teacher and optimizer, and the functions that act and learn."""

    KEPT = ("q_state", "teacher_params")  # attributes that a checkpoint saves

    def __init__(self, args: Args, teacher_network: nn.Module, teacher_params: Any, device: jax.Device) -> None:
        self.device, self.bf16 = device, in_jax.use_bf16(args.bf16, device)
        self.teacher_network, self.teacher_params = teacher_network, jax.device_put(teacher_params, device)
        self.q_network = STUDENTS[args.student](count_actions(args))
        params = jax.jit(self.q_network.init)(jax.random.key(args.seed), np.zeros((1, 4, 84, 84), np.uint8))
        optimizer = optax.scale_by_adam(eps=args.adam_eps)  # the update applies the learning rate
        q_state = QState(params, jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.ones(()))
        self.q_state = jax.device_put(q_state, device)

        def loss_fn(params: Any, target: Any, batch: Batch, coefficient: Array, teacher: Any) -> tuple[Array, ...]:
            networks = self.q_network.bind(params), self.q_network.bind(target), teacher_network.bind(teacher)
            return qdagger_loss(*networks, batch, coefficient, args, self.bf16)

        self.act = jax.jit(lambda params, obs: greedy_actions(self.q_network.bind(params), obs))
        self.teacher_act = jax.jit(lambda params, obs: greedy_actions(teacher_network.bind(params), obs))
        # XLA runs convolutions inside a loop ten times slower on the CPU.
        self.learn = make_learn(loss_fn, optimizer, scan=device.platform != "cpu")

    def warm_up(self, rb: ReplayBuffer, args: Args, *num_updates: int) -> None:
        """Compile, on a copy of the state, so that compilation does not count in SPS."""
        with working("compiling"):
            self.act(self.q_state.params, jax.device_put(np.zeros((args.num_envs, 4, 84, 84), np.uint8), self.device))
            for num_games in (args.eval_episodes, 1):
                player(self.act, self.q_state.params)(np.zeros((num_games, 4, 84, 84), np.uint8))
            for number in {*num_updates} - {0}:
                copy = sync(jax.tree.map(jnp.copy, self.q_state), args.tau)
                blank = np.zeros((number, args.batch_size), np.int64)
                jax.block_until_ready(self.learn(copy, rb, blank, 0.0, 0.0, self.teacher_params))

    def update(self, rb: ReplayBuffer, indices: np.ndarray, learning_rate: float, coefficient: float) -> Array:
        """Learn from the transitions at `indices` (K, B); returns the metrics of the last update."""
        self.q_state, metrics = self.learn(self.q_state, rb, indices, learning_rate, coefficient, self.teacher_params)
        return metrics

    def q_values(self, network: nn.Module, rb: ReplayBuffer, args: Args) -> np.ndarray:
        """Return the Q-values (8 * batch_size, A) that `network` gives a sample of the observations in `rb`."""
        index = jnp.asarray(rb.draw(8, args.batch_size, np.random.default_rng(0)).ravel())
        return np.asarray(network(jax.device_put(rb.sample(index).obs, self.device)))

    def sync(self, tau: float, times: int = 1) -> None:
        """Move the target network towards the online network by the fraction `tau`, `times` times."""
        self.q_state = sync(self.q_state, 1 - (1 - tau) ** times)


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
    metrics: Array | None = None  # of the latest update
    best: Evaluation | None = None  # of the student's online evaluations


def enter(state: State, phase: str, args: Args, buffer_device: jax.Device, num_saved: int = 0) -> None:
    """Begin a phase: new random states, new games (none offline) and, online, an empty buffer; weights and moments stay."""
    online = phase == "online"
    state.phase, state.step, state.metrics = phase, 0, None
    if state.games is not None:
        state.games.close()
    state.games = None if phase == "offline" else Games(args, 5 if online else 0, args.num_envs)
    if online or state.rb is None:
        state.rb = None  # free the old buffer before making the new one
        size = args.buffer_size if online else num_saved + args.teacher_steps
        state.rb = ReplayBuffer(size, args.num_envs, args.n_step, args.gamma, buffer_device)
    # Seeds by purpose: the teacher's games 0, exploration 1, sampling 2; the student's games 5, exploration 3, sampling 4.
    state.act_rng, state.sample_rng = (np.random.default_rng([args.seed, i]) for i in ((3, 4) if online else (1, 2)))
    if online:
        state.learner.sync(tau=1.0)  # the target network starts equal to the online network


def collect(state: State, args: Args, run: Run) -> None:
    """Fill the teacher's buffer: the same loop, in which the teacher acts and nothing learns."""
    learner, games, rb = state.learner, state.games, state.rb
    with working("compiling"):
        learner.teacher_act(learner.teacher_params, jax.device_put(games.obs, learner.device))
    run.begin("teacher's data", args.teacher_steps, state)
    while state.step < args.teacher_steps:
        obs = jax.device_put(games.obs, learner.device)
        epsilon = linear_schedule(args.teacher_start_e, args.teacher_end_e, args.teacher_steps, state.step)
        greedy = np.asarray(learner.teacher_act(learner.teacher_params, obs))
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
    learner.warm_up(rb, args, 1)
    lr_start, lr_end, _ = learning_rates(args)
    if state.step == 0:
        teacher_values = learner.q_values(learner.teacher_network.bind(learner.teacher_params), rb, args)
        warn_if_faint(teacher_values, args.temperature, args.distill_coefficient)
    run.begin("offline training", args.offline_steps, state, "updates")
    while state.step < args.offline_steps:
        if state.step and crossed(state.step - 1, 1, args.offline_eval_frequency):
            evaluate_student(state, args, run)

        learning_rate = linear_schedule(lr_start, lr_end, args.offline_steps, state.step)
        indices = rb.draw(1, args.batch_size, state.sample_rng)
        if len(indices):
            state.metrics = learner.update(rb, indices, learning_rate, args.distill_coefficient)
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
    warn_if_blind(learner.q_values(learner.q_network.bind(learner.q_state.params), rb, args))
    run.save(state)


def train_online(state: State, args: Args, run: Run) -> None:
    """Continue online: the loop of dqn_atari_jax.py, with a distillation that fades as the student nears its teacher."""
    learner, games, rb = state.learner, state.games, state.rb
    learner.warm_up(rb, args, args.num_envs // args.train_frequency, -(-args.num_envs // args.train_frequency))
    _, lr_start, lr_end = learning_rates(args)
    goals = state.scores["teacher"].mean, state.scores["random"].mean
    exploration_steps = args.exploration_fraction * args.schedule_length
    run.begin("online training", args.total_timesteps, state)
    while state.step < args.total_timesteps:
        if state.step and crossed(state.step - args.num_envs, args.num_envs, args.eval_frequency):
            evaluate_student(state, args, run)

        # Act. Differs from the paper: FIRE after a lost life overrides the agent. The buffer stores what is played.
        # The exploration clock runs on from the offline phase: from 0 it would play the distilled student at random.
        obs = jax.device_put(games.obs, learner.device)
        epsilon = linear_schedule(args.start_e, args.end_e, exploration_steps, args.offline_steps + state.step)
        greedy = np.asarray(learner.act(learner.q_state.params, obs))
        actions = games.send(epsilon_greedy(greedy, games.num_actions, epsilon, state.act_rng))

        # Learn from stored transitions while the games step in their threads.
        left = fading(state.returns, *goals, state.step, args.distill_decay_steps)
        if state.step >= args.learning_starts:
            learning_rate = lr_end + (lr_start - lr_end) * left
            num_updates = crossed(state.step, args.num_envs, args.train_frequency)
            indices = rb.draw(num_updates, args.batch_size, state.sample_rng)
            if len(indices):
                state.metrics = learner.update(rb, indices, learning_rate, args.distill_coefficient * left)
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
    policy = player(state.learner.act, state.learner.q_state.params)
    with run.evaluating(state):
        result = evaluate(policy, Games(args, EVALUATION, args.eval_episodes), args.seed, args.eval_epsilon)
        if args.capture_video:
            film_game(policy, args, run.folder.name, f"{state.phase}-{state.step}")
    offline = state.phase == "offline"
    run.scalars({"charts/offline/avg_episodic_return" if offline else "eval/episodic_return": result.mean}, state.step)
    if not offline and (state.best is None or result.mean > state.best.mean):
        if args.save_model and args.eval_frequency:
            save_params(state.learner.q_state.params, run.model_path.with_stem(f"{args.exp_name}-best"))
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


def player(act: Callable[[Any, Array], Array], params: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return the greedy policy for evaluation: NumPy observations (E, 4, 84, 84) to NumPy actions (E,)."""
    return lambda obs: np.asarray(act(params, obs))


def load_player(args: Args, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Load the greedy policy of a model file, for `cleanrl_utils.enjoy` to play. Raises `ModelError`."""
    q_network = STUDENTS[args.student](count_actions(args))
    params = load_params(q_network, q_network.init(jax.random.key(0), np.zeros((1, 4, 84, 84), np.uint8)), path)
    return player(jax.jit(lambda params, obs: greedy_actions(q_network.bind(params), obs)), params)


def main(args: Args) -> Path:
    """Train, evaluate and save; returns the run folder. Raises `BadInput` before anything is written."""
    check(args)
    keep_freed_memory()
    threads = in_jax.choose_threads(args)
    device, buffer_device = in_jax.choose_devices(args)
    replay, num_saved = open_replay(args)
    for flag, size in (("--teacher-steps", num_saved + args.teacher_steps), ("--buffer-size", args.buffer_size)):
        in_jax.require_memory(flag, size, buffer_device)
    run = Run(args, Checkpoints(args))

    # Load and score the teacher: the distillation fades on the scale from a random player's return to the teacher's.
    teacher_network, teacher_params, source = load_teacher(args, count_actions(args))
    learner = Learner(args, teacher_network, teacher_params, device)
    teacher = player(learner.teacher_act, learner.teacher_params)
    scores = {} if run.resumed else evaluate_teacher(teacher, args, source)
    least = ReplayBuffer.min_rows(args.n_step) * args.num_envs
    args.teacher_steps = flags.at_least(args, "teacher_steps", least - num_saved if args.offline_steps else 0)
    args.buffer_size = flags.at_least(args, "buffer_size", least)

    state = State(learner, scores)
    enter(state, run.saved_phase or first_phase(args), args, buffer_device, num_saved)
    if replay is not None and not run.resumed:
        load(state.rb, replay, args)
    about = in_jax.described(device) | {"compiled": True, "bf16": learner.bf16, "threads": threads}
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
                save_params(learner.q_state.params, run.model_path.with_stem(f"{args.exp_name}-offline"))
            state.scores["offline student"] = evaluate_student(state, args, run)
            run.record(state.scores)
            enter(state, "online", args, buffer_device)
        train_online(state, args, run)
        if args.save_model:
            save_params(learner.q_state.params, run.model_path)
        state.scores["online student"] = evaluate_student(state, args, run)
        run.finish({"steps": state.step, "offline_updates": args.offline_steps}, state.scores)
    if args.upload_model:
        push(run.folder, args.hf_entity)
    return run.folder


if __name__ == "__main__":
    flags.run(main, Args)
