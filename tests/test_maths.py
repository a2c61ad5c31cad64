"""Every formula, on numbers worked by hand. Both scripts hold the same functions; see test_scripts.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from cleanrl import dqn_atari as dqn
from cleanrl import qdagger_dqn_atari_impalacnn as qdagger


class Table(nn.Module):
    """Q-values looked up by the first pixel of the newest frame."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(rows))

    def forward(self, obs: torch.Tensor, bf16: bool = False) -> torch.Tensor:  # noqa: ARG002
        return self.values[obs[:, -1, 0, 0].long()]


def batch_of(script, states: list[int], actions: list[int], rewards: list[float], next_states: list[int], discounts):
    def see(states: list[int]) -> torch.Tensor:
        return torch.tensor(states, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 84, 84)

    return script.Batch(see(states), torch.tensor(actions), torch.tensor(rewards), see(next_states), torch.tensor(discounts))


def test_linear_schedule_goes_from_start_to_end_and_stays():
    values = [dqn.linear_schedule(1.0, 0.2, 8, step) for step in (0, 2, 4, 8, 100)]
    assert values == pytest.approx([1.0, 0.8, 0.6, 0.2, 0.2])


def test_linear_schedule_of_no_duration_is_the_end():
    assert dqn.linear_schedule(1.0, 0.1, 0, 0) == 0.1


@pytest.mark.parametrize("num_envs", [1, 3, 8, 64])
@pytest.mark.parametrize("period", [1, 4, 7, 100])
def test_crossed_counts_every_multiple_once(num_envs, period):
    steps = range(0, 1000, num_envs)
    assert sum(dqn.crossed(step, num_envs, period) for step in steps) == len(steps) * num_envs // period


def test_td_target_ignores_next_value_after_termination():
    target = dqn.td_target(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.9]), torch.tensor([10.0, 10.0]))
    assert target.tolist() == pytest.approx([1.0, 10.0])


# State 0: online Q (1, 2), target Q (3, 5). State 1: online Q (4, 1), target Q (0, 6).
ONLINE, TARGET = [[1.0, 2.0], [4.0, 1.0]], [[3.0, 5.0], [0.0, 6.0]]


@pytest.mark.parametrize(
    ("double_q", "huber", "expected"),
    [
        # Next state 1: the target network's best is 6, the online network's choice (action 0) is worth 0.
        # Targets: 1 + 0.5 * 6 = 4 and 2 (terminated). Predictions: Q(0, 1) = 2 and Q(1, 0) = 4.
        (False, False, (2.0**2 + 2.0**2) / 2),
        (False, True, (1.5 + 1.5) / 2),
        # Double: targets 1 + 0.5 * 0 = 1 and 2.
        (True, False, (1.0**2 + 2.0**2) / 2),
        (True, True, (0.5 + 1.5) / 2),
    ],
)
def test_td_loss(double_q, huber, expected):
    batch = batch_of(dqn, [0, 1], [1, 0], [1.0, 2.0], [1, 0], [0.5, 0.0])
    loss, q_value = dqn.td_loss(Table(ONLINE), Table(TARGET), batch, double_q, huber, bf16=False)
    assert loss.item() == pytest.approx(expected)
    assert q_value.item() == pytest.approx(3.0)


def test_td_loss_has_no_gradient_through_the_target():
    online, target = Table(ONLINE), Table(TARGET)
    batch = batch_of(dqn, [0], [1], [1.0], [1], [0.5])
    dqn.td_loss(online, target, batch, double_q=True, huber=False, bf16=False)[0].backward()
    assert target.values.grad is None
    # d/dQ(0,1) of (2 - 1)^2 = 2; the next state's values only choose.
    assert online.values.grad.tolist() == [[0.0, 2.0], [0.0, 0.0]]


def test_distillation_loss_is_the_mean_kl_of_teacher_from_student():
    # tau 0.5: teacher logits (ln 4, 0) -> (0.8, 0.2); student logits (0, 0) -> (0.5, 0.5). Second row: equal, KL 0.
    teacher = torch.tensor([[0.5 * math.log(4), 0.0], [1.0, 2.0]])
    student = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    kl = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert qdagger.distillation_loss(student, teacher, 0.5).item() == pytest.approx(kl / 2, abs=1e-6)


