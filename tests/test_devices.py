"""What the devices' helpers change, and what they leave alone."""

from __future__ import annotations

import copy

import pytest
import torch

from cleanrl import dqn_atari
from cleanrl_utils.devices import in_torch


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
