"""Training loops that pause between turns: the candidates of speed.py, each in a separate process."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cleanrl_utils.devices.common import keep_freed_memory
from cleanrl_utils.devices.cores import num_cores
from cleanrl_utils.ranges import Positive
from cleanrl_utils.run.run import Run
from cleanrl_utils.run.sinks import TensorBoard
from cleanrl_utils.run.tracker import Tracker
from cleanrl_utils.seeds import EVALUATION

SCRIPTS = Path(__file__).parents[1] / "cleanrl"
ENDLESS = 10**8


@dataclass(frozen=True)
class Candidate:
    """What is measured: a script (or a peer) with flags of its own, in one phase of its run."""

    name: str
    group: str
    run: Callable[[Gate, Candidate, Any], None]
    script: str = "dqn_atari"
    phase: str = "training"
    flags: dict[str, Any] = field(default_factory=dict)
    overlap: bool = True
    """learn while the environments step; else after they have"""
    num_envs: int = 1
    """games side by side, of a peer"""


@dataclass
class Turn:
    """What a candidate did in its turn."""

    count: int
    """environment steps; updates or samples where there is no environment"""
    seconds: float
    stages: dict[str, float]
    """seconds by stage of a vector step"""
    cpu_seconds: float
    memory: float
    """peak so far of the process on the host, in gigabytes"""
    device_memory: float
    """peak so far on the GPU, in gigabytes"""

    @property
    def rate(self) -> float:
        """Steps, updates or samples per second."""
        return self.count / self.seconds


class Gate:
    """Lets a loop run while it is its turn, and keeps the time. The first turn comes after `warm_up` counts."""

    def __init__(self, connection: Connection, warm_up: int) -> None:
        self.connection, self.count, self.wanted = connection, -warm_up, None
        self.stages: dict[str, float] = {}
        self.last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """The time since the last mark belongs to `stage`."""
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self.last
        self.last = now

    def step(self, count: int) -> None:
        """`count` more is done; returns when the loop may go on."""
        self.count += count
        if self.count < 0:  # warming up
            return
        if self.wanted is not None and time.perf_counter() - self.started < self.wanted:
            return
        synchronize()
        self.mark("synchronize")
        if self.wanted is not None:
            self.connection.send(self.turn())
        try:
            self.wanted = self.connection.recv()  # stands still until its next turn
        except EOFError:  # the measuring process is gone
            sys.exit()
        self.count, self.stages = 0, {}
        self.cpu_started = time.process_time()
        self.started = self.last = time.perf_counter()

    def turn(self) -> Turn:
        """What was done since the turn began."""
        seconds, cpu_seconds = time.perf_counter() - self.started, time.process_time() - self.cpu_started
        unit = 1 if sys.platform == "darwin" else 1024
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
        return Turn(self.count, seconds, self.stages, cpu_seconds, memory, device_memory())


def synchronize() -> None:
    """Wait for what was dispatched, so that nothing computes out of turn."""
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(sys.modules["jax"].live_arrays())
    elif sys.modules["torch"].cuda.is_initialized():
        sys.modules["torch"].cuda.synchronize()


def device_memory() -> float:
    """Peak memory on the GPU of the framework that this process uses, in gigabytes; 0 without a GPU."""
    if "jax" in sys.modules:
        return (sys.modules["jax"].local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9
    cuda = sys.modules["torch"].cuda
    return cuda.max_memory_allocated() / 1e9 if cuda.is_initialized() else 0.0


class GatedRun(Run):
    """A run that keeps nothing and logs to a temporary folder; hands the progress of one phase to the gate."""

    def __init__(self, gate: Gate, phase: str, args: Any) -> None:
        super().__init__(args)
        self.gate, self.gated_phase, self.before = gate, phase, 0

    @contextlib.contextmanager
    def started(self, *_: Any) -> Iterator[None]:
        """Begin, without a run folder."""
        self.folder = Path(tempfile.mkdtemp(prefix="speed-"))
        self.tracker = Tracker(self.folder, [TensorBoard(self.folder)])
        self.tracker.bar.stop()  # what is measured is told by the process that measures
        yield

    def begin(self, name: str, total: int, state: Any = None, unit: str = "steps") -> None:
        """Begin a phase."""
        super().begin(name, total, state, unit)
        self.before = state.step

    def advance(self, step: int) -> None:
        """Tell the gate what was done since the last call."""
        super().advance(step)
        if self.tracker.name == self.gated_phase:
            self.gate.mark("store")
            self.gate.step(step - self.before)
        self.before = step


def gated(games: type, gate: Gate, overlap: bool) -> type:
    """The script's `Games`, in training marking the stages of a vector step; without overlap, `send` waits for the step."""

    class GatedGames(games):
        def __init__(self, args: Any, purpose: int, num_games: int) -> None:
            super().__init__(args, purpose, num_games)
            self.mark = (lambda _: None) if purpose == EVALUATION else gate.mark

        def send(self, actions: np.ndarray) -> np.ndarray:
            """What went before was acting; what follows is learning."""
            self.mark("act")
            played = super().send(actions)
            if not overlap:
                self.received = super().recv()
            self.mark("send")
            return played

        def recv(self) -> Any:
            """What went before was learning; what follows is storing."""
            self.mark("learn")
            step = super().recv() if overlap else self.received
            self.mark("wait")
            return step

    return GatedGames


