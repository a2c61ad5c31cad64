"""Training loops that stand still between turns: the candidates of speed.py, each in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cleanrl_utils.tracking import Tracker

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
        if self.wanted is None and self.count < 0:  # warming up
            return
        if self.wanted is not None and time.perf_counter() - self.started < self.wanted:
            return
        synchronize()
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
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
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


class GatedTracker(Tracker):
    """Reports nowhere; hands the progress of one phase to the gate."""

    def __init__(self, gate: Gate, phase: str) -> None:
        super().__init__()
        self.gate, self.gated_phase, self.folder = gate, phase, Path(tempfile.gettempdir())

    def phase(self, name: str, total: int, unit: str = "steps") -> None:
        """Begin a phase."""
        super().phase(name, total, unit)
        self.name, self.before = name, 0

    def advance(self, done: int) -> None:
        """Tell the gate what was done since the last call."""
        if self.name == self.gated_phase:
            self.gate.mark("store")
            self.gate.step(done - self.before)
        self.before = done


class GatedEnvs:
    """Environments that mark the stages of a vector step; without overlap, `send` waits until they have stepped."""

    def __init__(self, envs: Any, gate: Gate, overlap: bool) -> None:
        self.envs, self.gate, self.overlap = envs, gate, overlap

    def __getattr__(self, name: str) -> Any:
        return getattr(self.envs, name)

    def send(self, actions: np.ndarray) -> None:
        """What went before was acting; what follows is learning."""
        self.gate.mark("act")
        self.envs.send(actions)
        if not self.overlap:
            self.received = self.envs.recv()
        self.gate.mark("send")

    def recv(self) -> Any:
        """What went before was learning; what follows is storing."""
        self.gate.mark("learn")
        received = self.envs.recv() if self.overlap else self.received
        self.gate.mark("wait")
        return received


def work(connection: Connection, candidate: Candidate, args: Any) -> None:
    """The process of a candidate."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the GPU's memory is shared with the other candidates
    candidate.run(Gate(connection, warm_up=20 if candidate.phase == "offline training" else 1500), candidate, args)


def load(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def script_args(module: ModuleType, candidate: Candidate, args: Any) -> Any:
    """The script's flags: the common settings, and those of the candidate."""
    common = {name: getattr(args, name) for name in ("env_id", "num_envs", "batch_size", "train_frequency", "buffer_size")}
    # The rate of exploration is the same from the first step on: Stable-Baselines3 does not run its network to explore.
    endless = {"total_timesteps": ENDLESS, "learning_starts": 1000, "start_e": 0.01, "device": args.device}
    return module.Args(**(common | endless | candidate.flags))


def run_script(gate: Gate, candidate: Candidate, args: Any) -> None:
    """Train with one of our scripts: its own `main`, whose tracker and environments keep the time."""
    module = load(candidate.script)
    make_envs = module.make_envs

    def make_gated_envs(*arguments: Any, **keywords: Any) -> tuple:
        envs, *rest = make_envs(*arguments, **keywords)
        return GatedEnvs(envs, gate, candidate.overlap), *rest

    module.make_envs = make_gated_envs
    module.start_run = lambda *_: GatedTracker(gate, candidate.phase)
    module.main(script_args(module, candidate, args))


def run_stable_baselines3(gate: Gate, candidate: Candidate, args: Any) -> None:  # noqa: ARG001
    """Train with Stable-Baselines3's DQN, as its zoo does on Atari: one game behind its wrappers."""
    from stable_baselines3 import DQN  # noqa: PLC0415 - each process loads its own framework
    from stable_baselines3.common.env_util import make_atari_env  # noqa: PLC0415
    from stable_baselines3.common.vec_env import VecFrameStack  # noqa: PLC0415

    agent = DQN(
        "CnnPolicy",
        VecFrameStack(make_atari_env(args.env_id, n_envs=1, seed=1), 4),
        learning_rate=1e-4,
        buffer_size=args.buffer_size,
        learning_starts=1000,
        batch_size=args.batch_size,
        train_freq=args.train_frequency,
        target_update_interval=1000,
        exploration_initial_eps=0.01,
        exploration_final_eps=0.01,
        device=args.device,
    )
    agent.learn(ENDLESS, callback=lambda *_: gate.step(1) is None)


def run_plain_loop(gate: Gate, candidate: Candidate, args: Any) -> None:
    """One game behind gymnasium's wrappers, whole stacks in NumPy, an eager update: what one writes first."""
    import gymnasium as gym  # noqa: PLC0415
    import torch  # noqa: PLC0415

    module = load(candidate.script)
    device, _ = module.choose_devices(script_args(module, candidate, args))
    env = gym.make(args.env_id, frameskip=1)
    env = gym.wrappers.FrameStackObservation(gym.wrappers.AtariPreprocessing(env), 4)
    num_actions = int(env.action_space.n)
    q_network, target_network = (module.NatureCNN(num_actions).to(device) for _ in range(2))
    optimizer = torch.optim.Adam(q_network.parameters(), lr=1e-4)
    stacks = np.zeros((2, args.buffer_size, 4, 84, 84), np.uint8)  # observations, next observations
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


def run_sample(gate: Gate, candidate: Candidate, args: Any) -> None:
    """Draw and gather batches of a full replay buffer."""
    module, num_envs, rng = load(candidate.script), 100, np.random.default_rng(1)
    flags = script_args(module, candidate, args)
    _, device = module.choose_devices(flags)
    rb = module.ReplayBuffer(flags.buffer_size, num_envs, 1, 0.99, device)
    on_jax, none = candidate.script.endswith("_jax"), np.zeros(num_envs, bool)
    to_device = module.jax.device_put if on_jax else module.torch.as_tensor
    for _ in range(rb.num_rows):
        obs = rng.integers(256, size=(num_envs, 4, 84, 84), dtype=np.uint8)
        rb.add(to_device(obs, device=device), np.zeros(num_envs, np.int64), np.zeros(num_envs), none, none, none)
    while True:
        (index,) = rb.draw(1, flags.batch_size, rng)
        batch = rb.sample(index if on_jax else module.to_device(index, device))
        if on_jax:
            module.jax.block_until_ready(batch)
        elif device.type == "cuda":
            module.torch.cuda.synchronize()
        gate.step(1)
