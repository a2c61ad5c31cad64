"""Agents learn the known values of tiny environments: DQN in both frameworks, and FQI."""

from __future__ import annotations

from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cleanrl import dqn, dqn_jax, fqi
from cleanrl_utils.models.files import load_into, load_params
from tests.conftest import TINY_DQN, TINY_FQI

SHORT_DQN = [*TINY_DQN, "--total-timesteps", "700"]

pytestmark = pytest.mark.filterwarnings("ignore:.*WARN")  # Gymnasium on environments that are odd on purpose


@pytest.fixture
def learned(train):
    """Train on a probe; returns Q-values (n, 2) of observations (n, D)."""

    def learn(agent: ModuleType, probe: str, obs: list[list[float]], *flags: str) -> np.ndarray:
        folder = train(
            agent,
            "--env-id",
            f"tests.support.probes:{probe}-v0",
            *(TINY_FQI if agent is fqi else SHORT_DQN),
            *flags,
            "--save-model",
        )
        seen = np.array(obs, dtype=np.float32)
        if agent is fqi:
            return fqi.q_values(fqi.load_run(folder)[0], seen, 2)
        model = folder / f"{agent.Args().exp_name}.cleanrl_model"
        if agent is dqn:
            network = dqn.QNetwork(seen.shape[1], 2, (16,))
            load_into(network, model)
            return network(torch.from_numpy(seen)).detach().numpy()
        network = dqn_jax.QNetwork(2, (16,))
        blank = network.init(dqn_jax.jax.random.key(0), seen)
        return np.asarray(network.apply(load_params(network, blank, model), jnp.asarray(seen)))

    return learn


@pytest.mark.parametrize(
    ("probe", "obs", "expected"),
    [
        ("Constant", [[0.0]], [[1.0, 1.0]]),
        ("Observed", [[-1.0], [1.0]], [[-1.0, -1.0], [1.0, 1.0]]),
        ("Delayed", [[0.0], [1.0]], [[0.5, 0.5], [1.0, 1.0]]),
        ("Chosen", [[0.0]], [[0.0, 1.0]]),
        ("Matched", [[-1.0], [1.0]], [[1.0, -1.0], [-1.0, 1.0]]),
        ("Float64", [[-1.0], [1.0]], [[-1.0, -1.0], [1.0, 1.0]]),
        ("InPlace", [[0.0], [1.0]], [[0.5, 0.5], [1.0, 1.0]]),
    ],
)
def test_learns_the_known_values(learned, agent, probe, obs, expected):
    assert learned(agent, probe, obs) == pytest.approx(np.array(expected), abs=0.1)


def test_a_truncated_step_is_bootstrapped_and_a_terminated_one_is_not(learned, agent):
    """Both give reward 1 and end after it; the first is only cut: 1 + 0.5 + 0.25 + ... = 2."""
    assert learned(agent, "Cut", [[0.0]]) == pytest.approx(np.full((1, 2), 2.0), abs=0.15)
    assert learned(agent, "Constant", [[0.0]]) == pytest.approx(np.full((1, 2), 1.0), abs=0.1)


@pytest.mark.parametrize("flags", [["--n-step", "3"], ["--double-q", "--huber"], ["--num-envs", "3"], ["--tau", "0.1"]])
def test_every_kind_of_update_learns_the_known_values(learned, vector_dqn, flags):
    assert learned(vector_dqn, "Delayed", [[0.0], [1.0]], *flags) == pytest.approx(
        np.array([[0.5, 0.5], [1.0, 1.0]]), abs=0.1
    )


def test_other_observations_are_flattened(learned, agent):
    # Gymnasium sorts a dictionary by key: "other" (one-hot of 3, then 2 x 2 numbers), then "sign".
    obs = [[0, 1, 0, 0, 0, 0, 0, sign] for sign in (-1.0, 1.0)]
    assert learned(agent, "Nested", obs) == pytest.approx(np.array([[-1.0, -1.0], [1.0, 1.0]]), abs=0.1)
