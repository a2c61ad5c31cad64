"""Where JAX runs: device, bfloat16. Shared by the JAX scripts."""

from __future__ import annotations

from typing import Any

import jax

from cleanrl_utils.console import notice
from cleanrl_utils.devices import common


def choose_devices(args: Any) -> tuple[jax.Device, jax.Device]:
    """Devices of the networks and of the replay buffer. Raises `BadInput` if one is not there."""
    if args.device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # before its first use: leaves a GPU and its memory alone
    found = {name: _devices(name) for name in ("cpu", "cuda")}
    name, buffer_name = common.device_names(args, {name: bool(devices) for name, devices in found.items()}, "JAX")
    return found[name][0], found[buffer_name][0]


def device_name(device: jax.Device) -> str:
    """A device's kind as the flags spell it."""
    return {"gpu": "cuda"}.get(device.platform, device.platform)


def described(device: jax.Device) -> str:
    """A device for the record: its kind, and which GPU it is."""
    return f"cuda ({device.device_kind})" if device.platform == "gpu" else device.platform


def _devices(platform: str) -> list[jax.Device]:
    try:
        return jax.devices(platform)
    except RuntimeError:  # JAX has no such platform here
        return []


def free_memory(device: jax.Device) -> int | None:
    """Bytes that are free on a device; None where that is unknown."""
    if device.platform == "cpu":
        return common.free_memory()
    found = device.memory_stats() or {}
    return found["bytes_limit"] - found["bytes_in_use"] if "bytes_limit" in found else None


def use_bf16(args: Any, device: jax.Device) -> bool:
    """`--bf16` where it is faster than float32: not in XLA on a CPU, so warn there and leave it."""
    has_bf16 = device.platform == "gpu" and float(device.compute_capability) >= 8
    if args.bf16 and not has_bf16:
        notice(f"--bf16: XLA has no fast bfloat16 on this {device_name(device)} device; using float32")
    return args.bf16 and has_bf16
