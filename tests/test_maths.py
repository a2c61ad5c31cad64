"""Every formula, on numbers worked by hand, in both frameworks. Scripts of one hold the same functions: test_scripts.py."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

from cleanrl import dqn_atari, dqn_atari_jax
from cleanrl_utils.evals import teacher

# State 0: online Q (1, 2), target Q (3, 5). State 1: online Q (4, 1), target Q (0, 6).
ONLINE, TARGET = [[1.0, 2.0], [4.0, 1.0]], [[3.0, 5.0], [0.0, 6.0]]
TD_LOSSES = pytest.mark.parametrize(
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
"""Expected losses of the two transitions in `test_td_loss`."""


class Table(nn.Module):
    """Q-values looked up by the first pixel of the newest frame."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(rows))

    def forward(self, obs: torch.Tensor, bf16: bool = False) -> torch.Tensor:  # noqa: ARG002
        return self.values[obs[:, -1, 0, 0].long()]


def jax_table(rows: Any) -> Any:
    """The same in JAX."""
    return lambda obs, bf16=False: jnp.asarray(rows)[obs[:, -1, 0, 0]]  # noqa: ARG005


def table(script: ModuleType, rows: list[list[float]]) -> Any:
    return jax_table(rows) if "jax" in script.__name__ else Table(rows)


def array(script: ModuleType, values: Any) -> Any:
    return jnp.asarray(values) if "jax" in script.__name__ else torch.tensor(values)


def see(script: ModuleType, states: list[int]) -> Any:
    """Observations (B, 4, 84, 84) that show `states`."""
    return array(script, np.broadcast_to(np.array(states, np.uint8)[:, None, None, None], (len(states), 4, 84, 84)).copy())


def batch_of(script, states: list[int], actions: list[int], rewards: list[float], next_states: list[int], discounts):
    rest = (array(script, actions), array(script, rewards), see(script, next_states), array(script, discounts))
    return script.Batch(see(script, states), *rest)


def test_linear_schedule_goes_from_start_to_end_and_stays(dqn):
    values = [dqn.linear_schedule(1.0, 0.2, 8, step) for step in (0, 2, 4, 8, 100)]
    assert values == pytest.approx([1.0, 0.8, 0.6, 0.2, 0.2])


def test_linear_schedule_of_no_duration_is_the_end(dqn):
    assert dqn.linear_schedule(1.0, 0.1, 0, 0) == 0.1


def test_one_cycle_rises_from_half_to_the_peak_and_falls_to_nothing(dqn):
    """cos: half way up at 15% of the steps, half way down at 65%."""
    rates = [dqn.one_cycle(2.0, 100, step) for step in (0, 15, 30, 65, 100)]
    assert rates == pytest.approx([1.0, 1.5, 2.0, 1.00005, 0.0001])


def test_one_cycle_is_torchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3.0, total_steps=501, pct_start=0.3, div_factor=2)
    for step in range(500):
        # Torch's peak is one step earlier.
        assert dqn_atari.one_cycle(3.0, 500, step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.015)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("num_envs", [1, 3, 8, 64])
@pytest.mark.parametrize("period", [1, 4, 7, 100])
def test_crossed_counts_every_multiple_once(dqn, num_envs, period):
    steps = range(0, 1000, num_envs)
    assert sum(dqn.crossed(step, num_envs, period) for step in steps) == len(steps) * num_envs // period


def test_td_target_ignores_next_value_after_termination(dqn):
    target = dqn.td_target(*(array(dqn, values) for values in ([1.0, 1.0], [0.0, 0.9], [10.0, 10.0])))
    assert target.tolist() == pytest.approx([1.0, 10.0])


@TD_LOSSES
def test_td_loss(dqn, double_q, huber, expected):
    batch = batch_of(dqn, [0, 1], [1, 0], [1.0, 2.0], [1, 0], [0.5, 0.0])
    loss, q_value = dqn.td_loss(table(dqn, ONLINE), table(dqn, TARGET), batch, double_q, huber, bf16=False)
    assert loss.item() == pytest.approx(expected)
    assert q_value.item() == pytest.approx(3.0)


def test_td_loss_has_no_gradient_through_the_target():
    online, target = Table(ONLINE), Table(TARGET)
    batch = batch_of(dqn_atari, [0], [1], [1.0], [1], [0.5])
    dqn_atari.td_loss(online, target, batch, double_q=True, huber=False, bf16=False)[0].backward()
    assert target.values.grad is None
    # d/dQ(0,1) of (2 - 1)^2 = 2; the next state's values only choose.
    assert online.values.grad.tolist() == [[0.0, 2.0], [0.0, 0.0]]


