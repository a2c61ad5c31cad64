"""Show where the time of one update goes, with torch's profiler: `python benchmark/profile_update.py --bf16`.

Operations are summed by kind, in milliseconds per update; on a CPU by the time in the operation itself. Profiling itself
takes time too: compare shares, not sums.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from gated import Candidate, NoiseArgs, filled_buffer, load, run_update, script_args, torch_update

from cleanrl_utils import flags
from cleanrl_utils.devices import in_torch
from cleanrl_utils.devices.common import keep_freed_memory

KINDS = {
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("mkldnn_convolution", "cudnn_convolution"),
    "linear layers": ("addmm", "aten::mm", "qdagger::product", "_linear_pointwise"),
    "max-pooling": ("max_pool2d",),
    "Adam": ("_fused_adam", "Optimizer"),
    "elementwise, casts, copies": (
        *("CompiledFxGraph", "cpp_fused", "triton_", "clamp_min", "threshold", "aten::add", "aten::mul", "aten::div"),
        *("copy_", "fill_"),
    ),
    "gathering frames": ("index_select", "aten::index"),
}


@dataclass
class Args(NoiseArgs):
    """Profile an update of the PyTorch scripts."""

    script: Literal["dqn_atari", "qdagger_dqn_atari_impalacnn"] = "dqn_atari"
    """whose update"""
    compile: bool = True
    """with torch.compile"""
    bf16: bool = False
    """in bfloat16"""
    updates: int = 50
    """updates to profile"""
    buffer_size: int = 20_000
    """transitions in the buffer"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the networks live; auto: CUDA if there is one, else the CPU"""


def main(args: Args) -> None:
    """Profile and print."""
    keep_freed_memory()
    module, rng = load(args.script), np.random.default_rng(1)
    flags = script_args(module, Candidate("", "", run_update, flags={"bf16": args.bf16}), args)
    device, _ = in_torch.choose_devices(flags)
    rb = filled_buffer(module, flags, rng)
    update = torch_update(module, flags, rb, args.compile)

    def run(updates: int) -> None:
        for _ in range(updates):
            update(in_torch.to_device(rb.draw(1, args.batch_size, rng), device)[0])

    run(20)
    with torch.profiler.profile() as profiler:
        run(args.updates)
    on_cuda = device.type == "cuda"
    sums = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), "the rest")
        sums[kind] += microseconds / 1e3 / args.updates
    total = sum(sums.values())
    settings = {name: value for name, value in dataclasses.asdict(args).items() if name in ("script", "compile", "bf16")}
    print(f"{settings}\n\n| | ms | share |\n|---|---|---|")  # noqa: T201
    for kind, milliseconds in sums.items():
        print(f"| {kind} | {milliseconds:.2f} | {milliseconds / total:.0%} |")  # noqa: T201
    print(f"| all | {total:.2f} | |")  # noqa: T201


if __name__ == "__main__":
    flags.run(main, Args)
