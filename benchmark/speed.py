"""Compare speed and memory of the Atari scripts with those of their peers, in turns, in one run.

    python benchmark/speed.py                       # the table: 15 minutes on 2 cores
    python benchmark/speed.py --sweep num_envs      # how cost grows; or batch_size, or buffer_size

Every candidate trains in a separate process, warmed up and compiled. One runs for a few seconds while the others pause,
then the next, round after round, so that what slows the machine slows them all. The scripts run as they are;
only their `Run` and their `Games` are replaced by ones that keep the time. Prints a table and writes it with a
picture and all numbers (JSON); on a CPU or a CUDA machine. Needs the extras `atari`, `jax` and `plots`.
"""

from __future__ import annotations

import importlib.util
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

from gated import (
    SCRIPTS,
    Candidate,
    Turn,
    load,
    run_plain_loop,
    run_sample,
    run_script,
    run_stable_baselines3,
    run_update,
    work,
)

from cleanrl_utils.devices.common import keep_freed_memory
from cleanrl_utils.errors import BadInput
from cleanrl_utils.evals import atari
from cleanrl_utils.files import write_json
from cleanrl_utils.flags import check_ranges, run
from cleanrl_utils.ranges import Positive, PositiveFloat
from cleanrl_utils.record import commit, hardware, versions

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
    num_envs: Positive = 8
    """games side by side in our scripts; the peers play one"""
    batch_size: Positive = 32
    """transitions per update"""
    train_frequency: Positive = 4
    """environment steps per update"""
    buffer_size: Positive = 20_000
    """transitions in each replay buffer"""
    rounds: Positive = 5
    """times that every candidate has its turn"""
    window: PositiveFloat = 6.0
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
    graph, bf16 = {"cuda_graph": args.device == "cuda"}, {"bf16": True}
    candidates = [
        Candidate("Stable-Baselines3", dqn, run_stable_baselines3),
        Candidate("Stable-Baselines3, 8 games", dqn, run_stable_baselines3, num_envs=8),
        Candidate("plain loop", dqn, run_plain_loop),
        Candidate("dqn_atari.py", dqn, run_script, flags=graph),
        Candidate("dqn_atari.py, learning after stepping", dqn, run_script, flags=graph, overlap=False),
        Candidate("dqn_atari.py --num-envs 1", dqn, run_script, flags=graph | {"num_envs": 1}),
        Candidate("dqn_atari.py --bf16", dqn, run_script, flags=graph | bf16),
        Candidate("dqn_atari_jax.py", dqn, run_script, TWINS[1]),
        Candidate("dqn_atari.py", "DQN's update, updates/s", run_update, phase="update", flags=graph),
        Candidate("dqn_atari.py --bf16", "DQN's update, updates/s", run_update, phase="update", flags=graph | bf16),
        Candidate("dqn_atari_jax.py", "DQN's update, updates/s", run_update, TWINS[1], phase="update"),
    ]
    for group, phase, steps in phases:
        for script, flags in ((QDAGGERS[0], graph), (QDAGGERS[0], graph | bf16), (QDAGGERS[1], {})):
            name = f"{script}.py{' --bf16' * ('bf16' in flags)}"
            candidates.append(Candidate(name, group, run_script, script, phase, quick | steps | flags))
    in_bf16 = has_bf16(args.device)
    return [candidate for candidate in candidates if in_bf16 or "bf16" not in candidate.flags]


def sweep_candidates(args: Args) -> list[Candidate]:
    """The scripts of DQN at each value of a flag."""
    sampling = args.sweep == "buffer_size"
    group, run = ("samples of a full buffer, samples/s", run_sample) if sampling else ("DQN, steps/s", run_script)
    graph = {"cuda_graph": args.device == "cuda"}
    return [
        Candidate(
            f"{script}.py, {value}", group, run, script, "sample" if sampling else "training", flags | {args.sweep: value}
        )
        for value in SWEEPS[args.sweep]
        for script, flags in zip(TWINS, (graph, {}), strict=True)
    ]