def test_td_loss_has_no_gradient_through_the_target_in_jax():
    batch = batch_of(dqn_atari_jax, [0], [1], [1.0], [1], [0.5])

    def loss(online, target):
        return dqn_atari_jax.td_loss(jax_table(online), jax_table(target), batch, True, False, False)[0]

    online, target = jax.grad(loss, argnums=(0, 1))(jnp.asarray(ONLINE), jnp.asarray(TARGET))
    assert target.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert online.tolist() == [[0.0, 2.0], [0.0, 0.0]]


def test_distillation_loss_is_the_mean_kl_of_teacher_from_student(qdagger):
    # tau 0.5: teacher logits (ln 4, 0) -> (0.8, 0.2); student logits (0, 0) -> (0.5, 0.5). Second row: equal, KL 0.
    teacher = array(qdagger, [[0.5 * math.log(4), 0.0], [1.0, 2.0]])
    student = array(qdagger, [[0.0, 0.0], [1.0, 2.0]])
    kl = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert qdagger.distillation_loss(student, teacher, 0.5).item() == pytest.approx(kl / 2, abs=1e-6)


def test_distillation_loss_does_not_grow_with_the_batch(qdagger):
    one = qdagger.distillation_loss(array(qdagger, [[0.0, 1.0]]), array(qdagger, [[1.0, 0.0]]), 1.0)
    many = qdagger.distillation_loss(array(qdagger, [[0.0, 1.0]] * 32), array(qdagger, [[1.0, 0.0]] * 32), 1.0)
    assert many.item() == pytest.approx(one.item(), rel=1e-6)


def test_qdagger_loss_is_td_loss_plus_coefficient_times_distillation(qdagger):
    args = qdagger.Args(temperature=0.5, double_q=False, huber=False)
    batch = batch_of(qdagger, [0, 1], [1, 0], [1.0, 2.0], [1, 0], [0.5, 0.0])
    tables = (table(qdagger, rows) for rows in (ONLINE, TARGET, [[0.0, 0.0], [0.0, 0.0]]))
    loss, td, distill, q_value = qdagger.qdagger_loss(*tables, batch, array(qdagger, 3.0), args, bf16=False)
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
def test_fading_is_normalised_between_random_and_teacher(qdagger, returns, step, expected):
    assert qdagger.fading(returns, teacher_return=20.0, random_return=-20.0, step=step, decay_steps=100) == expected


def test_epsilon_greedy_explores_at_its_rate_and_uniformly(dqn):
    rng = np.random.default_rng(0)
    actions = dqn.epsilon_greedy(np.full(40_000, 5), 4, 0.4, rng)  # 5: greedy, no random action
    explored = actions[actions != 5]
    assert len(explored) / 40_000 == pytest.approx(0.4, abs=0.01)
    assert np.bincount(explored) / len(explored) == pytest.approx([0.25] * 4, abs=0.015)


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_sync_moves_the_target_by_tau(tau):
    online, target = Table(ONLINE), Table(TARGET)
    dqn_atari.sync(online, target, tau)
    expected = (1 - tau) * torch.tensor(TARGET) + tau * torch.tensor(ONLINE)
    assert torch.allclose(target.values, expected)
    assert online.values.tolist() == ONLINE

    state = dqn_atari_jax.QState(jnp.asarray(ONLINE), jnp.asarray(TARGET), (), jnp.ones(()))
    synced = dqn_atari_jax.sync(state, tau)
    np.testing.assert_allclose(synced.target_params, expected)
    assert synced.params.tolist() == ONLINE


def test_greedy_actions_is_the_argmax(dqn):
    assert dqn.greedy_actions(table(dqn, ONLINE), see(dqn, [0, 1])).tolist() == [1, 0]


def test_read_metrics_stops_a_run_whose_loss_was_not_finite(dqn):
    assert dqn.read_metrics(None, ("a",)) == {}
    assert dqn.read_metrics(array(dqn, [2.0, 1.0]), ("a",)) == {"a": 2.0}
    with pytest.raises(FloatingPointError, match="learning-rate"):
        dqn.read_metrics(array(dqn, [2.0, 0.0]), ("a",))


def test_update_remembers_a_loss_that_was_not_finite(monkeypatch, cpu):
    """A loss without a gradient: the weights stay finite, whatever it is."""
    scale = torch.tensor(1.0)
    monkeypatch.setattr(
        dqn_atari, "td_loss", lambda network, *_: (0 * sum(p.sum() for p in network.parameters()) + scale, scale)
    )
    args = dqn_atari.Args(env_id="PongNoFrameskip-v4", num_envs=1, batch_size=2, compile=False)
    rb, index = dqn_atari.ReplayBuffer(100, 1, 1, 0.99, cpu), torch.zeros(2, dtype=torch.int64)
    learner = dqn_atari.Learner(args, cpu)
    update = learner.updater(rb, args)
    for value, finite in ((1.0, 1), (float("inf"), 0), (1.0, 0)):
        scale.fill_(value)
        assert update(index).tolist() == [value, value, finite]
    assert all(weights.isfinite().all() for weights in learner.q_network.parameters())


