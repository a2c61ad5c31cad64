"""dqn.py and its JAX twin: the checks that a tutorial makes by hand, the replay against another's, runs end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.buffers import NStepReplayBuffer
from torch import nn

from cleanrl import dqn, dqn_jax
from cleanrl_utils.evals.gym import Episodes, Step
from cleanrl_utils.evals.play import Evaluation, evaluate
from cleanrl_utils.models import files
from cleanrl_utils.models.files import load_into, load_params, save_params, save_weights
from cleanrl_utils.run.tracker import Tracker
from cleanrl_utils.seeds import EVALUATION, TRAINING
from tests.conftest import TINY_DQN, VECTOR_DQN, evaluations, require_names_of_metrics, scalars, twin_is_slow, weights
from tests.support import pages
from tests.test_maths import ONLINE, TARGET, TD_LOSSES

CONFIGS = Path(__file__).parents[1] / "benchmark" / "configs"


class Linear(nn.Module):
    """Q-values by row for one-hot observations, as a network in torch."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(rows))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return obs @ self.values


def linear(script: ModuleType, rows: list[list[float]]) -> Any:
    return Linear(rows) if script is dqn else lambda obs: obs @ jnp.asarray(rows)


def batch_of(script: ModuleType, states, actions, rewards, next_states, discounts) -> Any:
    obs, next_obs = (np.eye(2, dtype=np.float32)[shown] for shown in (states, next_states))
    arrays = (obs, np.array(actions), np.float32(rewards), next_obs, np.float32(discounts))
    return script.Batch(*map(torch.from_numpy if script is dqn else jnp.asarray, arrays))


# --- The network ---


@pytest.mark.parametrize("hidden_units", [(), (5,), (120, 84), (3, 4, 5)])
def test_the_network_has_its_layers(vector_dqn, hidden_units):
    obs = np.ones((7, 4), np.float32)
    sizes = [4, *hidden_units, 3]
    if vector_dqn is dqn:
        network = dqn.QNetwork(4, 3, hidden_units)
        shapes = [tuple(layer.weight.shape)[::-1] for layer in network.network if isinstance(layer, nn.Linear)]
        out = network(torch.from_numpy(obs)).detach().numpy()
    else:
        network = dqn_jax.QNetwork(3, hidden_units)
        params = network.init(jax.random.key(0), obs)
        shapes = [layer["kernel"].shape for layer in params["params"].values()]
        out = network.apply(params, obs)
    assert shapes == list(zip(sizes[:-1], sizes[1:], strict=True))
    assert (out.shape, out.dtype) == ((7, 3), np.float32)
    np.testing.assert_allclose(out, np.broadcast_to(out[0], out.shape), atol=1e-6, err_msg="equal rows, equal values")


def test_a_model_has_the_same_q_values_in_both_frameworks():
    # 8 inputs and 2 actions: what would pass for a picture of 2 x 2 pixels in 2 channels.
    obs = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    ours, theirs = dqn.QNetwork(8, 2, (16, 9)), dqn_jax.QNetwork(2, (16, 9))
    save_weights(ours.state_dict(), Path("torch_model"))
    params = theirs.init(jax.random.key(0), obs)
    save_params(params, Path("jax_model"))
    with jax.default_matmul_precision("highest"):
        from_torch = theirs.apply(load_params(theirs, params, Path("torch_model")), obs)
        expected = theirs.apply(params, obs)
    np.testing.assert_allclose(from_torch, ours(torch.from_numpy(obs)).detach(), atol=1e-5)
    load_into(ours, Path("jax_model"))
    np.testing.assert_allclose(ours(torch.from_numpy(obs)).detach(), expected, atol=1e-5)


# --- The replay buffer ---


def step_of(rewards, terminations=None, truncations=None, resets=None) -> Step:
    """A step that brought this; flags that are not given are not set."""
    never = np.zeros(len(rewards), dtype=bool)
    return Step(rewards, *(never if flags is None else flags for flags in (terminations, truncations, resets)), finished=[])


