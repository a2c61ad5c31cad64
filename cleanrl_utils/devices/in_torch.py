"""Where torch runs: device, compiler, bfloat16. Shared by the torch scripts."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cleanrl_utils.console import notice, working
from cleanrl_utils.devices import common
from cleanrl_utils.devices.cores import ThreadFlags, given_threads, num_cores
from cleanrl_utils.errors import first_line
from cleanrl_utils.signals import signals_waiting

TURNS, TURN, MARGIN = 4, 0.3, 0.05
"""How threads are timed: turns per number of threads, seconds per turn, share of time that more than one must save."""


def choose_devices(args: common.DeviceFlags) -> tuple[torch.device, torch.device]:
    """Return the devices of networks and replay buffer. Raises `BadInput` if one of them is not available."""
    _need_a_folder_for_compiled_code()
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name, buffer_name = common.device_names(args, available, "torch")
    return torch.device(name), torch.device(buffer_name)


def _need_a_folder_for_compiled_code() -> None:
    """Give torch a temporary folder if it cannot write the code that it compiles: its optimizers fail without a folder."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder is not None and not common.keeps_compiled_code(folder, f"TORCHINDUCTOR_CACHE_DIR {folder}"):
        temporary = tempfile.TemporaryDirectory(prefix="torchinductor_")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = temporary.name
        atexit.register(temporary.cleanup)


def described(device: torch.device) -> dict[str, str]:
    """Describe for the record what computes: the type of device, and which GPU it is."""
    return {"device": f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type}


class BatchFlags(ThreadFlags, Protocol):
    """The flags on threads and on batches."""

    batch_size: int


def choose_threads(args: BatchFlags, network: nn.Module, obs_shape: tuple[int, ...], *inputs: Any) -> int:
    """Set and return the number of threads that torch computes with on the CPU: the one given, else the fastest now.

    It times forward and backward passes of `network` on a batch of observations and `inputs`. Threads wait for each other
    in a busy loop, so fewer are faster if other work takes their cores away; and small networks gain nothing from more
    threads.
    """
    threads = given_threads(args)
    if threads is None:
        threads = num_cores()
        if threads > 1 and next(network.parameters()).device.type == "cpu":
            threads = _fastest(threads, network, (torch.zeros(args.batch_size, *obs_shape), *inputs))
    torch.set_num_threads(threads)
    return threads


