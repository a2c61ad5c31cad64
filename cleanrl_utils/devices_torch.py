"""Where torch runs: device, compiler, bfloat16. Shared by the torch scripts."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from cleanrl_utils.config import notice
from cleanrl_utils.devices import device_names


def choose_devices(args: Any) -> tuple[torch.device, torch.device]:
    """Devices of the networks and of the replay buffer. Raises `BadInput` if one is not there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name, buffer_name = device_names(args, available, "torch")
    return torch.device(name), torch.device(buffer_name)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile finds its compiler: C++ on the CPU, Triton on CUDA. Warns once if not."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton  # noqa: PLC0415 - private, so not at import

        found, missing = has_triton(), "Triton"
    else:
        compiler = os.environ.get("CXX", "cl" if os.name == "nt" else "g++")
        found, missing = shutil.which(compiler) is not None, f"the C++ compiler `{compiler}`"
    if not found:
        notice(f"--compile needs {missing}, which is not there: running uncompiled, slower")
    return found


def use_bf16(args: Any, device: torch.device) -> bool:
    """`--bf16` where the hardware has it; elsewhere bfloat16 is slower than float32, so warn and leave it."""
    has_bf16 = {
        "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
        "cuda": torch.cuda.is_bf16_supported,
        "mps": lambda: False,
    }[device.type]()
    if args.bf16 and not has_bf16:
        notice(f"--bf16: this {device.type} device has no fast bfloat16; using float32")
    return args.bf16 and has_bf16