def test_the_ring_starts_again_at_row_0_when_it_is_full():
    rb = dqn.ReplayBuffer(5, 1, 2, 1, 0.9)
    for t in range(7):
        assert rb.head == t % 5
        assert rb.num_stored == min(t, 5)
        rb.add(np.full((1, 2), t), np.array([t]), step_of(np.array([t / 2])))
    assert rb.obs[:, 0, 0].tolist() == [5, 6, 2, 3, 4]
    assert set(rb.draw(50, 10, np.random.default_rng(0)).flatten()) == {2, 3, 4, 0}, (
        "row 1 is the newest: nothing after it yet"
    )
    batch = rb.sample(np.array([4, 0]))
    assert batch.obs[:, 0].tolist() == [4, 5]
    assert batch.next_obs[:, 0].tolist() == [5, 6]
    assert batch.actions.tolist() == [4, 5]
    assert batch.rewards.tolist() == [2.0, 2.5]
    assert batch.discounts.tolist() == pytest.approx([0.9, 0.9])


def test_nothing_can_be_drawn_before_there_are_n_steps_after_a_row():
    rb = dqn.ReplayBuffer(50, 1, 2, 3, 0.9)
    for t in range(5):
        drawn = rb.draw(2, 4, np.random.default_rng(0))
        assert drawn.shape == ((0, 4) if t < 4 else (2, 4))
        rb.add(np.full((1, 2), t), np.zeros(1), step_of(np.zeros(1)))
    assert (drawn == 0).all()


def test_what_comes_after_a_cut_is_no_part_of_a_return():
    """Row 0 is cut, row 1 resets, row 2 ends: from row 0 there is one reward, and a bootstrap from what row 1 shows."""
    rb = dqn.ReplayBuffer(10, 1, 1, 3, 0.5)
    for t in range(6):
        cut, reset, ended = (np.array([t == row]) for row in (0, 1, 2))
        rb.add(np.full((1, 1), t), np.zeros(1), step_of(np.array([10.0 + t]), ended, cut, reset))
    batch = rb.sample(np.array([0, 2]))
    assert batch.rewards.tolist() == [10.0, 12.0]
    assert batch.discounts.tolist() == [0.5, 0.0]
    assert batch.next_obs[0] == 1


def test_a_checkpoint_cuts_what_goes_on_and_nothing_else():
    """Four episodes by the row before the cut: going on, over, cut already, and just reset."""
    rb, no = dqn.ReplayBuffer(40, 4, 1, 1, 0.9), np.zeros(4, dtype=bool)
    over, cut, reset = (np.array([i == place for i in range(4)]) for place in (1, 2, 3))
    rb.add(np.full((4, 1), 5), no, step_of(no, over, cut, reset))
    rb.cut(np.full((4, 1), 6))
    assert rb.truncations[:2].tolist() == [[True, False, True, False], [False] * 4]
    assert rb.valid[:2].tolist() == [[True, True, True, False], [False] * 4]
    batch = rb.sample(np.arange(3))
    assert batch.next_obs.tolist() == [[6.0]] * 3
    assert batch.discounts.tolist() == pytest.approx([0.9, 0, 0.9])


def test_a_checkpoint_of_an_empty_ring_has_nothing_to_cut():
    rb, no = dqn.ReplayBuffer(10, 1, 1, 1, 0.9), np.zeros(1, dtype=bool)
    rb.cut(np.zeros((1, 1)))
    for _ in range(2):
        rb.add(np.zeros((1, 1)), no, step_of(no))
    assert rb.draw(1, 8, np.random.default_rng(0)).tolist() == [[0] * 8]


