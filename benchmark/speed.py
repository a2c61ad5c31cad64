"""Speed and memory of the Atari scripts beside their peers, in turn, in one run.

    python benchmark/speed.py                       # the table: 12 minutes on 2 cores
    python benchmark/speed.py --sweep num_envs      # how cost grows; or batch_size, or buffer_size

Every candidate is a process of its own that trains, warmed up and compiled. One runs for a few seconds while the others
stand still, then the next, and so round and round: what slows the machine slows them all. The scripts run as they are;
only their tracker and their environments are replaced by ones that keep the time. Prints a table and writes it with a
picture and all numbers (JSON); on a CPU or a CUDA machine. Needs the extras `atari`, `jax` and `plots`.
"""

from __future__ import annotations

import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from gated import SCRIPTS, Candidate, Turn, load, run_plain_loop, run_sample, run_script, run_stable_baselines3, work

from cleanrl_utils import atari, config
from cleanrl_utils.tracking import commit, hardware, versions

STAGES = ("act", "send", "learn", "wait", "store")
TWINS = ("dqn_atari", "dqn_atari_jax")
QDAGGERS = ("qdagger_dqn_atari_impalacnn", "qdagger_dqn_atari_jax_impalacnn")
SWEEPS = {
    "num_envs": [1, 2, 4, 8, 16, 32, 64, 128],
    "batch_size": [8, 32, 128, 512],
    "buffer_size": [10_000, 100_000, 1_000_000],
}


@dataclass
class Args:
    """Measure the Atari scripts and their peers in turn."""

    sweep: Literal["num_envs", "batch_size", "buffer_size"] | None = None
    """vary this flag of dqn_atari.py and its twin, in place of the table; buffer_size times a sample of a full buffer"""
    only: tuple[str, ...] = ()
    """candidates to measure, by parts of their names; default: all"""
    env_id: str = "PongNoFrameskip-v4"
    """Atari game; QDagger needs a teacher for it in the box"""
    num_envs: int = 8
    """games side by side in our scripts; the peers play one"""
    batch_size: int = 32
    """transitions per update"""
    train_frequency: int = 4
    """environment steps per update"""
    buffer_size: int = 20_000
    """transitions in each replay buffer"""
    rounds: int = 5
    """times that every candidate has its turn"""
    window: float = 6.0
    """seconds of a turn"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the networks live; auto: CUDA if there is one, else the CPU"""
    out: str = "speed"
    """files to write, without their endings .md, .json and .png"""


# --- What is measured ---


def table_candidates(args: Args) -> list[Candidate]:
    """Everything in the table; the first of a group is what its others are compared with."""
    dqn, offline, online = "DQN, steps/s", "QDagger offline, updates/s", "QDagger online, steps/s"
    quick = {"teacher_steps": 2000, "teacher_eval_episodes": 2, "eval_max_frames": 2000, "offline_eval_frequency": 0}
    phases = ((offline, "offline training", {"offline_steps": 10**8}), (online, "online training", {"offline_steps": 1}))
    graph = {"cuda_graph": True} if on_cuda(args) else {}
    return [
        Candidate("Stable-Baselines3", dqn, run_stable_baselines3),
        Candidate("plain loop", dqn, run_plain_loop),
        Candidate("dqn_atari.py", dqn, run_script, flags=graph),
        Candidate("dqn_atari.py, learning after stepping", dqn, run_script, flags=graph, overlap=False),
        Candidate("dqn_atari.py --bf16", dqn, run_script, flags=graph | {"bf16": True}),
        Candidate("dqn_atari_jax.py", dqn, run_script, TWINS[1]),
    ] + [
        Candidate(f"{script}.py{' --bf16' * bf16}", group, run_script, script, phase, quick | steps | {"bf16": bf16} | flags)
        for group, phase, steps in phases
        for script, bf16, flags in ((QDAGGERS[0], False, graph), (QDAGGERS[0], True, graph), (QDAGGERS[1], False, {}))
    ]


def sweep_candidates(flag: str) -> list[Candidate]:
    """The scripts of DQN at each value of a flag."""
    group, run = ("samples/s of a full buffer", run_sample) if flag == "buffer_size" else ("steps/s", run_script)
    return [
        Candidate(f"{script}.py, {value}", group, run, script, flags={flag: value})
        for value in SWEEPS[flag]
        for script in TWINS
    ]


def on_cuda(args: Args) -> bool:
    """Whether the candidates will run on a GPU: asked in another process, since asking takes its memory."""
    ask = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    return args.device == "cuda" or (args.device == "auto" and subprocess.run(ask).returncode == 0)