def device_of(args: Args) -> str:
    """The device's name, `auto` resolved, so that both frameworks have the same one."""
    import torch  # noqa: PLC0415 - not in the candidates' processes, which import this file

    found = "cuda" if torch.cuda.is_available() else "cpu"
    if args.device == "cuda" and found == "cpu":
        raise BadInput("--device", "cuda", "is not available: torch finds none on this machine")
    return found if args.device == "auto" else args.device


def has_bf16(device: str) -> bool:
    """Whether the device computes in bfloat16."""
    import torch  # noqa: PLC0415

    from cleanrl_utils.devices.in_torch import use_bf16  # noqa: PLC0415

    return use_bf16(True, torch.device(device))


def measure(candidates: list[Candidate], args: Args, turns: dict[tuple[str, str], list[Turn]]) -> None:
    """Fill in the turns of every candidate, by group and name: A B C, then C B A, and so on."""
    context, workers = multiprocessing.get_context("spawn"), {}
    for candidate in candidates:
        say(f"warming up {candidate.name} ({candidate.group})")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, candidate, args), daemon=True)
        process.start()
        theirs.close()
        if take_turn(ours, min(args.window, 2.0)) is None:  # the last of the warm-up
            say(f"left out: {candidate.name} ({candidate.group}) has ended; its error stands above")
            continue
        key = (candidate.group, candidate.name)
        workers[key], turns[key] = (ours, process), []
    for number in range(args.rounds):
        for key in workers if number % 2 == 0 else reversed(workers):
            turn = take_turn(workers[key][0], args.window)
            if turn is None:
                raise SystemExit(f"{key[1]} ({key[0]}) has ended; its error stands above")
            turns[key].append(turn)
            say(f"round {number + 1}: {turn.rate:.1f} {key[0].split()[-1]}, {key[1]}")
    for _, process in workers.values():
        process.kill()
        process.join()


def take_turn(connection: Connection, seconds: float) -> Turn | None:
    """Let a candidate run for `seconds`; None if it has ended, or said nothing for ten minutes."""
    try:
        connection.send(seconds)
        return connection.recv() if connection.poll(600) else None
    except (EOFError, ConnectionError):
        return None


def help_times() -> dict[str, float]:
    """Seconds until each script has shown its --help, median of three calls."""
    times = {}
    for script in (*TWINS, *QDAGGERS, "dqn", "dqn_jax", "fqi"):
        command = [sys.executable, str(SCRIPTS / f"{script}.py"), "--help"]
        shown = call_times(lambda command=command: subprocess.run(command, stdout=subprocess.DEVNULL, check=True), 3)
        times[f"{script}.py"] = statistics.median(shown)
    return times


def ceilings(device_name: str) -> dict[str, float]:
    """What the machine can do at most, the fastest of 20 calls: products and convolutions in GFLOP/s, a copy in GB/s."""
    import torch  # noqa: PLC0415 - when the candidates are gone: on a GPU it takes memory

    keep_freed_memory()
    device, cuda = torch.device(device_name), device_name == "cuda"
    size = 8192 if cuda else 3000

    def timed(function: Callable[[], Any]) -> float:
        return min(call_times(lambda: (function(), torch.cuda.synchronize() if cuda else None), 20))

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


def call_times(function: Callable[[], Any], calls: int) -> list[float]:
    """Seconds of each of some calls, after one."""
    times = []
    for _ in range(calls + 1):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return times[1:]


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
    lines = ["| | | median (range) | ratio to the group's first (range) | cores | GB | GB on GPU |", "|---|" + "---|" * 6]
    first: dict[str, list[Turn]] = {}
    for (group, name), series in turns.items():
        first.setdefault(group, series)
        ratios = spread([ours.rate / theirs.rate for ours, theirs in zip(series, first[group], strict=True)], 2)
        if not series:
            continue
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