def test_the_smallest_ring_has_something_to_draw_after_a_reset_and_a_checkpoint():
    rb, one = dqn.ReplayBuffer(dqn.ReplayBuffer.min_rows(1), 1, 1, 1, 0.9), np.ones(1, dtype=bool)
    obs = np.zeros((1, 1))
    for resets in (~one, ~one, one):
        rb.add(obs, ~one, step_of(~one, resets=resets))
    rb.cut(obs)
    assert set(rb.draw(2, 8, np.random.default_rng(0)).flatten()) == {0, 1}
    rb.add(obs, ~one, step_of(~one))  # wraps: rows 1 to 3 may be drawn, 2 and 3 start nothing
    assert set(rb.draw(2, 8, np.random.default_rng(0)).flatten()) == {1}


def test_a_ring_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="too few"):
        dqn.ReplayBuffer(8, 2, 3, 3, 0.9)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("n_step", [1, 3])
def test_transitions_equal_those_of_stable_baselines3(num_envs, n_step):
    """On real episodes, some ended, some cut, with one of its buffers per environment; ours wraps three times."""
    args = dqn.Args(env_kwargs={"max_episode_steps": 14}, num_envs=num_envs)
    envs = Episodes(args, TRAINING, num_envs)
    rb = dqn.ReplayBuffer(50 * num_envs, num_envs, 4, n_step, 0.9)
    space = Box(-np.inf, np.inf, (4,), np.float32)
    oracles = [NStepReplayBuffer(200, space, Discrete(2), n_steps=n_step, gamma=0.9, device="cpu") for _ in range(num_envs)]
    rng, place = np.random.default_rng(0), {}
    ends, cuts = 0, 0
    for t in range(180):
        obs, actions = envs.obs, envs.send(rng.integers(2, size=num_envs))
        step = envs.recv()
        rewards, terminations, truncations, resets, _ = step
        next_obs = envs.obs
        rb.add(obs, actions, step)
        for env in np.flatnonzero(~resets):
            place[t, env] = oracles[env].pos
            # A pole that falls in the last step has fallen: Gymnasium sets both flags, and theirs would see the cut only.
            done, info = terminations[env] or truncations[env], {"TimeLimit.truncated": truncations[env] > terminations[env]}
            oracles[env].add(obs[env], next_obs[env], actions[env], rewards[env], np.array([done]), [info])
        ends, cuts = ends + terminations.sum(), cuts + truncations.sum()
    assert min(ends, cuts) >= 2

    indices = np.unique(rb.draw(100, 50, np.random.default_rng(1)))
    allowed = [(t, env) for (t, env) in place if 130 <= t < 180 - n_step]
    assert indices.tolist() == sorted(t % 50 * num_envs + env for t, env in allowed)
    for t, env in allowed:
        ours = rb.sample(np.array([t % 50 * num_envs + env]))
        theirs = oracles[env]._get_samples(np.array([place[t, env]]))
        assert np.array_equal(ours.obs, theirs.observations)
        assert ours.actions[0] == theirs.actions[0, 0]
        assert ours.rewards[0] == pytest.approx(theirs.rewards.item(), abs=1e-5)
        assert np.array_equal(ours.next_obs, theirs.next_observations)
        assert ours.discounts[0] == pytest.approx(theirs.discounts.item() * (1 - theirs.dones.item()), abs=1e-6)