def measure(candidates: list[Candidate], args: Args) -> dict[tuple[str, str], list[Turn]]:
    """Turns of every candidate, by group and name: A B C, then C B A, and so on."""
    context, workers, turns = multiprocessing.get_context("spawn"), {}, {}
    for candidate in candidates:
        say(f"warming up {candidate.name} ({candidate.group})")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, candidate, args), daemon=True)
        process.start()
        theirs.close()
        key = (candidate.group, candidate.name)
        workers[key], turns[key] = (ours, process), []
        take_turn(key, ours, min(args.window, 2.0))  # the last of the warm-up
    for number in range(args.rounds):
        for key in workers if number % 2 == 0 else reversed(workers):
            turns[key].append(take_turn(key, workers[key][0], args.window))
            say(f"round {number + 1}: {turns[key][-1].rate:.1f} {key[0].split()[-1]}, {key[1]}")
    for _, process in workers.values():
        process.kill()
        process.join()
    return turns


def take_turn(key: tuple[str, str], connection: Connection, seconds: float) -> Turn:
    """Let a candidate run for `seconds`."""
    try:
        connection.send(seconds)
        return connection.recv()
    except (EOFError, ConnectionError):
        raise SystemExit(f"{key[1]} has ended; its error stands above") from None


def help_times(rounds: int) -> dict[str, float]:
    """Seconds until each script has shown its --help, the fastest of some calls."""
    times = {}
    for script in (*TWINS, *QDAGGERS, "dqn", "dqn_jax", "fqi"):
        command = [sys.executable, str(SCRIPTS / f"{script}.py"), "--help"]
        times[f"{script}.py"] = best_time(lambda command=command: subprocess.run(command, stdout=subprocess.DEVNULL), rounds)
    return times