def test_distillation_loss_does_not_grow_with_the_batch():
    teacher, student = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    one = qdagger.distillation_loss(student, teacher, 1.0)
    many = qdagger.distillation_loss(student.expand(32, 2), teacher.expand(32, 2), 1.0)
    assert many.item() == pytest.approx(one.item(), rel=1e-6)


def test_qdagger_loss_is_td_loss_plus_coefficient_times_distillation():
    args = qdagger.Args(temperature=0.5, double_q=False, huber=False)
    batch = batch_of(qdagger, [0, 1], [1, 0], [1.0, 2.0], [1, 0], [0.5, 0.0])
    teacher = Table([[0.0, 0.0], [0.0, 0.0]])
    loss, td, distill, q_value = qdagger.qdagger_loss(
        Table(ONLINE), Table(TARGET), teacher, batch, torch.tensor(3.0), args, bf16=False
    )
    # Teacher (0.5, 0.5). Student softmax of (2, 4) and of (8, 2): p = 1 / (1 + e^2) and p = 1 / (1 + e^-6).
    kl = [0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)) for p in (1 / (1 + math.exp(2)), 1 / (1 + math.exp(-6)))]
    assert td.item() == pytest.approx(4.0)
    assert distill.item() == pytest.approx(sum(kl) / 2, rel=1e-5)
    assert loss.item() == pytest.approx(4.0 + 3.0 * sum(kl) / 2, rel=1e-5)
    assert q_value.item() == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("returns", "step", "expected"),
    [
        ([], 0, 1.0),
        ([20.0] * 9, 10, 1.0),  # nine games are too few
        ([-21.0] * 10, 10, 1.0),  # below random: clipped
        ([-20.0] * 10, 10, 1.0),
        ([0.0] * 10, 10, 0.5),
        ([10.0] * 10, 10, 0.25),
        ([21.0] * 10, 10, 0.0),  # above the teacher: clipped
        ([-20.0] * 5 + [10.0] * 10, 10, 0.25),  # the latest ten
        ([-20.0] * 10, 100, 0.0),  # t0 is over
        ([], 100, 0.0),
    ],
)
def test_fading_is_normalised_between_random_and_teacher(returns, step, expected):
    assert qdagger.fading(returns, teacher_return=20.0, random_return=-20.0, step=step, decay_steps=100) == expected


def test_epsilon_greedy_explores_at_its_rate_and_uniformly():
    rng = np.random.default_rng(0)
    actions = dqn.epsilon_greedy(np.full(40_000, 5), 4, 0.4, rng)  # 5: greedy, no random action
    explored = actions[actions != 5]
    assert len(explored) / 40_000 == pytest.approx(0.4, abs=0.01)
    assert np.bincount(explored) / len(explored) == pytest.approx([0.25] * 4, abs=0.015)


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_sync_moves_the_target_by_tau(tau):
    online, target = Table(ONLINE), Table(TARGET)
    dqn.sync(online, target, tau)
    expected = (1 - tau) * torch.tensor(TARGET) + tau * torch.tensor(ONLINE)
    assert torch.allclose(target.values, expected)
    assert online.values.tolist() == ONLINE


def test_greedy_actions_is_the_argmax():
    obs = torch.tensor([0, 1], dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 84, 84)
    assert dqn.greedy_actions(Table(ONLINE), obs).tolist() == [1, 0]


def test_read_metrics_stops_a_run_whose_loss_was_not_finite():
    assert dqn.read_metrics(None, ("a",)) == {}
    assert dqn.read_metrics(torch.tensor([2.0, 1.0]), ("a",)) == {"a": 2.0}
    with pytest.raises(FloatingPointError, match="learning-rate"):
        dqn.read_metrics(torch.tensor([2.0, 0.0]), ("a",))


def test_update_remembers_a_loss_that_was_not_finite(cpu):
    network = Table(ONLINE)
    rb = dqn.ReplayBuffer(100, 1, 1, 0.99, cpu)
    scale = torch.tensor(1.0)
    loss_fn = lambda batch: (network(batch.obs).sum() * scale, scale)  # noqa: E731
    update = dqn.make_update(loss_fn, torch.optim.SGD(network.parameters(), lr=0.0), rb, cpu)
    index = torch.zeros(2, dtype=torch.int64)
    assert update(index)[-1] == 1
    scale.fill_(float("inf"))
    update(index)
    scale.fill_(1.0)
    assert update(index)[-1] == 0