def learner(scan: bool) -> tuple[Any, dqn_atari_jax.QState, dqn_atari_jax.ReplayBuffer]:
    """A learner in JAX whose loss is a rate times the values of what the batch shows."""
    optimizer = optax.scale_by_adam()
    learn = dqn_atari_jax.make_learn(
        lambda params, target_params, batch, scale: (jax_table(params)(batch.obs).sum() * scale, target_params.sum()),
        optimizer,
        scan=scan,
    )
    params = jnp.asarray(ONLINE)
    state = dqn_atari_jax.QState(params, jnp.asarray(TARGET), optimizer.init(params), jnp.ones(()))
    return learn, state, dqn_atari_jax.ReplayBuffer(100, 1, 1, 0.99, jax.devices("cpu")[0])


@pytest.mark.parametrize("scan", [False, True])
def test_update_remembers_a_loss_that_was_not_finite_in_jax(scan):
    learn, state, rb = learner(scan)
    index = np.zeros((1, 2), dtype=np.int64)
    for scale, finite in ((1.0, 1), (float("inf"), 0), (1.0, 0)):
        state, metrics = learn(state, rb, index, 0.0, scale)
        assert metrics[-1] == finite
    assert metrics[1] == 14, "further values follow the loss"


def test_one_scan_learns_as_calls_one_by_one_and_both_take_the_memory_of_the_state():
    results = []
    for scan in (False, True):
        learn, state, rb = learner(scan)
        given = jax.tree.leaves((state.params, state.opt_state))
        results.append(learn(state, rb, np.zeros((3, 2), dtype=np.int64), 0.1, 0.5))
        assert all(leaf.is_deleted() for leaf in given)
    (one_by_one, metrics), (at_once, metrics_at_once) = results
    # Adam on a constant gradient takes whole steps of the learning rate, on the row that is seen: state 0.
    np.testing.assert_allclose(one_by_one.params, [[0.7, 1.7], [4.0, 1.0]], atol=1e-5)
    np.testing.assert_allclose(at_once.params, one_by_one.params, atol=1e-6)
    np.testing.assert_allclose(metrics_at_once, metrics, atol=1e-6)


# --- Whether a teacher's values say anything ---


@pytest.mark.parametrize(
    ("q_values", "temperature", "expected"),
    [
        ([[2.0, 2.0, 2.0]], 1.0, 0.0),
        ([[1.0, 0.0]], 1e-3, 1.0),
        ([[1.0, 0.0]], 1.0, 0.16006),  # probabilities 0.7311, 0.2689: entropy 0.5822 of 0.6931
        ([[2.0, 0.0], [5.0, 5.0]], 2.0, 0.08003),  # the mean of that and of 0
        ([[1e4, 0.0]], 0.1, 1.0),
    ],
)
def test_sharpness_is_the_divergence_from_uniform_by_its_maximum(q_values, temperature, expected):
    assert teacher.sharpness(np.array(q_values), temperature) == pytest.approx(expected, abs=1e-4)


def test_the_fitting_temperature_is_the_mean_gap_between_the_best_and_the_mean_value():
    assert teacher.fitting_temperature(np.array([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])) == pytest.approx(1.0)


def test_a_faint_distillation_is_told_with_a_temperature_that_fits(capsys):
    q_values = np.array([[0.04, 0.0, 0.0, 0.0], [0.0, 0.02, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])  # gaps 0.03, 0.015 and 0
    teacher.warn_if_faint(q_values, 1.0, 1.0)
    said = capsys.readouterr().err
    assert said.startswith("--temperature 1: the teacher's policy is 100.0% uniform")
    assert "--temperature 0.015 would fit" in said
    for temperature, weight in ((0.005, 1.0), (1.0, 0.0), (1.0, 1000.0)):
        teacher.warn_if_faint(q_values, temperature, weight)
    teacher.warn_if_faint(q_values[:0], 1.0, 1.0)
    assert capsys.readouterr().err == ""


def test_a_student_that_sees_nothing_is_told(capsys):
    teacher.warn_if_blind(np.tile(np.float32([-1.9, -1.8]), (4, 1)))
    assert capsys.readouterr().err.startswith("the student's Q-values are the same for every observation")
    teacher.warn_if_blind(np.float32([[-1.9, -1.8], [-1.9, -1.7999]]))
    teacher.warn_if_blind(np.zeros((0, 2), np.float32))
    assert capsys.readouterr().err == ""