def test_draws_are_uniform():
    rb = dqn.ReplayBuffer(30, 3, 1, 1, 0.9)
    for t in range(25):
        resets = np.array([t % 3 == 1, False, t % 2 == 1])
        rb.add(np.zeros((3, 1)), np.zeros(3), step_of(np.zeros(3), resets=resets))
    counts = np.bincount(rb.draw(1000, 20, np.random.default_rng(0)).flatten(), minlength=30)
    drawable = rb.valid.flatten() & (np.arange(30) // 3 != 4)  # row 4 was written last
    assert (counts[~drawable] == 0).all()
    assert np.abs(counts[drawable] - 20_000 / drawable.sum()).max() < 6 * math.sqrt(20_000 / drawable.sum())


# --- The maths ---


@TD_LOSSES
def test_td_loss(vector_dqn, double_q, huber, expected):
    batch = batch_of(vector_dqn, [0, 1], [1, 0], [1.0, 2.0], [1, 0], [0.5, 0.0])
    loss, q_value = vector_dqn.td_loss(linear(vector_dqn, ONLINE), linear(vector_dqn, TARGET), batch, double_q, huber)
    assert loss.item() == pytest.approx(expected)
    assert q_value.item() == pytest.approx(3.0)


@pytest.mark.parametrize("double_q", [False, True])
def test_no_gradient_flows_through_the_target(double_q):
    batch = batch_of(dqn, [0], [1], [1.0], [1], [0.5])
    online, target = Linear(ONLINE), Linear(TARGET)
    dqn.td_loss(online, target, batch, double_q, huber=False)[0].backward()
    assert target.values.grad is None

    def loss(online, target):
        batch = batch_of(dqn_jax, [0], [1], [1.0], [1], [0.5])
        return dqn_jax.td_loss(lambda obs: obs @ online, lambda obs: obs @ target, batch, double_q, False)[0]

    gradients = jax.grad(loss, argnums=(0, 1))(jnp.asarray(ONLINE), jnp.asarray(TARGET))
    np.testing.assert_allclose(gradients[0], online.values.grad)
    assert not gradients[1].any()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # Q(0, 1) = 2, next state 1. With a target network: 1 + 0.5 * 6 = 4, so the gradient is 2 * (2 - 4).
        (TARGET, -4.0),
        # Without one the target is the network's own 1 + 0.5 * 4 = 3, through which no gradient flows.
        (ONLINE, -2.0),
    ],
    ids=["target network", "none"],
)
def test_an_update_moves_only_the_value_it_is_about_towards_the_target(vector_dqn, target, expected):
    batch = batch_of(vector_dqn, [0], [1], [1.0], [1], [0.5])
    moved = np.array(ONLINE)
    moved[0, 1] -= 0.1 * expected
    if vector_dqn is dqn:
        online = Linear(ONLINE)
        target_network = Linear(target) if target is TARGET else online
        metrics = dqn.update(online, target_network, torch.optim.SGD(online.parameters(), lr=0.1), batch, dqn.td_loss)
        assert torch.allclose(online.values, torch.tensor(moved, dtype=torch.float32))
    else:

        class Rows(dqn_jax.nn.Module):
            @dqn_jax.nn.compact
            def __call__(self, obs):
                return obs @ self.param("values", lambda _: jnp.zeros((2, 2)))

        params, target_params = ({"params": {"values": jnp.asarray(rows)}} for rows in (ONLINE, target))
        optimizer = optax.sgd(0.1)
        state = dqn_jax.QState(params, target_params, optimizer.init(params), jnp.ones(()))
        state, metrics = dqn_jax.update(Rows(), optimizer, state, batch, dqn_jax.td_loss)
        np.testing.assert_allclose(state.params["params"]["values"], moved, atol=1e-6)
        np.testing.assert_allclose(state.target_params["params"]["values"], target)
    assert metrics.tolist()[:2] == pytest.approx([(expected / 2) ** 2, 2.0])


@pytest.mark.parametrize(("double_q", "huber"), [(False, False), (True, True)])
def test_twins_have_the_same_loss_and_gradients(double_q, huber):
    rng = np.random.default_rng(0)
    arrays = (
        rng.standard_normal((32, 6)).astype(np.float32),
        rng.integers(3, size=32),
        rng.standard_normal(32).astype(np.float32),
        rng.standard_normal((32, 6)).astype(np.float32),
        rng.choice([0.0, 0.9], 32).astype(np.float32),
    )
    ours, target = dqn.QNetwork(6, 3, (120, 84)), dqn.QNetwork(6, 3, (120, 84))
    theirs, params = dqn_jax.QNetwork(3, (120, 84)), []
    for network in (ours, target):
        save_weights(network.state_dict(), Path("model"))
        blank = jax.eval_shape(theirs.init, jax.random.key(0), arrays[0])
        params.append(load_params(theirs, blank, Path("model")))

    loss, q_value = dqn.td_loss(ours, target, dqn.Batch(*map(torch.from_numpy, arrays)), double_q, huber)
    loss.backward()
    loss_fn = lambda p: dqn_jax.td_loss(theirs.bind(p), theirs.bind(params[1]), dqn_jax.Batch(*arrays), double_q, huber)  # noqa: E731
    with jax.default_matmul_precision("highest"):
        (jax_loss, jax_q_value), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params[0])
    assert (float(jax_loss), float(jax_q_value)) == pytest.approx((loss.item(), q_value.item()), abs=1e-5)
    for place, layer in enumerate(layer for layer in ours.network if isinstance(layer, nn.Linear)):
        found = gradients["params"][f"Dense_{place}"]
        np.testing.assert_allclose(found["kernel"], layer.weight.grad.T, atol=1e-5)
        np.testing.assert_allclose(found["bias"], layer.bias.grad, atol=1e-5)
        assert np.abs(found["kernel"]).max() > 1e-3


