"""The contract between a script and its twin: same weights and batch, same loss and gradients; same optimizer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import traverse_util

from cleanrl import dqn_atari as dqn
from cleanrl import dqn_atari_jax as dqn_jax
from cleanrl import qdagger_dqn_atari_impalacnn as qdagger
from cleanrl import qdagger_dqn_atari_jax_impalacnn as qdagger_jax
from cleanrl_utils.models import formats
from tests.support.oracles import IN_JAX, IN_TORCH, Games


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def weights_of(network: torch.nn.Module) -> formats.Weights:
    return {key: value.detach().numpy() for key, value in network.state_dict().items()}


def as_params(weights: formats.Weights) -> dict:
    """Weights or gradients of a torch network as a tree of the flax twin."""
    return {"params": traverse_util.unflatten_dict(formats.to_flax(weights), sep="/")}


def batches(n_step: int) -> list[dqn.Batch | dqn_jax.Batch]:
    """The same 32 transitions, as each framework's buffer gives them."""
    found = []
    for kind in (IN_TORCH, IN_JAX):
        rb = kind.make(100, 2, n_step)
        kind.play(rb, Games(2, seed=0, p_end=0.1, p_life=0.1, p_cut=0.05), 60)
        (index,) = rb.draw(1, 32, np.random.default_rng(3))
        found.append(rb.sample(kind.array(index)))
    return found


def networks(name: str, seed: int) -> tuple[torch.nn.Module, dict]:
    torch.manual_seed(seed)
    network = qdagger.STUDENTS[name](6)
    return network, as_params(weights_of(network))


