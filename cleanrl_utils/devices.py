"""Where torch runs: device, compiler, bfloat16, memory. Shared by the torch scripts."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from typing import Any

import torch

from cleanrl_utils.config import BadInput, notice


def choose_devices(args: Any) -> tuple[torch.device, torch.device]:
    """Devices of the networks and of the replay buffer. Raises `BadInput` if one is not there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = args.device or ("auto" if args.cuda else "cpu")
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    buffer_name = name if args.buffer_device == "auto" else args.buffer_device
    for flag, value in (("--device", name), ("--buffer-device", buffer_name)):
        if not available[value]:
            choices = " or ".join(choice for choice, there in available.items() if there)
            raise BadInput(flag, value, f"is not available on this machine, which has {choices}")
    if buffer_name not in (name, "cpu"):
        raise BadInput("--buffer-device", buffer_name, f"must be cpu, or {name} as the networks")
    if args.cuda_graph and name != "cuda":
        raise BadInput("--cuda-graph", "on", f"needs --device cuda, not {name}")
    if args.cuda_graph and buffer_name != "cuda":
        raise BadInput("--cuda-graph", "on", f"needs --buffer-device cuda, not {buffer_name}")
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


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory in the process, for the tensors of the next update.

    By default it returns each block of megabytes to the kernel, which then zeroes and maps it again, page by page:
    a third of the time of a Nature CNN update on 2 CPU cores. Does nothing on another C library.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
        mallopt(m_mmap_threshold, 1 << 30) or mallopt(m_mmap_threshold, 1 << 25)  # older versions take 32 MB at most
        mallopt(m_trim_threshold, (1 << 31) - 1)
        mallopt(m_top_pad, 1 << 26)