FLAGS = (
    "--seed 2|--gamma 0.9|--learning-rate 1e-3|--tau 0.3|--target-network-frequency 30|--batch-size 16|--start-e 0.2"
    "|--end-e 0|--exploration-fraction 1|--schedule-timesteps 3000|--learning-starts 150|--train-frequency 2|--n-step 3"
    "|--double-q|--huber|--num-envs 2|--buffer-size 50|--hidden-units 8"
).split("|")


@pytest.mark.parametrize("vector_dqn", twin_is_slow(*VECTOR_DQN), ids=["torch", "jax"])
@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_of_the_algorithm_changes_what_is_learned(unchanged, vector_dqn, flag):
    flags = [*TINY_DQN, "--total-timesteps", "300", "--end-e", "0.5", "--save-model"]
    assert not unchanged(vector_dqn, *flags, more=flag)


@pytest.mark.parametrize("vector_dqn", twin_is_slow(*VECTOR_DQN), ids=["torch", "jax"])
def test_evaluations_are_by_the_flags(train, monkeypatch, vector_dqn):
    made = evaluations(monkeypatch, vector_dqn)
    flags = "--eval-episodes 3 --eval-epsilon 0.3 --eval-max-steps 7 --seed 5 --eval-frequency 200 --total-timesteps 300"
    train(vector_dqn, *TINY_DQN, *flags.split())
    assert made == [(3, 5, 0.3, 7)] * 2, "after 200 steps, and at the end"


@pytest.mark.parametrize("vector_dqn", twin_is_slow(*VECTOR_DQN), ids=["torch", "jax"])
def test_what_is_logged_has_the_names_of_what_it_is(train, monkeypatch, vector_dqn):
    require_names_of_metrics(monkeypatch, vector_dqn, lambda: train(vector_dqn, *TINY_DQN))


@pytest.mark.parametrize("vector_dqn", twin_is_slow(*VECTOR_DQN), ids=["torch", "jax"])
def test_a_loss_that_is_not_finite_ends_the_run_with_one_line(vector_dqn, capsys):
    with pytest.raises(SystemExit) as stopped:
        vector_dqn.flags.run(vector_dqn.main, vector_dqn.Args, [*TINY_DQN, "--learning-rate", "1e30"])
    assert stopped.value.code == 1
    assert "error: a loss was not finite; lower --learning-rate" in capsys.readouterr().err


# --- Runs ---