def assert_same_gradients(network: torch.nn.Module, gradients: dict) -> None:
    expected = as_params({key: value.grad.numpy() for key, value in network.named_parameters()})
    flat, flat_expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (gradients, expected))
    assert flat.keys() == flat_expected.keys()
    for key, value in flat_expected.items():
        assert np.abs(value).max() > 0, key
        np.testing.assert_allclose(flat[key], value, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize(("double_q", "huber"), [(False, False), (True, True)])
def test_dqn_loss_target_and_gradients(n_step, double_q, huber):
    ours, theirs = batches(n_step)
    (q_network, params), (target_network, target_params) = networks("nature", 0), networks("nature", 1)
    loss, q_value = dqn.td_loss(q_network, target_network, ours, double_q, huber, bf16=False)
    loss.backward()

    network = dqn_jax.NatureCNN(6)
    loss_fn = lambda params: dqn_jax.td_loss(  # noqa: E731
        network.bind(params), network.bind(target_params), theirs, double_q, huber, False
    )
    (jax_loss, jax_q_value), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    assert float(jax_loss) == pytest.approx(loss.item(), abs=1e-5)
    assert float(jax_q_value) == pytest.approx(q_value.item(), abs=1e-5)
    assert_same_gradients(q_network, gradients)


@pytest.mark.parametrize(
    ("student", "n_step"),
    [
        pytest.param("nature", 1, marks=pytest.mark.slow),
        ("nature", 3),
        pytest.param("impala256", 3, marks=pytest.mark.slow),
    ],
)
def test_qdagger_losses_and_gradients(student, n_step):
    ours, theirs = batches(n_step)
    args = {"temperature": 0.1, "double_q": n_step == 3, "huber": n_step == 3}
    (q_network, params), (target_network, target_params) = networks(student, 0), networks(student, 1)
    teacher, teacher_params = networks("nature", 2)
    coefficient = 0.7
    expected = qdagger.qdagger_loss(
        q_network, target_network, teacher, ours, torch.tensor(coefficient), qdagger.Args(**args), bf16=False
    )
    expected[0].backward()

    network, teacher_network = qdagger_jax.STUDENTS[student](6), qdagger_jax.NatureCNN(6)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_fn(params):
        loss, *others = qdagger_jax.qdagger_loss(
            network.bind(params), network.bind(target_params), teacher_network.bind(teacher_params), theirs, coefficient,
            qdagger_jax.Args(**args), False,
        )  # fmt: skip
        return loss, others

    (loss, others), gradients = loss_fn(params)
    assert [float(loss), *map(float, others)] == pytest.approx([value.item() for value in expected], abs=1e-5)
    assert_same_gradients(q_network, gradients)


def test_the_first_of_equal_maxima_has_the_gradient_in_both():
    rng = np.random.default_rng(0)
    for height, width in ((21, 20), (8, 11)):
        x = rng.integers(-2, 3, (2, height, width, 3)).astype(np.float32)
        ours = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
        pooled = torch.nn.functional.max_pool2d(ours, 3, 2, 1)
        weight = rng.standard_normal(pooled.permute(0, 2, 3, 1).shape).astype(np.float32)
        pooled.backward(torch.tensor(weight).permute(0, 3, 1, 2))
        theirs, pull_back = jax.vjp(qdagger_jax.max_pool, x)
        assert np.array_equal(theirs, pooled.detach().permute(0, 2, 3, 1))
        np.testing.assert_allclose(pull_back(weight)[0], ours.grad.permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_optimizers_agree_on_the_same_gradients(weight_decay):
    """Apart from the networks: Adam's first step turns rounding of the gradients into full steps."""
    rng = np.random.default_rng(0)
    weights = torch.nn.Parameter(torch.tensor(rng.standard_normal(50), dtype=torch.float32))
    params = jnp.asarray(weights.detach().numpy().copy())
    rate = torch.tensor(0.0)
    ours = torch.optim.AdamW([weights], lr=rate, eps=1e-4, weight_decay=weight_decay, fused=True)
    theirs = optax.chain(optax.scale_by_adam(eps=1e-4), optax.add_decayed_weights(weight_decay))
    # A loss whose gradient is its third argument, so that the learner's own step is what is compared.
    learn = dqn_jax.make_learn(
        lambda params, target_params, batch: ((params * batch.rewards).sum(),),  # noqa: ARG005
        theirs,
        scan=False,
    )
    q_state = dqn_jax.QState(params, params + 0, theirs.init(params), jnp.ones(()))
    for step in range(20):
        gradient = (rng.standard_normal(50) * 10.0 ** rng.integers(-6, 2, 50)).astype(np.float32)
        rate.fill_(1e-3 / (step + 1))
        weights.grad = torch.tensor(gradient)
        ours.step()
        rb = FixedBatch(gradient)
        q_state, _ = learn(q_state, rb, np.zeros((1, 1), int), 1e-3 / (step + 1))
    np.testing.assert_allclose(q_state.params, weights.detach(), atol=1e-6)


@pytest.mark.slow
def test_learning_is_dispatched_and_not_waited_for():
    network, obs = dqn_jax.NatureCNN(6), jnp.zeros((512, 4, 84, 84), jnp.uint8)
    params = jax.jit(network.init)(jax.random.key(0), obs[:1])
    learn = dqn_jax.make_learn(
        lambda params, _, batch: (jnp.square(network.apply(params, batch.rewards)).mean(),),
        optax.scale_by_adam(),
        scan=False,
    )
    q_state = dqn_jax.QState(params, None, optax.scale_by_adam().init(params), jnp.ones(()))
    for _ in range(2):  # the first compiles
        q_state, metrics = learn(q_state, FixedBatch(obs), np.zeros((2, 1), int), 1e-4)
        still_learning = not metrics.is_ready()
        jax.block_until_ready(metrics)
    assert still_learning


class FixedBatch:
    """A buffer whose every batch has these rewards."""

    def __init__(self, rewards: np.ndarray) -> None:
        nothing = jnp.zeros(())
        self.batch = dqn_jax.Batch(nothing, nothing, jnp.asarray(rewards), nothing, nothing)

    def sample(self, _) -> dqn_jax.Batch:
        return self.batch