def update_table(turns: dict[tuple[str, str], list[Turn]], result: dict[str, Any]) -> list[str]:
    """Time of an update, measured without environments, beside what it has to compute and to move."""
    lines = ["| an update of | ms | GFLOP | GFLOP/s | of the product | of the convolution | GB | GB/s | of the copy |"]
    lines.append("|---|" + "---|" * 8)
    for (group, name), series in turns.items():
        if not group.endswith("updates/s"):
            continue
        cost = result["updates"][TWINS[0] if group.startswith("DQN") else QDAGGERS[0]]
        per_second, dtype = statistics.median(turn.rate for turn in series), "bfloat16" if "--bf16" in name else "float32"
        product, convolution = (value for key, value in result["ceilings"].items() if dtype in key)
        copy = next(value for key, value in result["ceilings"].items() if "copy" in key)
        computed, moved = cost["GFLOP"] * per_second, cost["GB"] * per_second
        lines.append(
            f"| {name} | {1e3 / per_second:.1f} | {cost['GFLOP']:.2f} | {computed:.0f} | {computed / product:.0%} "
            f"| {computed / convolution:.0%} | {cost['GB']:.3f} | {moved:.1f} | {moved / copy:.0%} |"
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
    check_ranges(args)
    atari.game_settings(args.env_id)
    for package in ("matplotlib", "stable_baselines3", "jax"):
        if importlib.util.find_spec(package) is None:
            raise BadInput("speed.py", package, "is not installed: it needs the extras atari, jax and plots")
    args.device = device_of(args)
    candidates = sweep_candidates(args) if args.sweep else table_candidates(args)
    chosen = [candidate for candidate in candidates if not args.only or any(part in candidate.name for part in args.only)]
    if not chosen:
        raise BadInput("--only", args.only, f"must be parts of: {', '.join(c.name for c in candidates)}")
    out = Path(f"{args.out}-{args.sweep}" if args.sweep else args.out)
    out.parent.mkdir(parents=True, exist_ok=True)

    result: dict[str, Any] = {"commit": commit(), "hardware": hardware(), "versions": versions()}
    result["settings"] = {name: value for name, value in asdict(args).items() if name != "out"}
    turns: dict[tuple[str, str], list[Turn]] = {}
    try:
        measure(chosen, args, turns)
    finally:  # what has been measured is kept, whatever comes
        result["turns"] = [
            {"group": group, "name": name, "turns": [asdict(turn) | {"rate": turn.rate} for turn in series]}
            for (group, name), series in turns.items()
        ]
        write_json(out.with_name(f"{out.name}.json"), result)
    lines = rates_table(turns)
    if not args.sweep:
        result["stages"], result["help"], result["ceilings"] = stage_shares(turns), help_times(), ceilings(args.device)
        result["updates"] = {script: update_cost(script, args.batch_size) for script in (TWINS[0], QDAGGERS[0])}
        lines += ["", "| share of a vector step | " + " | ".join(STAGES) + " |", "|---|" + "---|" * len(STAGES)]
        for name, shares in result["stages"].items():
            lines.append(f"| {name} | " + " | ".join(f"{shares[stage]:.0%}" for stage in STAGES) + " |")
        lines += ["", *update_table(turns, result)]
        lines += ["", "| ceiling of the machine | |", "|---|---|"]
        lines += [f"| {name} | {value:.0f} |" for name, value in result["ceilings"].items()]
        lines += ["", "| --help | seconds |", "|---|---|"]
        lines += [f"| {name} | {value:.2f} |" for name, value in result["help"].items()]
    print("\n".join(lines))  # noqa: T201
    write_json(out.with_name(f"{out.name}.json"), result)
    out.with_name(f"{out.name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    from speed_pictures import draw_sweep, draw_table  # noqa: PLC0415 - an extra

    picture = out.with_name(f"{out.name}.png")
    draw_sweep(turns, args.sweep, picture) if args.sweep else draw_table(turns, result["stages"], picture)


if __name__ == "__main__":
    run(main, Args)