def ceilings(cuda: bool) -> dict[str, float]:
    """What the machine can do at most: products and convolutions in GFLOP/s, a copy in GB/s."""
    import torch  # noqa: PLC0415 - when the candidates are gone: on a GPU it takes memory

    device, size = torch.device("cuda" if cuda else "cpu"), 8192 if cuda else 3000

    def timed(function: Callable[[], Any]) -> float:
        return best_time(lambda: (function(), torch.cuda.synchronize() if cuda else None), 20)

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        found[f"product of {size}-square matrices, {name}, GFLOP/s"] = 2e-9 * size**3 / timed(lambda a=a, b=b: a @ b)
        x, kernel = torch.randn(32, 64, 56, 56, device=device), torch.randn(64, 64, 3, 3, device=device)
        x, kernel = (y.to(dtype, memory_format=torch.channels_last) for y in (x, kernel))
        seconds = timed(lambda x=x, kernel=kernel: torch.conv2d(x, kernel, padding=1))
        found[f"3x3 convolution of 64 channels, {name}, GFLOP/s"] = 2e-9 * x.numel() * kernel[0].numel() / seconds
    source = torch.zeros(2**28, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    found["copy of 268 MB, GB/s"] = 2e-9 * len(source) / timed(lambda: target.copy_(source))
    return found


def best_time(function: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of some calls, after two."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times[2:])


def update_cost(script: str, batch_size: int) -> dict[str, float]:
    """GFLOP of an update, and the gigabytes that it must move at least: weights, gradients, moments, frames."""
    import torch  # noqa: PLC0415
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    module, cpu = load(script), torch.device("cpu")
    batch = module.ReplayBuffer(800, 8, 1, 0.99, cpu).sample(torch.zeros(batch_size, dtype=torch.int64))
    teacher = module.NatureCNN(6).requires_grad_(False)
    network = module.NatureCNN(6) if script == "dqn_atari" else module.ImpalaCNN(6)
    with FlopCounterMode(display=False) as counter:
        if script == "dqn_atari":
            loss = module.td_loss(network, network, batch, double_q=False, huber=False, bf16=False)[0]
        else:
            loss = module.qdagger_loss(network, network, teacher, batch, torch.ones(()), module.Args(), bf16=False)[0]
        loss.backward()
    weights, taught = (sum(values.numel() for values in module.parameters()) for module in (network, teacher))
    # Read by both forward passes and by the backward one, gradients written, and Adam's: four arrays read, three written.
    floats = 11 * weights + (0 if script == "dqn_atari" else taught)
    return {"GFLOP": counter.get_total_flops() / 1e9, "GB": (4 * floats + batch_size * 5 * 84 * 84) / 1e9}


# --- What is told ---


def rates_table(turns: dict[tuple[str, str], list[Turn]]) -> list[str]:
    """Rates, and their ratios to the first of the group round by round."""
    lines = ["| | | median (range) | ratio to the first (range) | cores | GB | GB on GPU |", "|---|---|---|---|---|---|---|"]
    first: dict[str, list[Turn]] = {}
    for (group, name), series in turns.items():
        first.setdefault(group, series)
        ratios = spread([ours.rate / theirs.rate for ours, theirs in zip(series, first[group], strict=True)], 2)
        cores = statistics.median(turn.cpu_seconds / turn.seconds for turn in series)
        peaks = f"{series[-1].memory:.2f} | {series[-1].device_memory:.2f}"
        rates = [turn.rate for turn in series]
        digits = 0 if statistics.median(rates) >= 100 else 1
        lines.append(f"| {group} | {name} | {spread(rates, digits)} | {ratios} | {cores:.2f} | {peaks} |")
    return lines


def stage_shares(turns: dict[tuple[str, str], list[Turn]]) -> dict[str, dict[str, float]]:
    """Shares of a vector step by stage, of the candidates that have stages."""
    shares = {}
    for (group, name), series in turns.items():
        if set(STAGES) <= set(series[-1].stages):
            seconds = {stage: statistics.median(turn.stages[stage] / turn.seconds for turn in series) for stage in STAGES}
            total = sum(seconds.values())
            shares[f"{group.split(',')[0]}: {name}"] = {stage: value / total for stage, value in seconds.items()}
    return shares


def update_table(turns: dict[tuple[str, str], list[Turn]], result: dict[str, Any], args: Args) -> list[str]:
    """Time of an update beside what it has to compute and to move."""
    lines = [
        "| an update of | ms | GFLOP | GFLOP/s | of the product's ceiling | of the convolution's | GB | GB/s |",
        "|---|" + "---|" * 7,
    ]
    for (group, name), series in turns.items():
        cost = result["updates"][TWINS[0] if group.startswith("DQN") else QDAGGERS[0]]
        per_update = 1 if group.endswith("updates/s") else args.train_frequency
        # JAX and GPUs are not waited for while they learn: there an update takes at most the whole of its steps.
        waited_for = "learn" in series[-1].stages and "jax" not in name and not series[-1].device_memory
        seconds = statistics.median(
            (turn.stages["learn"] if waited_for else turn.seconds) * per_update / turn.count for turn in series
        )
        dtype = "bfloat16" if "bf16" in name else "float32"
        tops = [value for key, value in result["ceilings"].items() if dtype in key]
        rate = cost["GFLOP"] / seconds
        label = name if waited_for or per_update == 1 else f"{name} and its {per_update} steps"
        shares = " | ".join(f"{rate / top:.0%}" for top in tops)
        lines.append(
            f"| {group.split(',')[0]}: {label} | {1e3 * seconds:.1f} | {cost['GFLOP']:.2f} | {rate:.0f} | {shares} "
            f"| {cost['GB']:.3f} | {cost['GB'] / seconds:.1f} |"
        )
    return lines


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def say(text: str) -> None:
    """Tell how far the measurement is."""
    print(text, file=sys.stderr)  # noqa: T201


def main(args: Args) -> None:
    """Measure, print, write."""
    config.require_positive(args, "num_envs", "batch_size", "train_frequency", "buffer_size", "rounds", "window")
    atari.game_settings(args.env_id)
    candidates = sweep_candidates(args.sweep) if args.sweep else table_candidates(args)
    chosen = [candidate for candidate in candidates if not args.only or any(part in candidate.name for part in args.only)]
    if not chosen:
        raise config.BadInput("--only", args.only, f"must be parts of: {', '.join(c.name for c in candidates)}")
    out = Path(f"{args.out}-{args.sweep}" if args.sweep else args.out)
    out.parent.mkdir(parents=True, exist_ok=True)

    turns = measure(chosen, args)
    result = {"commit": commit(), "hardware": hardware(), "versions": versions(), "settings": asdict(args)}
    result["turns"] = [
        {"group": group, "name": name, "turns": [asdict(turn) | {"rate": turn.rate} for turn in series]}
        for (group, name), series in turns.items()
    ]
    lines = rates_table(turns)
    if not args.sweep:
        result["stages"], result["help"], result["ceilings"] = stage_shares(turns), help_times(3), ceilings(on_cuda(args))
        result["updates"] = {script: update_cost(script, args.batch_size) for script in (TWINS[0], QDAGGERS[0])}
        lines += ["", "| share of a vector step | " + " | ".join(STAGES) + " |", "|---|---|---|---|---|---|"]
        for name, shares in result["stages"].items():
            lines.append(f"| {name} | " + " | ".join(f"{shares[stage]:.0%}" for stage in STAGES) + " |")
        lines += ["", *update_table(turns, result, args)]
        lines += ["", "| ceiling of the machine | |", "|---|---|"]
        lines += [f"| {name} | {value:.0f} |" for name, value in result["ceilings"].items()]
        lines += ["", "| --help | seconds |", "|---|---|"]
        lines += [f"| {name} | {value:.2f} |" for name, value in result["help"].items()]
    config.write_json(out.with_name(f"{out.name}.json"), result)
    out.with_name(f"{out.name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    from speed_pictures import draw_sweep, draw_table  # noqa: PLC0415 - an extra

    picture = out.with_name(f"{out.name}.png")
    draw_sweep(turns, args.sweep, picture) if args.sweep else draw_table(turns, result["stages"], picture)
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    config.run(main, Args)
