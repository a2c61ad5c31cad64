"""Where JAX runs: device, bfloat16. Shared by the JAX scripts."""

from __future__ import annotations

import functools
import os
from typing import Protocol

import jax
import jaxlib

from cleanrl_utils.console import notice
from cleanrl_utils.devices import common
from cleanrl_utils.devices.cores import ThreadFlags, given_threads, num_cores, processor_kind

FASTER_ON_CPU = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
}
"""Options of XLA that leave convolutions to Eigen, whose gradients are faster than YNNPACK's, and change nothing else."""
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
"""What `--xla-deterministic` adds to XLA_FLAGS."""


@functools.cache
def cpu_options() -> dict[str, str]:
    """Return the options with which to compile an update for a CPU: `FASTER_ON_CPU`, if this version of XLA knows them."""
    try:
        jax.jit(lambda: 0, compiler_options=FASTER_ON_CPU)()
    except Exception:  # of a kind that differs between versions
        return {}
    return FASTER_ON_CPU


class DeviceFlags(common.DeviceFlags, Protocol):
    """The flags on devices and on what XLA does there."""

    xla_deterministic: bool


def choose_devices(args: DeviceFlags) -> tuple[jax.Device, jax.Device]:
    """Return the devices of networks and replay buffer. Raises `BadInput` if one of them is not available."""
    _keep_compiled_code()
    if args.xla_deterministic and DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()  # read when JAX is first used
    if args.device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # before its first use: leaves a GPU and its memory alone
    found = {name: _devices(name) for name in ("cpu", "cuda")}
    name, buffer_name = common.device_names(args, {name: bool(devices) for name, devices in found.items()}, "JAX")
    return found[name][0], found[buffer_name][0]


def choose_threads(args: ThreadFlags) -> int:
    """Set and return the number of threads that XLA computes with on the CPU; call it before JAX is first used."""
    threads = given_threads(args) or num_cores()
    os.environ["NPROC"] = str(threads)  # what XLA reads when it makes its threads
    return threads


def _keep_compiled_code() -> None:
    """Keep what XLA compiles in the user's cache folder, for the next run, unless JAX_COMPILATION_CACHE_DIR is set.

    Each version of jaxlib and each kind of processor has a folder there: code for one may not run on another.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    base = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    folder = os.path.join(base, "cleanrl", f"jaxlib-{jaxlib.__version__}-{processor_kind()}")
    if common.keeps_compiled_code(folder, folder):
        jax.config.update("jax_compilation_cache_dir", folder)


def device_name(device: jax.Device) -> str:
    """Return a device's kind as the flags spell it."""
    return {"gpu": "cuda"}.get(device.platform, device.platform)


def described(device: jax.Device) -> dict[str, str | None]:
    """Describe for the record what computes: the kind of device, which GPU it is, and the options given to XLA."""
    name = f"cuda ({device.device_kind})" if device.platform == "gpu" else device.platform
    precision = jax.config.jax_default_matmul_precision
    return {"device": name, "xla_flags": os.environ.get("XLA_FLAGS"), "matmul_precision": precision}


def _devices(platform: str) -> list[jax.Device]:
    try:
        return jax.devices(platform)
    except RuntimeError:  # JAX has no such platform here
        return []


def require_memory(flag: str, transitions: int, device: jax.Device) -> None:
    """Raise `BadInput` if a ring of transitions takes more memory than `device` has free."""
    common.require_memory(flag, transitions, free_memory(device))


def free_memory(device: jax.Device) -> int | None:
    """Return the bytes that are free on a device; None if that is unknown."""
    if device.platform == "cpu":
        return common.free_memory()
    found = device.memory_stats() or {}
    return found["bytes_limit"] - found["bytes_in_use"] if "bytes_limit" in found else None


def use_bf16(asked: bool, device: jax.Device) -> bool:
    """Return whether to use bfloat16: if asked, and if it is faster than float32; in XLA on a CPU it is not, so warn."""
    has_bf16 = device.platform == "gpu" and float(device.compute_capability) >= 8
    if asked and not has_bf16:
        notice(f"--bf16: XLA has no fast bfloat16 on this {device_name(device)} device; using float32")
    return asked and has_bf16