def test_a_run_leaves_models_config_and_metrics(train, vector_dqn):
    folder = train(vector_dqn, *TINY_DQN, "--save-model", "--eval-frequency", "600", "--eval-max-steps", "500")
    name = vector_dqn.Args().exp_name
    assert folder.name.startswith(f"CartPole-v1__{name}__1__")
    assert {path.name for path in folder.glob("*.cleanrl_model")} == {f"{name}.cleanrl_model", f"{name}-best.cleanrl_model"}
    run = json.loads((folder / "config.json").read_text())
    assert (run["status"], run["steps"], run["flags"]["hidden_units"]) == ("complete", 1500, [16])
    assert set(run["evaluations"]) == {"agent", "best evaluation"}
    logged = scalars(folder)
    assert set(logged) == pages.metrics("docs/rl-algorithms/dqn.md")
    assert [step for step, _ in logged["eval/episodic_return"]] == [600, 1200, 1500]
    assert max(value for _, value in logged["eval/episodic_return"]) == np.mean(
        run["evaluations"]["best evaluation"]["returns"]
    )
    # CartPole pays 1 per step: returns are lengths, and with one step per reset they fill the run.
    lengths = [value for _, value in logged["charts/episodic_length"]]
    assert lengths == [value for _, value in logged["charts/episodic_return"]]
    last_end = logged["charts/episodic_length"][-1][0]
    assert sum(lengths) + len(lengths) - 1 == last_end