def work(connection: Connection, candidate: Candidate, args: Any) -> None:
    """The process of a candidate."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the GPU's memory is shared with the other candidates
    os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))  # the same in every turn and for every candidate
    candidate.run(
        Gate(connection, warm_up=1500 if candidate.phase in ("training", "online training") else 20), candidate, args
    )


def load(name: str) -> ModuleType:
    """A script as a module."""
    return importlib.import_module(f"cleanrl.{name}")


def devices(module: ModuleType) -> ModuleType:
    """The helper that knows the devices of a script's framework."""
    return module.in_torch if hasattr(module, "in_torch") else module.in_jax


@dataclass
class NoiseArgs:
    """Settings of an update that is measured without environments, on a buffer of noise: what `script_args` reads."""

    batch_size: Positive = 32
    """transitions per update"""
    env_id: str = "PongNoFrameskip-v4"
    """Atari game; no matter, as the buffer holds noise"""
    num_envs: Positive = 8
    """games whose transitions the buffer holds"""
    train_frequency: Positive = 4
    """of the script; no matter here"""


def script_args(module: ModuleType, candidate: Candidate, args: Any) -> Any:
    """The script's flags: the common settings, and those of the candidate."""
    common = {name: getattr(args, name) for name in ("env_id", "num_envs", "batch_size", "train_frequency", "buffer_size")}
    # The rate of exploration is the same from the first step on: Stable-Baselines3 does not run its network to explore.
    endless = {"total_timesteps": ENDLESS, "learning_starts": 1000, "start_e": 0.01, "device": args.device}
    return module.Args(**(common | endless | candidate.flags))


def run_script(gate: Gate, candidate: Candidate, args: Any) -> None:
    """Train with one of our scripts: its own `main`, whose run and games keep the time."""
    module = load(candidate.script)
    module.Games = gated(module.Games, gate, candidate.overlap)
    module.Run = lambda args, _: GatedRun(gate, candidate.phase, args)
    module.main(script_args(module, candidate, args))


