"""What the devices' helpers change, and what they leave alone."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cleanrl import dqn_atari
from cleanrl_utils.devices import cores, in_jax, in_torch
from tests.conftest import TINY_DQN
from tests.test_checkpoint import the_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def networks(monkeypatch):
    """Two networks of the same weights, the second on oneDNN's products, on any processor that has them."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no such kernel")
    monkeypatch.setattr(in_torch, "is_amd_with_avx512", lambda: True)
    torch.manual_seed(0)
    plain = dqn_atari.NatureCNN(6)
    fast = copy.deepcopy(plain)
    in_torch.use_onednn(fast)
    return plain, fast


def test_only_large_linear_layers_run_in_onednn(networks):
    plain, fast = networks
    kinds = [type(layer).__name__ for layer in fast.network]
    assert kinds == [type(layer).__name__ if i != 7 else "OneDNNLinear" for i, layer in enumerate(plain.network)]
    assert list(plain.state_dict()) == list(fast.state_dict())


def test_onednn_gives_the_same_values_and_gradients(networks):
    obs = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    outputs = [network(obs) for network in networks]
    for values in outputs:
        (values**2).sum().backward()
    assert torch.allclose(*outputs, atol=1e-6)
    for ours, theirs in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_left_to_torch(networks):
    obs = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    ours, theirs = (network(obs, bf16=True) for network in networks)
    assert torch.equal(ours, theirs)


def test_other_processors_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(in_torch, "is_amd_with_avx512", lambda: False)
    network = dqn_atari.NatureCNN(6)
    in_torch.use_onednn(network)
    assert not any(isinstance(layer, in_torch.OneDNNLinear) for layer in network.modules())


@pytest.fixture
def no_number_given(monkeypatch):
    """The number of threads is not given, and is as before after the test."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Timed(torch.nn.Linear):
    """A network whose pass takes as many seconds as `seconds` says for the number of threads."""

    def __init__(self, monkeypatch, seconds: dict[int, float]) -> None:
        super().__init__(1, 1)
        self.now, self.seconds = 0.0, seconds
        monkeypatch.setattr(in_torch.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(in_torch, "num_cores", lambda: max(seconds))

    def forward(self, x):
        self.now += self.seconds[torch.get_num_threads()]
        return super().forward(x)


@pytest.mark.parametrize(
    ("seconds", "fastest"), [({1: 3, 2: 2}, 2), ({1: 1, 2: 5}, 1), ({1: 1.0, 2: 0.97}, 1), ({1: 4, 2: 3, 4: 3.5, 6: 1}, 6)]
)
@pytest.mark.usefixtures("no_number_given")
def test_the_number_of_threads_that_is_fastest_is_chosen_and_told(monkeypatch, capsys, seconds, fastest):
    network = Timed(monkeypatch, seconds)
    assert in_torch.choose_threads(dqn_atari.Args(batch_size=1), network, (1,)) == fastest
    assert torch.get_num_threads() == fastest
    assert f"threads that compute: {fastest} (" in capsys.readouterr().err
    assert network.weight.grad is None


@pytest.mark.parametrize(("flag", "variable", "number"), [(3, None, 3), (None, "2", 2), (3, "2", 3), (None, "2,1", 2)])
@pytest.mark.usefixtures("no_number_given")
def test_a_number_of_threads_that_is_given_is_not_timed(monkeypatch, flag, variable, number):
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    network = Timed(monkeypatch, {})
    assert in_torch.choose_threads(dqn_atari.Args(threads=flag), network, (1,)) == number
    assert torch.get_num_threads() == number
    assert network.now == 0


@pytest.mark.parametrize("nonsense", ["", "0", "-1", "many", "99999999999"])
def test_a_variable_that_is_no_number_of_threads_is_left_aside(monkeypatch, nonsense):
    monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
    assert cores.given_threads(dqn_atari.Args()) is None


@pytest.mark.parametrize(
    ("of_process", "limits", "allowed"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000", "job/cpu.max": "400000 100000"}, 4),
        ("5:cpu,cpuacct:/\n1:name=x:/\n", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("5:cpu:/docker/12ab\n", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("5:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("4:memory:/\n", {}, 8),
        ("", {}, 8),
    ],
)
def test_cores_are_those_of_the_affinity_and_of_every_cgroup_above(tmp_path, monkeypatch, of_process, limits, allowed):
    own = tmp_path / "cgroup"
    own.write_text(of_process)
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "OWN", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cores.num_cores() == allowed


def test_a_real_quota_is_seen():
    folder = Path("/sys/fs/cgroup/cpu/test_a_real_quota_is_seen")
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir()
            stack.callback(folder.rmdir)
            (folder / "cpu.cfs_quota_us").write_text("100000")
        except OSError as error:
            pytest.skip(f"no cgroup can be made here: {error}")
        code = f"open('{folder}/cgroup.procs', 'w').write('0'); from {cores.__name__} import num_cores; print(num_cores())"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.slow
@pytest.mark.parametrize(("cache", "kept"), [("cache", True), ("/proc/nowhere", False)])
def test_what_jax_compiles_is_kept_in_the_cache_folder_of_the_user(cache, kept):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(Path(cache).absolute()), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "cleanrl/dqn_jax.py"), *TINY_DQN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("compiled code is not kept" in done.stderr) is not kept
    assert bool(list(Path("cache").glob("cleanrl/jaxlib-*/*-cache"))) is kept
    assert (
        "--xla_gpu_deterministic_ops=true" in json.loads(Path(the_run(), "config.json").read_text())["protocol"]["xla_flags"]
    )


def test_options_of_xla_are_used_where_it_knows_them(monkeypatch):
    assert in_jax.cpu_options.__wrapped__() == in_jax.FASTER_ON_CPU
    monkeypatch.setattr(in_jax, "FASTER_ON_CPU", {"xla_no_such_option": "1"})
    assert in_jax.cpu_options.__wrapped__() == {}