def test_same_seed_same_weights_and_another_seed_others(train, vector_dqn):
    first, second, other = (
        weights(vector_dqn, train(vector_dqn, *TINY_DQN, "--total-timesteps", "300", "--save-model", "--seed", seed))
        for seed in ("3", "3", "4")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_both_frameworks_play_the_same_episodes_at_random(train):
    flags = [*TINY_DQN, "--learning-starts", "9999", "--num-envs", "2"]
    ours, theirs = (scalars(train(script, *flags))["charts/episodic_return"] for script in (dqn, dqn_jax))
    assert ours == theirs != []


@pytest.mark.parametrize(("num_envs", "updates"), [(1, 100), (3, 100), (7, 100), (25, 100)])
def test_one_update_per_train_frequency_steps_whatever_the_number_of_environments(
    train, vector_dqn, monkeypatch, num_envs, updates
):
    seen, update = [], vector_dqn.update
    monkeypatch.setattr(vector_dqn, "update", lambda *args: (seen.append(1), update(*args))[1])
    flags = ["--num-envs", str(num_envs), "--learning-starts", "525", "--train-frequency", "10", "--total-timesteps", "1525"]
    train(vector_dqn, *TINY_DQN, *flags)
    warm_up = vector_dqn is dqn_jax
    assert len(seen) - warm_up == pytest.approx(updates, abs=num_envs / 10)


def test_the_best_evaluated_weights_are_kept_beside_the_last(train, vector_dqn, monkeypatch):
    means, saved = iter([1.0, 5.0, 3.0]), []
    replacing, name = files.replacing, vector_dqn.Args().exp_name
    monkeypatch.setattr(vector_dqn, "evaluate", lambda *_: Evaluation([next(means)], [1], 0))  # made up: when is the claim
    monkeypatch.setattr(files, "replacing", lambda path: (saved.append(path.stem), replacing(path))[1])
    folder = train(vector_dqn, *TINY_DQN, "--eval-frequency", "600", "--save-model")
    assert saved == [f"{name}-best", f"{name}-best", name]
    assert json.loads((folder / "config.json").read_text())["evaluations"]["best evaluation"]["returns"] == [5.0]


@pytest.mark.parametrize("vector_dqn", twin_is_slow(*VECTOR_DQN), ids=["torch", "jax"])
@pytest.mark.parametrize("env_id", ["Acrobot-v1", "MountainCar-v0"])
@pytest.mark.parametrize("flags", [[], ["--double-q", "--huber", "--n-step", "3"]])
def test_nothing_is_lost_to_nan_on(train, vector_dqn, env_id, flags):
    flags = [*TINY_DQN, "--gamma", "0.99", "--env-id", env_id, "--total-timesteps", "700", *flags]
    logged = scalars(train(vector_dqn, *flags, "--save-model"))
    assert all(np.isfinite(value) for series in logged.values() for _, value in series)


def test_jax_compiles_nothing_in_training(train, monkeypatch):
    """What is compiled is compiled before the clock of SPS runs."""
    functions, begin = (dqn_jax.update, dqn_jax.sync, dqn_jax.greedy_actions), Tracker.begin
    sizes = []
    monkeypatch.setattr(
        Tracker, "begin", lambda *args: (sizes.append([f._cache_size() for f in functions]), begin(*args))[1]
    )
    train(dqn_jax, *TINY_DQN, "--hidden-units", "7", "--n-step", "2", "--num-envs", "2")
    assert [f._cache_size() for f in functions] == sizes[0]


def play(num_episodes: int, epsilon: float = dqn.Args.eval_epsilon, max_steps: float = math.inf) -> Evaluation:
    """Episodes of CartPole by an agent that always pushes left."""
    episodes = Episodes(dqn.Args(), EVALUATION, num_episodes)
    return evaluate(lambda obs: np.zeros(len(obs), int), episodes, 1, epsilon, max_steps)


def test_evaluation_is_greedy_over_whole_episodes():
    """An agent that always pushes left drops the pole in 8 to 10 steps; one that balances is cut by --eval-max-steps."""
    left = play(3)
    assert all(8 <= length <= 10 for length in left.lengths)
    assert left.returns == left.lengths
    assert left.capped == 0
    assert play(3, max_steps=5).lengths == [5, 5, 5]
    assert play(3, max_steps=5).capped == 3


def test_an_evaluated_return_is_that_of_one_episode():
    """Environments whose episode is over play on beside the others; CartPole pays 1 per step, so returns are lengths."""
    result = play(6, epsilon=1.0)
    assert max(result.lengths) > min(result.lengths) + 5
    assert result.returns == result.lengths


@pytest.mark.parametrize("vector_dqn", twin_is_slow(*VECTOR_DQN), ids=["torch", "jax"])
def test_an_environment_without_an_end_is_cut_in_evaluation(train, vector_dqn):
    folder = train(vector_dqn, *TINY_DQN, "--env-id", "tests.support.probes:Endless-v0", "--eval-max-steps", "40")
    assert folder.name.startswith("tests.support.probes-Endless-v0__")
    result = json.loads((folder / "config.json").read_text())["evaluations"]["agent"]
    assert (result["lengths"], result["capped"]) == ([40], 1)


@pytest.mark.slow
def test_cartpole_is_learned(train, vector_dqn, monkeypatch):
    """The tutorial's configuration, evaluated more often and stopped when it has learned: in half a minute or less."""

    class Learned(Exception):
        """Ends the run."""

    def stop_when_learned(*given):
        result = evaluate(*given)
        if result.mean >= 400:
            raise Learned
        return result

    monkeypatch.setattr(vector_dqn, "evaluate", stop_when_learned)
    with pytest.raises(Learned):
        train(vector_dqn, "--config", str(CONFIGS / "dqn_cartpole.yaml"), "--device", "cpu", "--eval-frequency", "1000")


@pytest.mark.parametrize("vector_dqn", twin_is_slow(*VECTOR_DQN), ids=["torch", "jax"])
def test_flappybird_runs_without_a_screen(train, vector_dqn):
    pytest.importorskip("flappy_bird_gymnasium")
    flags = ["--config", str(CONFIGS / "dqn_flappybird.yaml"), *TINY_DQN, "--eval-episodes", "2", "--eval-max-steps", "200"]
    flags += ["--total-timesteps", "300"]
    run = json.loads((train(vector_dqn, *flags) / "config.json").read_text())
    assert run["flags"]["env_kwargs"] == {"use_lidar": False, "score_limit": 100}
    assert len(run["evaluations"]["agent"]["returns"]) == 2


def test_a_video_is_a_whole_episode(train, agent):
    pytest.importorskip("imageio_ffmpeg")
    flags = (
        [*TINY_DQN, "--total-timesteps", "200"] if agent in (dqn, dqn_jax) else ["--n-steps", "100", "--regressor", "linear"]
    )
    folder = train(agent, *flags, "--capture-video", "--eval-max-steps", "500")
    videos = list(Path("videos", folder.name).glob("*.mp4"))
    assert videos
    assert all(video.stat().st_size > 1000 for video in videos)