def run_stable_baselines3(gate: Gate, candidate: Candidate, args: Any) -> None:
    """Train with Stable-Baselines3's DQN, as its zoo does on Atari: games behind its wrappers, one after the other."""
    from stable_baselines3 import DQN  # noqa: PLC0415 - each process loads its own framework
    from stable_baselines3.common.env_util import make_atari_env  # noqa: PLC0415
    from stable_baselines3.common.vec_env import VecFrameStack  # noqa: PLC0415

    num_envs = candidate.num_envs
    envs = make_atari_env(args.env_id, n_envs=num_envs, seed=1, env_kwargs={"frameskip": 1})  # its wrapper skips
    agent = DQN(
        "CnnPolicy",
        VecFrameStack(envs, 4),
        learning_rate=1e-4,
        buffer_size=args.buffer_size,
        learning_starts=1000,
        batch_size=args.batch_size,
        train_freq=max(args.train_frequency // num_envs, 1),  # in vector steps
        gradient_steps=max(num_envs // args.train_frequency, 1),
        target_update_interval=1000,
        exploration_initial_eps=0.01,
        exploration_final_eps=0.01,
        device=args.device,
    )
    for stacks in (agent.replay_buffer.observations, agent.replay_buffer.next_observations):
        stacks.fill(0)  # takes its memory at once, as our buffers do
    agent.learn(ENDLESS, callback=lambda *_: gate.step(num_envs) is None)


def run_plain_loop(gate: Gate, candidate: Candidate, args: Any) -> None:
    """One game behind gymnasium's wrappers, whole stacks in NumPy, an eager update: what one writes first."""
    import gymnasium as gym  # noqa: PLC0415
    import torch  # noqa: PLC0415

    module = load(candidate.script)
    device, _ = devices(module).choose_devices(script_args(module, candidate, args))
    env = gym.make(args.env_id, frameskip=1)
    env = gym.wrappers.FrameStackObservation(gym.wrappers.AtariPreprocessing(env), 4)
    num_actions = int(env.action_space.n)
    q_network, target_network = (module.NatureCNN(num_actions).to(device) for _ in range(2))
    optimizer = torch.optim.Adam(q_network.parameters(), lr=1e-4)
    stacks = np.full((2, args.buffer_size, 4, 84, 84), 0, np.uint8)  # observations, next observations; takes its memory
    actions, rewards, discounts = (np.zeros(args.buffer_size, dtype) for dtype in (np.int64, np.float32, np.float32))
    rng = np.random.default_rng(1)
    obs, _ = env.reset(seed=1)
    for step in range(ENDLESS):
        with torch.no_grad():
            action = int(q_network(torch.as_tensor(obs, device=device)[None]).argmax())
        action = int(rng.integers(num_actions)) if rng.random() < 0.01 else action
        next_obs, reward, terminated, truncated, _ = env.step(action)
        row = step % args.buffer_size
        stacks[:, row] = obs, next_obs
        actions[row], rewards[row], discounts[row] = action, np.sign(reward), 0.99 * (not terminated)
        obs = env.reset()[0] if terminated or truncated else next_obs
        if step >= 1000 and step % args.train_frequency == 0:
            index = rng.integers(min(step, args.buffer_size), size=args.batch_size)
            fields = (stacks[0, index], actions[index], rewards[index], stacks[1, index], discounts[index])
            batch = module.Batch(*(torch.as_tensor(values, device=device) for values in fields))
            loss, _ = module.td_loss(q_network, target_network, batch, double_q=False, huber=False, bf16=False)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % 1000 == 0:
            target_network.load_state_dict(q_network.state_dict())
        gate.step(1)


def filled_buffer(module: ModuleType, flags: Any, rng: np.random.Generator) -> Any:
    """A full replay buffer of noise, on the device that the flags name."""
    _, device = devices(module).choose_devices(flags)
    rb, none = module.ReplayBuffer(flags.buffer_size, flags.num_envs, 1, 0.99, device), np.zeros(flags.num_envs, bool)
    step = module.Step(np.zeros(flags.num_envs), none, none, none, finished=[])
    to_device = module.torch.as_tensor if hasattr(module, "torch") else module.jax.device_put
    noise = [rng.integers(256, size=(flags.num_envs, 4, 84, 84), dtype=np.uint8) for _ in range(100)]
    for row in range(rb.num_rows):
        obs = to_device(noise[row % len(noise)], device=device)
        rb.add(obs, np.zeros(flags.num_envs, np.int64), step)
    return rb


def run_sample(gate: Gate, candidate: Candidate, args: Any) -> None:
    """Draw and gather batches of a full replay buffer, compiled as in the script."""
    module, rng = load(candidate.script), np.random.default_rng(1)
    flags = script_args(module, candidate, args)
    rb = filled_buffer(module, flags, rng)
    if hasattr(module, "torch"):
        compiled = module.torch.compile(rb.sample, dynamic=False)
        sample = lambda index: compiled(module.in_torch.to_device(index, rb.frames.device))  # noqa: E731
    else:
        sample = rb.sample
    while True:
        batch = sample(rb.draw(1, flags.batch_size, rng)[0])
        synchronize_batch(batch)
        gate.step(1)


def synchronize_batch(batch: Any) -> None:
    """Wait for one batch."""
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(batch)
    else:
        synchronize()


def torch_update(module: ModuleType, flags: Any, rb: Any, compiled: bool) -> Callable[[Any], Any]:
    """The update of a torch script's learner, on networks of its default kinds."""
    device = rb.frames.device
    taught = [module.NatureCNN(6).to(device).requires_grad_(False)] if hasattr(module, "ImpalaCNN") else []
    learner = module.Learner(flags, *taught, device)
    learner.compiled = compiled  # an IMPALA network would not be, on a CPU
    return learner.updater(rb, flags)


def run_update(gate: Gate, candidate: Candidate, args: Any) -> None:
    """Draw and update on a full replay buffer, without environments: DQN's update by itself, made as `main` makes it."""
    module, rng = load(candidate.script), np.random.default_rng(1)
    flags = script_args(module, candidate, args)
    keep_freed_memory()
    rb = filled_buffer(module, flags, rng)
    if hasattr(module, "torch"):
        update = torch_update(module, flags, rb, compiled=True)
        while True:
            update(module.in_torch.to_device(rb.draw(1, flags.batch_size, rng), rb.frames.device)[0])
            gate.step(1)
    device, _ = devices(module).choose_devices(flags)
    jax, network, optimizer = module.jax, module.NatureCNN(6), module.optax.scale_by_adam()
    params = network.init(jax.random.key(0), np.zeros((1, 4, 84, 84), np.uint8))
    state = (params, jax.tree.map(module.jnp.copy, params), optimizer.init(params), module.jnp.ones(()))
    q_state = jax.device_put(module.QState(*state), device)

    def jax_loss_fn(params: Any, target_params: Any, batch: Any) -> Any:
        return module.td_loss(network.bind(params), network.bind(target_params), batch, False, False, flags.bf16)

    learn = module.make_learn(jax_loss_fn, optimizer, scan=device.platform != "cpu")
    while True:
        q_state, _ = learn(q_state, rb, rb.draw(1, flags.batch_size, rng), 1e-4)
        gate.step(1)
