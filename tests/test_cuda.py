"""The same on a GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from cleanrl import dqn as dqn_vector
from cleanrl import dqn_atari as dqn
from cleanrl import qdagger_dqn_atari_impalacnn as qdagger
from cleanrl_utils.devices.in_torch import be_deterministic
from cleanrl_utils.models.files import load_weights
from tests.conftest import TINY_DQN, TINY_RUN, TINY_TEACHER

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = [*TINY_RUN, "--device", "cuda", "--save-model"]


def filled(device: torch.device) -> dqn.ReplayBuffer:
    rb = dqn.ReplayBuffer(400, 2, 3, 0.99, device)
    generator = torch.Generator().manual_seed(0)
    rb.frames.copy_(torch.randint(-(2**62), 2**62, rb.frames.shape, generator=generator))
    rb.actions.copy_(torch.randint(0, 6, rb.actions.shape, generator=generator))
    rb.rewards.copy_(torch.randint(-1, 2, rb.rewards.shape, generator=generator))
    rb.ages.fill_(3)
    return rb


def test_sampling_is_that_of_the_cpu():
    index = torch.arange(20, 300, 7)
    on_cpu, on_cuda = filled(torch.device("cpu")).sample(index), filled(torch.device("cuda")).sample(index.cuda())
    assert all(torch.equal(here, there.cpu()) for here, there in zip(on_cpu, on_cuda, strict=True))


def updater(graph: bool, compiled: bool = False):
    device = torch.device("cuda")
    torch.manual_seed(0)
    args = dqn.Args(
        env_id="PongNoFrameskip-v4", num_envs=2, n_step=3, double_q=True, huber=True, learning_rate=1e-3, cuda_graph=graph,
        compile=compiled,
    )  # fmt: skip
    be_deterministic(args.torch_deterministic, device)
    learner = dqn.Learner(args, device)
    learner.target_network = dqn.NatureCNN(6).to(device, memory_format=torch.channels_last)
    return learner.q_network, learner.updater(filled(device), args)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_graph_learns_as_the_plain_update(compiled):
    (plain_network, plain), (graph_network, graph) = updater(graph=False), updater(graph=True, compiled=compiled)
    index = torch.arange(20, 340, 10).cuda()
    for shift in range(5):
        losses = [float(update(index + shift)[0]) for update in (plain, graph)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for a, b in zip(plain_network.parameters(), graph_network.parameters(), strict=True):
        # Other kernels, other roundings, and Adam makes steps of 1e-3 even of small gradients: a tenth of one.
        assert (a - b).abs().mean() < 1e-4


def test_an_update_never_waits_for_the_device():
    _, update = updater(graph=False)
    index = torch.arange(20, 340, 10).cuda()
    update(index)
    torch.cuda.set_sync_debug_mode("error")
    try:
        update(index)
    finally:
        torch.cuda.set_sync_debug_mode("default")


RUNS = (
    "--cuda-graph",
    "--compile",
    "--buffer-device cpu",
    "--bf16",
    "--compile --cuda-graph",
    "--compile --buffer-device cpu",
)


@pytest.mark.parametrize("flags", [[], *(flags.split() for flags in RUNS), "--bf16 --compile --cuda-graph".split()])
def test_runs(train, teacher, flags):
    folder = train(dqn, *CUDA, *flags)
    assert all(value.isfinite().all() for value in load_weights(folder / "dqn_atari.cleanrl_model").values())
    train(qdagger, *CUDA, *TINY_TEACHER, *flags, "--teacher-policy-hf-repo", str(teacher))


def test_dqn_on_vectors_runs(train):
    folder = train(dqn_vector, *TINY_DQN, "--device", "cuda", "--save-model")
    assert all(value.isfinite().all() for value in load_weights(folder / "dqn.cleanrl_model").values())