def _fastest(cores: int, network: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Return the number of threads, up to one per core, with which the passes are fastest; they are timed in turns."""
    choices = sorted({*(2**k for k in range(cores.bit_length())), cores})
    passes: dict[int, list[float]] = {threads: [] for threads in choices}
    with working("timing threads (--threads leaves that out)"):
        for _ in range(TURNS):
            for threads in choices:
                torch.set_num_threads(threads)
                seconds = [time.perf_counter()]
                while seconds[-1] < seconds[0] + TURN or len(seconds) < 3:
                    torch.autograd.grad(network(*inputs).sum(), list(network.parameters()))
                    seconds.append(time.perf_counter())
                passes[threads] += np.diff(seconds[1:]).tolist()  # the first one may have to make threads
    means = {threads: float(np.mean(passes[threads])) for threads in choices}
    fastest = min(choices, key=lambda threads: means[threads] * (1 + MARGIN * (threads > 1)))
    times = ", ".join(f"{threads}: {1000 * mean:.1f} ms" for threads, mean in means.items())
    notice(f"threads that compute: {fastest} (forward and backward pass by threads: {times}; --threads sets it)")
    return fastest


def be_deterministic(asked: bool, device: torch.device) -> None:
    """If asked, make the same seed give the same weights on CUDA too; on a CPU it does so in any case.

    Warns of an operator that has no deterministic kernel. Without the flag, cuDNN times its algorithms and takes the
    fastest, which is not always the same one.
    """
    torch.backends.cudnn.deterministic = asked
    torch.backends.cudnn.benchmark = device.type == "cuda" and not asked
    if device.type == "cuda" and asked:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # it would fill each new tensor, for debugging


@contextlib.contextmanager
def compiling(compiled: bool) -> Iterator[None]:
    """Show that code is compiled in the block, or, if it is not `compiled`, warmed up. Signals wait until that is over.

    One that reached the compiler, as Ctrl-C in a terminal does, would leave a file cut short in torch's cache, with which
    no later run could start.
    """
    with signals_waiting(), working("compiling (--no-compile leaves that out)" if compiled else "warming up"):
        yield


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works: it needs C++ on the CPU, Triton on CUDA. Warns once if not."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton  # noqa: PLC0415 - private, so not at import

        found, missing = has_triton(), "Triton"
    else:
        compiler = os.environ.get("CXX", "cl" if os.name == "nt" else "g++")
        found, missing = shutil.which(compiler) is not None, f"the C++ compiler `{compiler}`"
    if not found:
        notice(f"--compile needs {missing}, which is not there: running uncompiled, slower")
        return False
    try:
        with signals_waiting():
            torch.compile(torch.add, dynamic=False)(torch.ones(2, device=device), 1)
    except Exception as error:  # of the compiler, the linker, the folder of compiled code
        lines = [line for line in str(error).splitlines() if "rror" in line] or [first_line(error)]
        notice(f"--compile does not work here ({lines[0].strip()}): running uncompiled, slower")
        return False
    return True


def require_memory(flag: str, transitions: int, device: torch.device) -> None:
    """Raise `BadInput` if a ring of transitions takes more memory than `device` has free."""
    common.require_memory(flag, transitions, free_memory(device))


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device; None if that is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return common.free_memory() if device.type == "cpu" else None


def use_bf16(asked: bool, device: torch.device) -> bool:
    """Return whether to use bfloat16: if asked, and if the hardware has it; elsewhere it is slower than float32, so warn."""
    has_bf16 = {
        "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
        "cuda": torch.cuda.is_bf16_supported,
        "mps": lambda: False,
    }[device.type]()
    if asked and not has_bf16:
        notice(f"--bf16: this {device.type} device has no fast bfloat16; using float32")
    return asked and has_bf16


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to the device in one transfer, for which the host does not wait."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def cuda_graph(
    update: Callable[[Tensor], Tensor], batch_size: int, network: nn.Module, optimizer: torch.optim.Optimizer
) -> Callable[[Tensor], Tensor]:
    """Capture `update`, which trains `network` by `optimizer`, in a CUDA graph; returns a function of indices (batch_size,).

    The warm-up that a capture needs changes weights and Adam's moments, so they are restored in place; moments that the
    warm-up created are set to zero.
    """

    def trained() -> list[Tensor]:
        moments = [value for state in optimizer.state.values() for value in state.values()]
        return [*network.parameters(), *moments]

    index = torch.zeros(batch_size, dtype=torch.int64, device="cuda")
    before = {tensor: tensor.detach().clone() for tensor in trained()}  # detached: no node of autograd may outlive this
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            update(index)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        metrics = update(index)
    with torch.no_grad():
        for tensor in trained():
            tensor.copy_(before[tensor]) if tensor in before else tensor.zero_()

    def replay(new_index: Tensor) -> Tensor:
        index.copy_(new_index, non_blocking=True)
        graph.replay()
        return metrics

    replay.kept = update  # and all that it refers to: the graph knows only the addresses of what it reads and writes
    return replay


def use_onednn(*networks: nn.Module) -> None:
    """On an AMD CPU, compute the large linear layers of `networks` in oneDNN instead of MKL, which torch would use.

    MKL does not use AMD's AVX-512; oneDNN, which already computes the convolutions, takes half the time (docs/log.md).
    Weights stay the same, and so do values and gradients, except for rounding. Does nothing on other devices, in bfloat16,
    or if this torch has no such kernel.
    """
    if not is_amd_with_avx512() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for layer in (module for network in networks for module in network.modules() if isinstance(module, nn.Linear)):
        if layer.weight.device.type == "cpu" and layer.weight.numel() >= 100_000:
            layer.__class__ = OneDNNLinear


def is_amd_with_avx512() -> bool:
    """Whether this is an AMD processor with AVX-512, as far as Linux tells."""
    cpuinfo = Path("/proc/cpuinfo")
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return has_avx512 and cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()


class OneDNNLinear(nn.Linear):
    """`nn.Linear`, (B, in) to (B, out), by oneDNN's kernel in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return F.linear(x, self.weight, self.bias)
        return _product(x, self.weight) + self.bias


# A custom operator, since torch.compile cannot take the private one that it emits itself for frozen networks.
@torch.library.custom_op("qdagger::product", mutates_args=(), device_types="cpu")
def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product a b^T of (N, K) and (M, K) by oneDNN: (N, M)."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


@_product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(len(a), len(b))


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    a, b = ctx.saved_tensors
    return _product(gradient, b.t()), _product(gradient.t(), a.t())


_product.register_autograd(_gradients, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))  # noqa: ARG005
